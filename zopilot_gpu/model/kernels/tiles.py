"""NF4 weights in the order in which the kernels read them. Knows that order; plain torch, and its own way back.

A tile is 16 rows by 128 columns, 1 KiB in one piece. Lane 4g + t of a warp reads 16 bytes of row g, then 16 of row g + 8; of
each block of 64 columns they hold columns 8t .. 8t + 7 and 32 + 8t .. 32 + 8t + 7. So a warp's loads are contiguous, a lane's
are 16 bytes, and what `mma` sums in one go belongs to one block, so that absmax is applied to sums and not to weights.

    packed  [rows / 16, columns / 128, half, g, t, block, part, 4 bytes]      row = 16 i + 8 half + g
    absmax  [rows / 16, columns / 128, g, half, block]                        column = 128 j + 64 block + 32 part + 8t + ...
"""

from dataclasses import dataclass

import torch

from zopilot_gpu.model.nf4 import BLOCK, GROUP, NF4, Nested

ROWS, COLUMNS = 16, 128


@dataclass(frozen=True, slots=True)
class Tiled:
    """NF4 matrices [E, rows, columns] in tiles."""

    packed: torch.Tensor  # int32, one dimension
    absmax: torch.Tensor  # bf16, float32 or, where `groups` is given, uint8; one dimension, in the order of the tiles
    groups: torch.Tensor | None  # [groups, 2] float32: scale and offset of 256 absmax codes, in the order of the rows
    shape: tuple[int, int, int]


def fits(shape: tuple[int, ...]) -> bool:
    """Whether a matrix of this shape is whole tiles."""
    return shape[-2] % ROWS == 0 and shape[-1] % COLUMNS == 0


def tile(weight: NF4, *, in_place: bool = False) -> Tiled:
    """`weight` [rows, columns] or a stack of such, in tiles: the same bytes in another order.

    `in_place` uses the weight up: its own memory has the tiles afterwards, and one matrix more is needed on the way. It is for
    parts of a file's memory, which a copy would not free.
    """
    *leading, rows, columns = weight.shape
    count = leading[0] if leading else 1
    by_tile = (rows // ROWS, 2, 8, columns // COLUMNS, 2)  # i half g j block
    groups = None
    if isinstance(weight.absmax, Nested):
        groups = torch.stack((weight.absmax.scales.flatten(), weight.absmax.offsets.flatten()), dim=1).contiguous()
        values = weight.absmax.codes
    else:
        values = weight.absmax
    packed = _in_order(weight.packed.view(count, -1), (*by_tile, 2, 4, 4), (0, 3, 1, 2, 6, 4, 5, 7), in_place=in_place)
    values = _in_order(values.view(count, -1), by_tile, (0, 3, 2, 1, 4), in_place=in_place)
    return Tiled(packed.view(torch.int32), values, groups, (count, rows, columns))


def _in_order(stack: torch.Tensor, shape: tuple[int, ...], order: tuple[int, ...], *, in_place: bool) -> torch.Tensor:
    """Each of `stack` [count, n], seen as `shape`, with its axes in `order`: [count * n], in whole 16 bytes."""
    target = stack if in_place and stack.data_ptr() % 16 == 0 else torch.empty_like(stack)
    for one, to in zip(stack, target, strict=True):
        to.copy_(one.view(shape).permute(order).contiguous().view(-1))
    return target.view(-1)


def untile(weight: Tiled) -> NF4:
    """The way back: a stack in the order of its rows."""
    count, rows, columns = weight.shape
    packed = weight.packed.view(torch.uint8).view(count * rows // ROWS, columns // COLUMNS, 2, 8, 4, 2, 2, 4)
    packed = packed.permute(0, 2, 3, 1, 5, 6, 4, 7).reshape(count, -1)
    values = weight.absmax.view(count * rows // ROWS, columns // COLUMNS, 8, 2, 2).permute(0, 3, 2, 1, 4).reshape(count, -1)
    if weight.groups is None:
        return NF4(packed, values, weight.shape)
    scales, offsets = weight.groups.view(count, rows * columns // BLOCK // GROUP, 2).unbind(-1)
    return NF4(packed, Nested(values, scales, offsets), weight.shape)
