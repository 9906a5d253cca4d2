"""One step's numbers: written on the host into one piece of memory, sent to the device in one copy, viewed there as tensors.

Knows sequences, their blocks and where padding goes; no model. Sizes of a step:

    T  tokens          S  sequences          W  blocks of a row of block tables          R  rows that draw

A token whose value the host has not read yet has the id -1, and `feeds` says whose seat has it on the device.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.engine.sampler import NUM_PARAMETERS, draws_from_many, parameters
from zopilot_gpu.engine.scheduler import Scheduled
from zopilot_gpu.engine.sequence import Sequence

# NOTE: Triton compiles a kernel anew for a pointer that is not a multiple of 16, which no warm-up would have met.
_ALIGNED = 64
Row = NDArray[np.int32]  # of block tables
_TORCH = {"int64": torch.int64, "int32": torch.int32, "float32": torch.float32}


class Sizes(NamedTuple):
    """Of one step."""

    num_tokens: int
    num_sequences: int
    num_blocks: int
    num_rows: int


@dataclass(frozen=True, slots=True)
class Views:
    """The parts of a step's numbers: arrays on the host, tensors on the device."""

    token_ids: Any  # [T] int64, -1 where it is the last of the seat `feeds`
    feeds: Any  # [T] int64
    positions: Any  # [T] int64
    slots: Any  # [T] int64
    logit_rows: Any  # [R] int64
    homes: Any  # [R] int64, the seats of the rows
    many: Any  # [R] int64, as many as draw from many
    tables: Any  # [S, W] int32
    runs: Any  # [S, 4] int32, see `zopilot_gpu.model.batch`; filled where every sequence has one token
    parameters: Any  # [NUM_PARAMETERS, R] float32


@lru_cache(maxsize=256)
def _layout(sizes: Sizes) -> tuple[list[tuple[str, tuple[int, ...], int]], int]:
    """Type, shape and first byte of each part, and the bytes of all."""
    tokens, sequences, blocks, rows = sizes
    parts: list[tuple[str, tuple[int, ...]]] = [
        *[("int64", (tokens,))] * 4,
        *[("int64", (rows,))] * 3,
        ("int32", (sequences, blocks)),
        ("int32", (sequences, 4)),
        ("float32", (NUM_PARAMETERS, rows)),
    ]
    laid, end = [], 0
    for kind, shape in parts:
        laid.append((kind, shape, end))
        end += -(-prod(shape) * np.dtype(kind).itemsize // _ALIGNED) * _ALIGNED
    return laid, end


def num_bytes(sizes: Sizes) -> int:
    """Of all the numbers of a step."""
    return _layout(sizes)[1]


def on_host(memory: torch.Tensor, sizes: Sizes) -> Views:
    """`memory` [bytes] uint8 on the host as arrays."""
    flat = memory.numpy()
    laid = _layout(sizes)[0]
    return Views(*(np.frombuffer(flat, kind, prod(shape), at).reshape(shape) for kind, shape, at in laid))


def on_device(memory: torch.Tensor, sizes: Sizes) -> Views:
    """`memory` [bytes] uint8 anywhere as tensors."""
    parts = []
    for kind, shape, at in _layout(sizes)[0]:
        dtype = _TORCH[kind]
        parts.append(memory[at : at + prod(shape) * dtype.itemsize].view(dtype).view(shape))
    return Views(*parts)


class Tables:
    """The block tables of all seats, on the host; only what changed is written.

    Args:
        num_seats: as many sequences as run at once.
        num_blocks: of a row, at least B of the pool.
    """

    def __init__(self, num_seats: int, num_blocks: int) -> None:
        self._rows = np.zeros((num_seats, num_blocks), dtype=np.int32)

    def update(self, step: list[Scheduled]) -> list[Row]:
        """The row of each sequence of the step; what is beyond its own blocks is another's."""
        found = []
        for item in step:
            sequence = item.sequence
            row, known = self._rows[sequence.seat], sequence.num_tabled
            if known < len(sequence.block_ids):
                row[known : len(sequence.block_ids)] = sequence.block_ids[known:]
                sequence.num_tabled = len(sequence.block_ids)
            found.append(row)
        return found


def write(views: Views, step: list[Scheduled], rows: list[Row]) -> tuple[list[int], list[int]]:
    """A step's tokens, their places and tables; the first token of each sequence and its context, as `Batch` has them."""
    starts, contexts, at, width = [0], list[int](), 0, views.tables.shape[1]
    drawing = 0
    for number, (item, row) in enumerate(zip(step, rows, strict=True)):
        sequence, begin, count = item.sequence, item.sequence.num_computed, item.num_tokens
        end = begin + count
        if count == 1:
            views.token_ids[at] = sequence.token_ids_between(begin, end)[0]
            views.positions[at] = begin
            views.slots[at] = row[begin // BLOCK_SIZE] * BLOCK_SIZE + begin % BLOCK_SIZE
            views.feeds[at] = sequence.seat
        else:
            places, span = np.arange(begin, end), slice(at, at + count)
            views.token_ids[span] = sequence.token_ids_between(begin, end)
            views.positions[span] = places
            views.slots[span] = row[places // BLOCK_SIZE].astype(np.int64) * BLOCK_SIZE + places % BLOCK_SIZE
            views.feeds[span] = sequence.seat
        views.tables[number] = row[:width]
        at += count
        starts.append(at)
        contexts.append(end)
        if item.completes:
            views.logit_rows[drawing] = at - 1
            drawing += 1
    return starts, contexts


def write_drawing(views: Views, drawing: list[Sequence]) -> None:
    """Who draws, and how."""
    views.homes[: len(drawing)] = [one.seat for one in drawing]
    views.parameters[:, : len(drawing)] = parameters(drawing)
    many = [row for row, one in enumerate(drawing) if draws_from_many(one.sampling)]
    views.many[: len(many)] = many


def pad_rows(views: Views, num_rows: int, padding_block: int) -> None:
    """Rows of a decode step beyond `num_rows` do again what the first does, and write to the block that is nobody's.

    So they are sent to no expert that the step does not need anyway, and read nothing that was not written.
    """
    total = len(views.token_ids)
    for part in (views.token_ids, views.feeds, views.positions, views.tables):
        part[num_rows:] = part[0]
    views.slots[num_rows:] = padding_slots(padding_block, total - num_rows)
    views.logit_rows[:] = np.arange(total)
    runs = views.runs
    runs[:, 0] = runs[:, 1] = np.arange(total)
    runs[:, 2], runs[:, 3] = 1, views.positions


def write_padding(views: Views, num_tokens: int, num_sequences: int, padding_block: int) -> None:
    """After a step's own tokens and sequences, tokens that are sequences of one: the first of a text that is nobody's."""
    views.token_ids[num_tokens:] = 0
    views.feeds[num_tokens:] = 0
    views.positions[num_tokens:] = 0
    views.slots[num_tokens:] = padding_slots(padding_block, len(views.slots) - num_tokens)
    views.tables[num_sequences:] = padding_block


def padding_slots(padding_block: int, count: int) -> NDArray[np.int64]:
    """Where `count` tokens are written that nobody reads."""
    return padding_block * BLOCK_SIZE + np.arange(count) % BLOCK_SIZE
