"""Calls the kernels over NF4 tiles, in a shape of program that it is told. Knows nothing of layers."""

from functools import cache

import torch

from zopilot_gpu.model.kernels.dequantise import code_table, dequantise_kernel
from zopilot_gpu.model.kernels.experts import dense_kernel, down_kernel, gate_up_kernel, gather_kernel, sum_kernel
from zopilot_gpu.model.kernels.fragments import pair_table
from zopilot_gpu.model.kernels.routing import Routing
from zopilot_gpu.model.kernels.shapes import Shape
from zopilot_gpu.model.kernels.tiles import COLUMNS, ROWS, Tiled
from zopilot_gpu.model.nf4 import nested_table

_GATHERED_ABOVE = 32


def gate_up(weight: Tiled, x: torch.Tensor, routing: Routing, top_k: int, shape: Shape) -> torch.Tensor:
    """silu(gate x) * up x of every slot: x [T, d] bf16 -> [blocks, Q, f / 32, 32, 8] bf16, see `experts`."""
    _, rows, columns = weight.shape
    inner, num_blocks = rows // 2, len(routing.blocks)
    pairs = x.view(torch.int32)
    gathered = len(routing.order) > _GATHERED_ABOVE
    if gathered:
        pairs = torch.empty(num_blocks * shape.q, columns * 4, dtype=torch.int32, device=x.device)
        grid = (num_blocks * shape.q, -(-columns * 4 // 1024))
        gather_kernel[grid](
            x.view(torch.int32), routing.order, routing.blocks, pairs, top_k, columns, shape.q, 1024, num_warps=4
        )
    out = torch.empty(num_blocks * 8 * shape.q, inner, dtype=x.dtype, device=x.device)
    gate_up_kernel[(num_blocks * shape.programs(inner),)](
        *_pointers(weight), pairs, routing.order, routing.blocks, out,
        top_k, columns, inner, _kind(weight), num_blocks, gathered, *shape.constants,
        num_warps=shape.num_warps, maxnreg=shape.registers,
    )  # fmt: skip
    return out


def down(weight: Tiled, x: torch.Tensor, routing: Routing, shape: Shape) -> torch.Tensor:
    """Share * (down x) of every assignment: x of `gate_up` -> [T * k, d] float32."""
    _, rows, columns = weight.shape
    num_blocks = len(routing.blocks)
    out = torch.empty(len(routing.order), rows, dtype=torch.float32, device=x.device)
    down_kernel[(num_blocks * shape.programs(rows),)](
        *_pointers(weight), x.view(torch.int32), routing.order, routing.blocks, routing.shares, out,
        columns, rows, _kind(weight), num_blocks, *shape.constants,
        num_warps=shape.num_warps, maxnreg=shape.registers,
    )  # fmt: skip
    return out


def add_up(parts: torch.Tensor, top_k: int, dtype: torch.dtype) -> torch.Tensor:
    """The sum of each token's k rows: [T * k, d] -> [T, d]."""
    count, width = parts.shape
    out = torch.empty(count // top_k, width, dtype=dtype, device=parts.device)
    sum_kernel[(count // top_k, -(-width // 1024))](parts, out, width, top_k, 1024, num_warps=4)
    return out


def product(weight: Tiled, x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Weight x: [T, columns] bf16 -> [T, rows] bf16, with the one matrix of `weight`."""
    _, rows, columns = weight.shape
    num_blocks = -(-len(x) // (8 * shape.q))
    out = torch.empty(len(x), rows, dtype=x.dtype, device=x.device)
    dense_kernel[(num_blocks * shape.programs(rows),)](
        *_pointers(weight), x.view(torch.int32), out, len(x), columns, rows, _kind(weight), num_blocks,
        *shape.constants, num_warps=shape.num_warps, maxnreg=shape.registers,
    )  # fmt: skip
    return out


def dequantise(weight: Tiled, index: int, dtype: torch.dtype) -> torch.Tensor:
    """The matrix `index` of a stack, [rows, columns]."""
    _, rows, columns = weight.shape
    device = weight.packed.device
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    groups = weight.packed if weight.groups is None else weight.groups
    dequantise_kernel[(rows // ROWS, columns // COLUMNS)](
        weight.packed.view(torch.uint8), weight.absmax, groups, nested_table(device), code_table(device), out,
        index * rows // ROWS, columns, _kind(weight), num_warps=4,
    )  # fmt: skip
    return out


def _pointers(weight: Tiled) -> tuple[torch.Tensor, ...]:
    device = weight.packed.device
    groups = weight.packed if weight.groups is None else weight.groups.view(torch.int32)
    return weight.packed, weight.absmax.view(torch.int32), groups, *_tables(device)


@cache
def _tables(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return nested_table(device).view(torch.int32), pair_table(device)


def _kind(weight: Tiled) -> str:
    if weight.groups is not None:
        return "nested"
    return "bf16" if weight.absmax.dtype == torch.bfloat16 else "float32"
