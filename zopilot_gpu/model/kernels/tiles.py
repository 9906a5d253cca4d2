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


def tile(weight: NF4) -> Tiled:
    """`weight` [rows, columns] or a stack of such, in tiles: the same bytes in another order."""
    *leading, rows, columns = weight.shape
    count = leading[0] if leading else 1
    packed = weight.packed.view(count * rows // ROWS, 2, 8, columns // COLUMNS, 2, 2, 4, 4)  # i half g j block part t byte
    packed = packed.permute(0, 3, 1, 2, 6, 4, 5, 7).contiguous().view(-1).view(torch.int32)
    groups = None
    if isinstance(weight.absmax, Nested):
        groups = torch.stack((weight.absmax.scales.flatten(), weight.absmax.offsets.flatten()), dim=1).contiguous()
        values = weight.absmax.codes
    else:
        values = weight.absmax
    values = values.reshape(count * rows // ROWS, 2, 8, columns // COLUMNS, 2).permute(0, 3, 2, 1, 4).contiguous().view(-1)
    return Tiled(packed, values, groups, (count, rows, columns))


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
