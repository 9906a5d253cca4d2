"""Draws the next token of every row at once, on the device. Knows logits and parameters; keeps no state, waits for nothing.

The order is transformers': repetition penalty, bias and OpenAI's penalties, temperature, top-k, top-p. A row's draw depends on
its own logits, parameters, seed and position alone, so a request gives the same text by itself and in any batch: what decides
how a row is drawn is its own top-k, never its neighbours'; equal logits are in the order of their ids, whichever way they were
sorted; and shares are added up in float64, where the order in which a device does it moves nothing.

On a GPU `sample_kernel` draws rows of the first two kinds, and this is its twin:

    greedy   argmax                           few    top-k up to MOST_FEW: the likeliest by `topk`
                                              many   any other: all of the vocabulary, sorted
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import Sampling, Score

MOST_FEW = 128
NUM_PARAMETERS = 5
Kernel = Callable[..., torch.Tensor]  # `sample_kernel.draw`
_OFF = float("-inf")


@dataclass(frozen=True, slots=True)
class Rows:
    """The parameters of R rows, on the device of the logits, and on the host what decides which work there is."""

    parameters: torch.Tensor  # [NUM_PARAMETERS, R] float32, of `parameters`
    any_few: bool  # whether some rows draw from few
    many: torch.Tensor | None  # [M] int64, the rows that draw from many; None where there are none
    seen: torch.Tensor | None = None  # [R, V] bool, tokens that the repetition penalty is for; None where no row has one
    added: tuple[torch.Tensor, torch.Tensor] | None = None  # [2, N] int64 rows and tokens, [N] float32; no pair twice


def parameters(sequences: list[Sequence]) -> NDArray[np.float32]:
    """[NUM_PARAMETERS, R] of the rows that draw the next tokens of `sequences`.

    Temperature, 0 is greedy; top-k; top-p, 1 is off; repetition penalty, 1 is off; where in the distribution to draw.
    """
    values = np.empty((NUM_PARAMETERS, len(sequences)), dtype=np.float32)
    for row, one in enumerate(sequences):
        how = one.sampling
        where = uniform(one.seed, one.num_tokens) if how.temperature > 0 else 0.0
        values[:, row] = how.temperature, how.top_k or np.inf, how.top_p, how.repetition_penalty, where
    return values


def draws_from_few(sampling: Sampling) -> bool:
    """Whether a row is drawn from its likeliest, without sorting the others."""
    return sampling.temperature > 0 and 0 < sampling.top_k <= MOST_FEW


def draws_from_many(sampling: Sampling) -> bool:
    """Whether all of a row has to be sorted."""
    return sampling.temperature > 0 and not draws_from_few(sampling)


def additions(sequences: list[Sequence]) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """What is added to logits, as in `Rows.added`; None where nothing is."""
    found = [(row, token, value) for row, one in enumerate(sequences) for token, value in one.additions().items()]
    if not found:
        return None
    at, tokens, values = zip(*found, strict=True)
    return np.array((at, tokens), dtype=np.int64), np.array(values, dtype=np.float32)


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random and is the same for the same seed and position."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=4).digest()
    return (int.from_bytes(digest, "little") >> 8) / (1 << 24)  # 24 bits: exact in float32, and never rounded up to 1


def sample(logits: torch.Tensor, rows: Rows, kernel: Kernel | None = None) -> torch.Tensor:
    """One token a row.

    Args:
        logits: [R, V] float32; -inf for what is not allowed.
        rows: R parameters.
        kernel: what draws all rows but those that draw from many; see `sample_kernel.draw`.

    Returns:
        [R] int64.
    """
    temperature, top_k, _, penalty, _ = rows.parameters.unbind()
    logits = _penalise(logits, penalty, rows)
    tokens = logits.argmax(dim=-1) if kernel is None else kernel(logits, rows.parameters)
    if rows.any_few and kernel is None:
        chosen = (temperature > 0) & (top_k <= MOST_FEW)
        tokens = torch.where(chosen, _draw(*_likeliest(logits), rows.parameters), tokens)
    if rows.many is not None:
        ordered, order = logits[rows.many].sort(dim=-1, descending=True, stable=True)
        tokens = tokens.index_copy(0, rows.many, _draw(ordered, order, rows.parameters[:, rows.many]))
    return tokens


def _likeliest(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row in order, and their ids, the lower first of equals: [R, V] -> twice [R, up to MOST_FEW].

    NOTE: topk takes any of equals, and which depends on the number of rows; logits out of bf16 are often equal. So it is given
    keys of which no two are: the logit's bits in the upper half, made to sort as the logits do, the id below.
    """
    size = logits.shape[1]
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0, its equal
    upper = (bits ^ (bits >> 31 & 0x7FFFFFFF)).long() << 32
    keys = upper | torch.arange(size - 1, -1, -1, device=logits.device)
    order = size - 1 - (keys.topk(min(MOST_FEW, size), dim=-1).values & 0xFFFFFFFF)
    return logits.gather(1, order), order


def _draw(ordered: torch.Tensor, order: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """[R] tokens out of logits in falling order and their ids, [R, W] each; see `parameters`."""
    temperature, top_k, top_p, _, where = (one.unsqueeze(1) for one in parameters.unbind())
    ordered = ordered / temperature.clamp(min=1e-5)
    ranks = torch.arange(ordered.shape[1], device=ordered.device)
    shares = ordered.masked_fill(ranks >= top_k, _OFF).softmax(dim=-1).double()
    reached = shares.cumsum(dim=-1)
    kept = reached - shares < top_p  # from the first on, up to and with the one that reaches top_p
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    target = where * reached.gather(1, last)
    drawn = torch.minimum((reached <= target).sum(dim=-1, keepdim=True), last)
    return order.gather(1, drawn).squeeze(1)


def mask(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`logits` [R, V] with -inf where the bit of `masks` [R, ceil(V / 32)] int32 is not set (see `engine.grammar`)."""
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    allowed = (masks.unsqueeze(-1) >> bits & 1).bool().flatten(1)[:, : logits.shape[1]]
    return logits.masked_fill(~allowed, _OFF)


def score(logits: torch.Tensor, tokens: torch.Tensor, num_top: int) -> torch.Tensor:
    """Log probabilities of `tokens` [R] and of the `num_top` likeliest under `logits` [R, V].

    Returns:
        [R, 1 + 2 * num_top] float64: the token's; then the ids of the likeliest, in order; then theirs.
    """
    logprobs = logits.log_softmax(dim=-1)
    likeliest = logprobs.topk(num_top, dim=-1)
    chosen = logprobs.gather(1, tokens.unsqueeze(1))
    return torch.cat([chosen.double(), likeliest.indices.double(), likeliest.values.double()], dim=1)


def read_score(token_id: int, row: list[float], num_top: int) -> Score:
    """A row of `score`, cut to `num_top`; what can't be drawn is left out."""
    size = len(row) // 2
    likeliest = zip(row[1 : 1 + num_top], row[1 + size : 1 + size + num_top], strict=True)
    return Score(token_id, row[0], tuple((int(token), logprob) for token, logprob in likeliest if logprob > _OFF))


def _penalise(logits: torch.Tensor, penalty: torch.Tensor, rows: Rows) -> torch.Tensor:
    if rows.seen is not None:
        penalty = penalty.unsqueeze(1)
        logits = torch.where(rows.seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if rows.added is not None:
        (at, tokens), values = rows.added
        logits = logits.index_put((at, tokens), logits[at, tokens] + values)
    return logits
