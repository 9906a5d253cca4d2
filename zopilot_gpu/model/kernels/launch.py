"""Calls the kernels over NF4 tiles, in a shape of program that it is told. Knows nothing of layers."""

from functools import cache

import torch
import triton

from zopilot_gpu.model.kernels import INTERPRETED
from zopilot_gpu.model.kernels.chained import chains
from zopilot_gpu.model.kernels.dequantise import code_table, dequantise_kernel
from zopilot_gpu.model.kernels.experts import dense_kernel, down_kernel, gate_up_kernel, gather_kernel, sum_kernel
from zopilot_gpu.model.kernels.fragments import pair_table
from zopilot_gpu.model.kernels.routing import Picked, Routing
from zopilot_gpu.model.kernels.shapes import Shape
from zopilot_gpu.model.kernels.tiles import COLUMNS, ROWS, Tiled
from zopilot_gpu.model.kernels.warpgroup import wgmma_down_kernel, wgmma_up_kernel
from zopilot_gpu.model.nf4 import nested_table

_GATHERED_ABOVE = 32


def gate_up(weight: Tiled, x: torch.Tensor, plan: Routing | Picked, top_k: int, shape: Shape) -> torch.Tensor:
    """silu(gate x) * up x of every slot: x [T, d] bf16 -> what `down` reads, [blocks * 8 Q, f] bf16 in its order."""
    _, rows, columns = weight.shape
    inner, (order, blocks, _, num_blocks), pairs = rows // 2, _plan(plan), x.view(torch.int32)
    gathered = shape.wgmma or (isinstance(plan, Routing) and len(order) > _GATHERED_ABOVE)
    if gathered:
        token_pairs = pairs
        pairs = torch.empty(num_blocks * shape.q, columns * 4, dtype=torch.int32, device=x.device)
        gather_kernel[(num_blocks * shape.q, -(-columns * 4 // 1024))](
            token_pairs, order, blocks, pairs, top_k, columns, shape.q, 1024, shape.wgmma, num_warps=4, CHAINED=chains(x.device)
        )
    out = torch.empty(num_blocks * 8 * shape.q, inner, dtype=x.dtype, device=x.device)
    grid = (num_blocks * shape.programs(inner),)
    if shape.wgmma:
        wgmma_up_kernel[grid](
            *_pointers(weight), pairs, blocks, out, num_blocks, columns, inner, _kind(weight),
            shape.q, shape.wr, INTERPRETED, num_warps=shape.num_warps, maxnreg=shape.registers, CHAINED=chains(x.device),
        )  # fmt: skip
    else:
        gate_up_kernel[grid](
            *_pointers(weight), pairs, order, blocks, out,
            top_k, columns, inner, _kind(weight), num_blocks, gathered, *shape.constants, *_picked(plan),
            num_warps=shape.num_warps, maxnreg=shape.registers, CHAINED=chains(x.device),
        )  # fmt: skip
    return out


def down(weight: Tiled, x: torch.Tensor, plan: Routing | Picked, shape: Shape) -> torch.Tensor:
    """Share * (down x) of every assignment: x of `gate_up` -> [T * k, d] float32."""
    _, rows, columns = weight.shape
    order, blocks, shares, num_blocks = _plan(plan)
    out = torch.empty(plan.num_assignments, rows, dtype=torch.float32, device=x.device)
    grid = (num_blocks * shape.programs(rows),)
    if shape.wgmma:
        wgmma_down_kernel[grid](
            *_pointers(weight), x.view(torch.int32), order, blocks, shares.view(torch.int32), out, num_blocks,
            columns, rows, _kind(weight), shape.r, shape.q, shape.wr, INTERPRETED,
            num_warps=shape.num_warps, maxnreg=shape.registers, CHAINED=chains(x.device),
        )  # fmt: skip
    else:
        down_kernel[grid](
            *_pointers(weight), x.view(torch.int32), order, blocks, shares, out,
            columns, rows, _kind(weight), num_blocks, *shape.constants, *_picked(plan),
            num_warps=shape.num_warps, maxnreg=shape.registers, CHAINED=chains(x.device),
        )  # fmt: skip
    return out


def _plan(plan: Routing | Picked) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Order, blocks, shares and the number of blocks, as the kernels take them; of a token that is not routed, its logits."""
    if isinstance(plan, Picked):
        return plan.logits, plan.logits, plan.logits, plan.top_k
    return plan.order, plan.blocks, plan.shares, len(plan.blocks)


def _picked(plan: Routing | Picked) -> tuple[int, int]:
    """The number of experts to pick from and the next power of two; 0 where there is a routing."""
    if isinstance(plan, Routing):
        return 0, 0
    num_experts = plan.logits.shape[1]
    return num_experts, triton.next_power_of_2(num_experts)


def add_up(parts: torch.Tensor, top_k: int, dtype: torch.dtype) -> torch.Tensor:
    """The sum of each token's k rows: [T * k, d] -> [T, d]."""
    count, width = parts.shape
    out = torch.empty(count // top_k, width, dtype=dtype, device=parts.device)
    sum_kernel[(count // top_k, -(-width // 1024))](parts, out, width, top_k, 1024, num_warps=4, CHAINED=chains(parts.device))
    return out


def product(weight: Tiled, x: torch.Tensor, shape: Shape) -> torch.Tensor:
    """Weight x: [T, columns] bf16 -> [T, rows] bf16, with the one matrix of `weight`."""
    _, rows, columns = weight.shape
    num_blocks = -(-len(x) // (8 * shape.q))
    out = torch.empty(len(x), rows, dtype=x.dtype, device=x.device)
    dense_kernel[(num_blocks * shape.programs(rows),)](
        *_pointers(weight), x.view(torch.int32), out, len(x), columns, rows, _kind(weight), num_blocks,
        *shape.constants, num_warps=shape.num_warps, maxnreg=shape.registers, CHAINED=chains(x.device),
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
        index * rows // ROWS, columns, _kind(weight), num_warps=4, CHAINED=chains(device),
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
