"""The kernel's draws on a card: the sampler's, of any rows, whoever draws beside them; with what they take.

Prints microseconds of one step's draws, launched from Python and as a graph, by the kernel and by the sampler: -s shows them.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from tests.gpu.test_on_a_card import device
from tests.twins import drawing
from zopilot_gpu.bench.gpu.clock import eager_ms, graph_ms
from zopilot_gpu.bench.gpu.subject import Drawing
from zopilot_gpu.engine import sample_kernel
from zopilot_gpu.engine.seats import Seated
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import GREEDY, Sampling

VOCAB = 32_000
SERVED = Sampling(temperature=0.1, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=None)
__all__ = ["device"]  # a fixture


@torch.inference_mode()
@pytest.mark.parametrize(("masked", "seated"), [(False, True), (True, True), (False, False)])
@pytest.mark.parametrize(
    ("num_rows", "vocab_size"), [(1, VOCAB), (32, VOCAB), (128, VOCAB), (33, 32_001), (33, 1000), (4, 50), (22, 2**18)]
)
def test_a_draw_and_what_is_noted_of_it_are_the_samplers(
    device: torch.device, num_rows: int, vocab_size: int, monkeypatch: pytest.MonkeyPatch, *, masked: bool, seated: bool
) -> None:
    near = count = 0
    for seed in range(6 if vocab_size == VOCAB else 2):
        it = drawing.rows(seed + num_rows * vocab_size, num_rows, vocab_size, device)
        near += drawing.check(it, monkeypatch, masked=masked, seated=seated)
        count += num_rows
    assert near <= 3 + count // 10


@torch.inference_mode()
@pytest.mark.parametrize("masked", [False, True])
def test_a_row_draws_the_same_alone_in_any_batch_and_again(device: torch.device, *, masked: bool) -> None:
    it = drawing.rows(5, 132, VOCAB, device)
    masks = it.masks if masked else None

    def draw(rows: torch.Tensor) -> torch.Tensor:
        seats = Seated(it.homes[rows], it.seen.clone(), it.last.clone())
        allowed = None if masks is None else masks[rows]
        return sample_kernel.draw(it.logits[rows], it.parameters[:, rows].contiguous(), allowed, seats)

    everyone = torch.arange(132, device=device)
    together = draw(everyone)
    assert torch.equal(draw(everyone), together)
    assert torch.equal(draw(everyone.flip(0)).flip(0), together)
    for row in range(0, 132, 5):
        assert torch.equal(draw(everyone[row : row + 1]), together[row : row + 1])


@torch.inference_mode()
def test_whoever_draws_beside_them_rows_draw_the_same(device: torch.device) -> None:
    """In one launch, and launch by launch where a neighbour draws from many, has a bias or wants log probabilities."""
    logits = (torch.randn(48, VOCAB, device=device) * 4).bfloat16().float()
    ways = [GREEDY, SERVED, replace(SERVED, temperature=1.0, repetition_penalty=1), replace(SERVED, temperature=1.5, top_k=128)]

    def drawn(neighbour: Sampling) -> torch.Tensor:
        sequences = [Sequence(str(n), [n, 7, 9], 9, neighbour if n % 6 == 5 else ways[n % 4], seed=n) for n in range(48)]
        return Drawing(sequences, VOCAB, device)(logits)

    expected = drawn(GREEDY)
    others = torch.arange(48, device=device) % 6 != 5
    for neighbour in (replace(SERVED, top_k=0), replace(GREEDY, logit_bias=((7, 9.0),)), replace(SERVED, num_logprobs=3)):
        assert torch.equal(drawn(neighbour)[others].long(), expected[others])


@torch.inference_mode()
@pytest.mark.parametrize("num_rows", [1, 8, 32, 128])
def test_what_the_draws_of_a_step_take(device: torch.device, num_rows: int) -> None:
    logits = (torch.randn(num_rows, VOCAB, device=device) * 4).bfloat16().float()
    took = []
    for by_kernel in (True, False):
        for how in (GREEDY, SERVED):
            sequences = [Sequence(str(n), list(range(200)), 9, how, seed=n) for n in range(num_rows)]
            draw = Drawing(sequences, VOCAB, device, by_kernel=by_kernel)
            took.append(eager_ms([partial(draw, logits)], device, 50) * 1000)
    it = drawing.rows(1, num_rows, VOCAB, device)
    parameters = torch.tensor([0.1, 50, 0.95, 1.1, 0.5], device=device).repeat(num_rows, 1).T.contiguous()
    seats = Seated(it.homes, it.seen, it.last)
    alone = graph_ms([partial(sample_kernel.draw, logits, parameters, None, seats)] * 8, device, 50) * 1000
    names = ("greedy", "as served", "greedy by launches", "as served by launches")
    print(f"\n{num_rows} rows, us:", ", ".join(f"{name} {us:.0f}" for name, us in zip(names, took, strict=True)), end="")  # noqa: T201
    print(f"; the kernel itself as served {alone:.1f}")  # noqa: T201
    assert alone < 500  # 10 times what it was expected to take
