"""NF4 tiles as a matrix in bf16, for products of so many rows that a dense one is faster."""

from functools import cache

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.kernels.chained import start_next, wait_for_before
from zopilot_gpu.model.nf4 import CODES


@cache
def code_table(device: torch.device) -> torch.Tensor:
    """[16] float32."""
    return torch.tensor(CODES, device=device)


@triton.jit
def dequantise_kernel(
    packed, absmax, groups, nested, codes, out, first_tile, COLUMNS: tl.constexpr, KIND: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Out [rows, COLUMNS]: one tile a program. `packed` and `absmax` are bytes and values here, not words."""
    start_next(CHAINED)
    tile, chunk = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, 16)[:, None], tl.arange(0, 128)[None, :]
    at = (first_tile + tile).to(tl.int64) * (COLUMNS // 128) + chunk
    block, part, lane = column // 64, column // 32 % 2, row % 8 * 4 + column // 8 % 4
    byte = tl.load(packed + at * 1024 + row // 8 * 512 + lane * 16 + block * 8 + part * 4 + column // 2 % 4).to(tl.int32)
    code = tl.load(codes + ((byte >> (4 - column % 2 * 4)) & 15))
    scale = tl.load(absmax + at * 32 + row % 8 * 4 + row // 8 * 2 + block)
    if KIND == "nested":
        group = (((first_tile + tile) * 16 + row) * (COLUMNS // 64) + chunk * 2) // 256 * 2
        scale = tl.load(nested + scale.to(tl.int32)) * tl.load(groups + group) + tl.load(groups + group + 1)
    value = code * scale.to(tl.float32)
    wait_for_before(CHAINED)
    tl.store(out + (tile * 16 + row).to(tl.int64) * COLUMNS + chunk * 128 + column, value.to(out.dtype.element_ty))
