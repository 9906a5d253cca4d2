"""Rows to draw from, of every kind at once, and what the sampler draws from them: the kernel has to draw the same."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from zopilot_gpu.engine import sample_kernel, sampler
from zopilot_gpu.engine.seats import Seated

INF, NAN = float("inf"), float("nan")
BORDER = 2e-6  # of shares that sum up to 1: so near to a border float32's rounding decides
NUM_WAYS = 11


@dataclass(frozen=True)
class Rows:
    """What a launch takes, and before it what the seats have."""

    logits: torch.Tensor
    parameters: torch.Tensor
    masks: torch.Tensor
    homes: torch.Tensor
    seen: torch.Tensor
    last: torch.Tensor


def rows(seed: int, num_rows: int, vocab_size: int, device: torch.device) -> Rows:
    """Ways to have logits, in turn; ways to draw, at random. There are more seats than rows."""
    random = torch.Generator().manual_seed(seed)

    def choice(*values: float) -> torch.Tensor:
        return torch.tensor(values)[torch.randint(len(values), (num_rows,), generator=random)]

    def some(share: float, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=random) < share

    logits = torch.randn(num_rows, vocab_size, generator=random) * 4
    masks = torch.randint(-(2**31), 2**31, (num_rows, -(-vocab_size // 32)), generator=random).int()
    masks[:, 0] |= 1
    masks[::NUM_WAYS] = -1
    sparse = some(0.995, num_rows, vocab_size)
    for row in range(num_rows):
        _spoil(logits[row], masks[row], sparse[row], row)
    parameters = torch.stack(
        [
            choice(0.0, 0.1, 0.7, 1.0, 2.0, 1e-9),
            choice(1, 2, 5, 50, 127, 128, 129, INF),
            choice(1.0, 0.95, 0.3, 1e-3),
            choice(1.0, 1.1, 1.1, 0.7),
            torch.where(some(0.1, num_rows), choice(0.0, 1 - 2**-24), torch.rand(num_rows, generator=random)),
        ]
    )
    seats = num_rows + 3
    homes, seen = torch.randperm(seats, generator=random)[:num_rows], some(0.3, seats, vocab_size)
    return Rows(*(one.to(device) for one in (logits, parameters, masks, homes, seen, torch.arange(seats))))


def _spoil(logits: torch.Tensor, mask: torch.Tensor, sparse: torch.Tensor, row: int) -> None:
    """Makes a row one of its kind."""
    middle = len(logits) // 2
    match row % NUM_WAYS:
        case 1:
            logits[:] = logits.bfloat16().float()
        case 3:
            logits[:] = -0.0 if row >= NUM_WAYS else 1.5
        case 4:
            logits[:] = (logits / 4).round()  # a handful of values, 0.0 and -0.0 among them
        case 5:
            logits[sparse] = -INF
            logits[middle] = 1.0
        case 6:
            mask[:] = 0
            mask[middle // 32] = 1 << middle % 32 if middle % 32 < 31 else 1  # one token is allowed
        case 7:
            logits *= 1e30
        case 8:
            logits[middle] = (NAN, -NAN, INF)[row // NUM_WAYS % 3]
        case 9:  # no number is left, by itself or by the mask
            (logits if row % 2 else mask)[:] = -INF if row % 2 else 0
        case 10:
            logits[:] = logits.sort(descending=row % 2 == 0).values


def launched(it: Rows, monkeypatch: pytest.MonkeyPatch, *, masked: bool, seated: bool) -> tuple[torch.Tensor, Seated]:
    """What the kernel draws, and the seats after it. All that it writes to is full of the highest key before."""
    empty = torch.empty

    def poisoned(*shape: int, **how: Any) -> torch.Tensor:
        made = empty(*shape, **how)
        return made.fill_(torch.iinfo(made.dtype).max)

    seats = Seated(it.homes, it.seen.clone(), it.last.clone())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", poisoned)
        drawn = sample_kernel.draw(it.logits, it.parameters, it.masks if masked else None, seats if seated else None)
    return drawn, seats


def check(it: Rows, monkeypatch: pytest.MonkeyPatch, *, masked: bool, seated: bool) -> int:
    """Asserts that the kernel draws and notes what sampler and seats do; gives the number of rows at a border."""
    drawn, seats = launched(it, monkeypatch, masked=masked, seated=seated)
    allowed = sampler.mask(it.logits, it.masks) if masked else it.logits
    how = sampler.Rows(it.parameters, any_few=True, many=None, seen=it.seen[it.homes] if seated else None)
    expected = sampler.sample(allowed, how)
    healthy = it.logits.amax(dim=-1).isfinite()
    near = at_a_border(sampler._penalise(allowed, it.parameters[3], how), it.parameters)
    wrong = healthy & ~near & (drawn != expected)
    assert not bool(wrong.any()), [(row, drawn[row].item(), expected[row].item()) for row in wrong.nonzero().flatten().tolist()]
    if not seated:
        assert bool(((drawn >= 0) & (drawn < it.logits.shape[1])).all())
        return int((near & healthy).sum())
    assert bool((drawn[~healthy] == -1).all())
    noted = seats.last[it.homes]
    assert torch.equal(noted[healthy], drawn[healthy])
    assert bool(((noted >= 0) & (noted < it.logits.shape[1])).all())  # the next step reads its row of the embedding
    penalised = it.parameters[3] != 1
    last, known = it.last.clone(), it.seen.clone()
    last[it.homes] = noted
    known[it.homes[penalised], noted[penalised]] = True
    assert torch.equal(seats.last, last)  # and no other seat's
    assert torch.equal(seats.seen, known)
    return int((near & healthy).sum())


def at_a_border(logits: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """[R] whether a row draws from few and float32's rounding may decide what."""
    temperature, top_k, top_p, _, where = parameters.double().unsqueeze(-1).unbind()
    ordered = logits.double().sort(dim=-1, descending=True).values[:, : sampler.MOST_FEW] / temperature.clamp(min=1e-5)
    ranks = torch.arange(ordered.shape[1], device=logits.device)
    shares = ordered.masked_fill(ranks >= top_k, -INF).softmax(dim=-1)
    reached = shares.cumsum(dim=-1)
    before = reached - shares
    kept = before < top_p
    last = (kept.sum(dim=-1, keepdim=True) - 1).clamp(min=0)
    target = where * reached.gather(1, last)
    cut = (((before - top_p).abs() < BORDER) & (shares > 0)).any(dim=-1)
    drawn = (((reached - target).abs() < BORDER) & (shares > 0) & (ranks < last)).any(dim=-1)
    return ((temperature > 0) & (top_k <= sampler.MOST_FEW)).squeeze(-1) & (cut | drawn)
