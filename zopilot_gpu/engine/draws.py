"""The draws of one step, for sequences in their seats. Knows which way they are made: `sampler`, `sample_kernel` or both.

    one launch        a GPU, where no row draws from many, has something added to its logits or asks for log probabilities
    launch by launch  else: the sampler around the same kernel, which draws the rows that it can; on a CPU the sampler alone

So what a row draws does not depend on what its neighbours ask for.
"""

from concurrent.futures import Future
from importlib.util import find_spec

import torch

from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.grammar import Mask
from zopilot_gpu.engine.inputs import Views
from zopilot_gpu.engine.seats import Seats
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.transfer import upload

MOST_VOCAB = 2**18  # of `sample_kernel`


class Draws:
    """Draws for the sequences of one engine.

    Args:
        seats: where they sit.
        vocab_size: V.
        device: where logits are.
        by_kernel: whether by one launch where that can do it; None is what `choose_kernel` says.
    """

    def __init__(self, seats: Seats, vocab_size: int, device: torch.device, *, by_kernel: bool | None = None) -> None:
        self._seats, self._device = seats, device
        wanted = choose_kernel(vocab_size, device)[0] if by_kernel is None else by_kernel
        self._kernel = load_kernel() if wanted else None

    def __call__(
        self, drawing: list[Sequence], logits: torch.Tensor, views: Views, masks: "Future[Mask] | None"
    ) -> torch.Tensor:
        """The next token of each sequence of `drawing`, noted in its seat; waits for `masks`.

        Returns:
            [R, 1] tokens, -1 where the logits [R, V] were no numbers; or [R, 2 ...] with their scores, where any has one.
        """
        if not drawing:
            return torch.empty(0, 1, device=self._device)
        asked = [one.sampling.num_logprobs for one in drawing if one.sampling.num_logprobs is not None]
        num_many = sum(sampler.draws_from_many(one.sampling) for one in drawing)
        added = sampler.additions(drawing)
        homes, parameters = views.homes[: len(drawing)], views.parameters[:, : len(drawing)]
        if self._kernel and not (asked or num_many or added):
            allowed = None if masks is None else upload(masks.result(), self._device)
            return self._kernel(logits, parameters, allowed, self._seats.take_in_one(drawing, homes)).unsqueeze(1)
        healthy = logits.amax(dim=-1).isfinite()
        if masks is not None:
            logits = sampler.mask(logits, upload(masks.result(), self._device))
        rows = sampler.Rows(
            parameters=parameters,
            any_few=any(sampler.draws_from_few(one.sampling) for one in drawing),
            many=views.many[:num_many] if num_many else None,
            seen=self._seats.seen(drawing, homes),
            added=added and (upload(added[0], self._device), upload(added[1], self._device)),
        )
        tokens = sampler.sample(logits, rows, self._kernel)
        self._seats.take(drawing, homes, tokens)
        # NOTE: masked_fill, not where: that copies its number from the host and waits.
        drawn = tokens.masked_fill(~healthy, -1).unsqueeze(1)
        if asked:
            drawn = torch.cat([drawn.double(), sampler.score(logits, tokens, max(asked))], dim=1)
        return drawn


def choose_kernel(vocab_size: int, device: torch.device) -> tuple[bool, str]:
    """Whether draws are one launch where they can be, and why."""
    if device.type != "cuda":
        return False, "the kernel is for a GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False, "the kernel needs sm_80 or newer, as the others do"
    if find_spec("triton") is None:
        return False, "the kernel needs triton, which is not installed"
    if vocab_size > MOST_VOCAB:
        return False, f"the kernel takes a vocabulary of {MOST_VOCAB} tokens at most, and not {vocab_size}"
    return True, "a GPU, and a vocabulary that the kernel takes"


def load_kernel() -> sampler.Kernel:
    """See `sample_kernel.draw`."""
    from zopilot_gpu.engine.sample_kernel import draw  # noqa: PLC0415  (triton is for a GPU)

    return draw
