"""Draws the next token of every row at once, on the device. Knows logits and parameters; keeps no state.

The order is transformers': repetition penalty, bias and OpenAI's penalties, temperature, top-k, top-p. A row's draw depends on
its own logits, parameters, seed and position alone, so a request gives the same text by itself and in any batch.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch

from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import Score

_OFF = float("-inf")


@dataclass(frozen=True, slots=True)
class Rows:
    """The parameters of R rows, on the device of the logits."""

    temperature: torch.Tensor  # [R] float32; 0 is greedy
    top_k: torch.Tensor  # [R] int64; V is off
    top_p: torch.Tensor  # [R] float32; 1 is off
    repetition_penalty: torch.Tensor  # [R] float32; 1 is off
    uniform: torch.Tensor  # [R] float32 in [0, 1): where in the distribution to draw
    seen: torch.Tensor | None  # [R, V] bool, tokens that the penalty is for; None when no row has one
    added: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None  # [N] rows, [N] tokens, [N] float32; no pair twice


def rows(sequences: list[Sequence], vocab_size: int, device: torch.device) -> Rows:
    """The parameters of the rows that draw the next tokens of `sequences`."""
    sampling = [one.sampling for one in sequences]
    uniforms = [uniform(one.seed, one.num_tokens) for one in sequences]
    return Rows(
        temperature=torch.tensor([one.temperature for one in sampling], dtype=torch.float32, device=device),
        top_k=torch.tensor([one.top_k or vocab_size for one in sampling], device=device),
        top_p=torch.tensor([one.top_p for one in sampling], dtype=torch.float32, device=device),
        repetition_penalty=torch.tensor([one.repetition_penalty for one in sampling], dtype=torch.float32, device=device),
        uniform=torch.tensor(uniforms, dtype=torch.float32, device=device),
        seen=_seen(sequences, vocab_size, device),
        added=_added(sequences, device),
    )


def _seen(sequences: list[Sequence], vocab_size: int, device: torch.device) -> torch.Tensor | None:
    """[R, V] bool: the tokens of each sequence, where any of them has a penalty."""
    if all(one.sampling.repetition_penalty == 1 for one in sequences):
        return None
    return torch.from_numpy(np.stack([one.seen(vocab_size) for one in sequences])).to(device)


def _added(sequences: list[Sequence], device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
    found = [(row, token, value) for row, one in enumerate(sequences) for token, value in one.additions().items()]
    if not found:
        return None
    at, tokens, values = zip(*found, strict=True)
    return (
        torch.tensor(at, device=device),
        torch.tensor(tokens, device=device),
        torch.tensor(values, dtype=torch.float32, device=device),
    )


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that looks random and is the same for the same seed and position."""
    digest = hashlib.blake2b(seed.to_bytes(8, "little") + position.to_bytes(8, "little"), digest_size=4).digest()
    return (int.from_bytes(digest, "little") >> 8) / (1 << 24)  # 24 bits: exact in float32, and never rounded up to 1


def sample(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    """One token a row.

    Args:
        logits: [R, V] float32; -inf for what is not allowed.
        rows: R parameters.

    Returns:
        [R] int64.
    """
    logits = _penalise(logits, rows)
    greedy = logits.argmax(dim=-1)
    if not bool((rows.temperature > 0).any()):
        return greedy
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    ordered = ordered / rows.temperature.clamp(min=1e-5).unsqueeze(1)
    ranks = torch.arange(logits.shape[1], device=logits.device)
    ordered = ordered.masked_fill(ranks >= rows.top_k.unsqueeze(1), _OFF)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill(before >= rows.top_p.unsqueeze(1), 0)
    reached = probabilities.cumsum(dim=-1)
    target = rows.uniform.unsqueeze(1) * reached[:, -1:]
    drawn = (reached <= target).sum(dim=-1, keepdim=True).clamp(max=logits.shape[1] - 1)
    return torch.where(rows.temperature > 0, order.gather(1, drawn).squeeze(1), greedy)


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


def _penalise(logits: torch.Tensor, rows: Rows) -> torch.Tensor:
    if rows.seen is not None:
        penalty = rows.repetition_penalty.unsqueeze(1)
        logits = torch.where(rows.seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    if rows.added is not None:
        at, tokens, values = rows.added
        logits = logits.index_put((at, tokens), logits[at, tokens] + values)
    return logits
