"""What the device keeps of the sequences that run, a row of state for each seat: its last token, and which tokens it has.

Knows tokens that the host has not read; that is what lets a step be launched before the one before it is read. All of it is
written and read in the order in which steps are launched, so a seat may change hands while a step of its last owner still runs.
"""

from typing import NamedTuple

import numpy as np
import torch

from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.transfer import upload


class Seated(NamedTuple):
    """The seats of a step's rows and what they keep, for a launch that reads it and notes in it what it draws."""

    homes: torch.Tensor  # [R] int64
    seen: torch.Tensor  # [S, V] bool
    last: torch.Tensor  # [S] int64


class Seats:
    """State of `num_seats` sequences at most.

    Args:
        num_seats: as many sequences as run at once.
        vocab_size: V.
        device: where it lies.
    """

    def __init__(self, num_seats: int, vocab_size: int, device: torch.device) -> None:
        self._last = torch.zeros(num_seats, dtype=torch.int64, device=device)
        self._seen = torch.zeros(num_seats, vocab_size, dtype=torch.bool, device=device)
        # NOTE: a value given as a Python number is copied from the host, and the host waits for that.
        self._true = torch.ones((), dtype=torch.bool, device=device)
        self._device = device

    def feed(self, token_ids: torch.Tensor, feeds: torch.Tensor) -> torch.Tensor:
        """`token_ids` [T] with the last token of the seat `feeds` [T] where they are -1."""
        return torch.where(token_ids < 0, self._last[feeds], token_ids)

    def seen(self, drawing: list[Sequence], homes: torch.Tensor) -> torch.Tensor | None:
        """[R, V] bool: the tokens of each sequence, pending ones too, where any has a repetition penalty; `homes` are seats."""
        penalised = _penalised(drawing)
        if not penalised:
            return None
        self._catch_up(penalised)
        return self._seen[homes]

    def take_in_one(self, drawing: list[Sequence], homes: torch.Tensor) -> Seated:
        """For one launch that does for the sequences in these seats what `seen` and `take` do."""
        penalised = _penalised(drawing)
        self._catch_up(penalised)
        _count(penalised)
        return Seated(homes, self._seen, self._last)

    def take(self, drawing: list[Sequence], homes: torch.Tensor, tokens: torch.Tensor) -> None:
        """Notes the tokens drawn for the sequences in these seats, [R]."""
        self._last.index_copy_(0, homes, tokens)
        penalised = _penalised(drawing)
        if penalised:
            self._seen.index_put_((homes, tokens), self._true)
        _count(penalised)

    def _catch_up(self, penalised: list[Sequence]) -> None:
        """Notes what was not drawn here: prompts, what a preempted sequence had said, tokens that a grammar forced."""
        new = [one.seat for one in penalised if not one.num_noted]
        behind = [one for one in penalised if one.num_noted < one.num_known]
        pairs = [(one.seat, token) for one in behind for token in one.token_ids[one.num_noted :]]
        if new:
            self._seen.index_fill_(0, upload(np.array(new), self._device), 0)
        if pairs:
            seats, tokens = upload(np.array(pairs).T.copy(), self._device)
            self._seen.index_put_((seats, tokens), self._true)


def _penalised(drawing: list[Sequence]) -> list[Sequence]:
    return [one for one in drawing if one.sampling.repetition_penalty != 1]


def _count(penalised: list[Sequence]) -> None:
    """The token that is being drawn is noted too."""
    for one in penalised:
        one.num_noted = one.num_tokens + 1
