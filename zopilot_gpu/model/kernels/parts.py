"""`Parts` by kernels: a step's plan is a few small tensors on the device, and nothing in it waits for the device."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch.nn.functional import embedding, linear

from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.kernels import fused
from zopilot_gpu.model.kernels.attention import RUN, attend
from zopilot_gpu.model.kernels.chained import WAITING, chains

_FEW = 64  # tokens for which the router is read by each


@dataclass(frozen=True, slots=True)
class Plan:
    """Of `KernelParts`; runs are of `attention`."""

    positions: torch.Tensor  # [T] int64
    slots: torch.Tensor  # [T] int64
    rotary: torch.Tensor  # [positions, 2, h]
    tables: torch.Tensor  # [S, blocks] int64
    decodes: torch.Tensor | None  # [n, 4] int32
    chunks: torch.Tensor | None  # [n, 4] int32
    num_heads: int


class KernelParts:
    """Implements `zopilot_gpu.model.parts.Parts`."""

    can_be_captured = True

    def waiting(self, device: torch.device) -> frozenset[str]:
        """See `Parts`."""
        return WAITING if chains(device) else frozenset()

    def plan(self, batch: Batch, pool: torch.Tensor, rotary: torch.Tensor, num_heads: int) -> Plan:
        """See `Parts`."""
        if batch.runs is not None:
            return Plan(batch.positions, batch.slots, rotary, batch.block_tables, batch.runs, None, num_heads)
        decodes, chunks = list[tuple[int, int, int, int]](), list[tuple[int, int, int, int]]()
        for sequence, ((start, end), context) in enumerate(zip(pairwise(batch.query_starts), batch.context_lens, strict=True)):
            if end - start == 1:
                decodes.append((sequence, start, 1, context - 1))
            else:
                position = context - (end - start) - start
                chunks += [(sequence, row, min(RUN, end - row), position + row) for row in range(start, end, RUN)]
        device = pool.device
        return Plan(
            batch.positions, batch.slots, rotary, batch.block_tables, _put(decodes, device), _put(chunks, device), num_heads
        )

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Parts`."""
        if table.device == token_ids.device:
            return embedding(token_ids, table)
        return fused.embed(token_ids, table)

    def add_norm(
        self, x: torch.Tensor, change: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Parts`."""
        return fused.add_norm(x, change, weight, eps)[:2]

    def add_norm_route(
        self, x: torch.Tensor, change: torch.Tensor, weight: torch.Tensor, router: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `Parts`."""
        if len(x) <= _FEW:
            return fused.add_norm(x, change, weight, eps, router)
        x, y, _ = fused.add_norm(x, change, weight, eps)
        return x, y, linear(y, router)

    def rotate_and_write(self, qkv: torch.Tensor, pool: torch.Tensor, plan: Plan) -> torch.Tensor:
        """See `Parts`."""
        return fused.rotate_and_write(qkv, plan.rotary, plan.positions, plan.slots, pool, plan.num_heads)

    def attend(self, q: torch.Tensor, pool: torch.Tensor, plan: Plan) -> torch.Tensor:
        """See `Parts`."""
        out = torch.empty_like(q)
        if plan.decodes is not None:
            attend(q, pool, plan.tables, plan.decodes, out, 1)
        if plan.chunks is not None:
            attend(q, pool, plan.tables, plan.chunks, out, RUN)
        return out


def _put(runs: list[tuple[int, int, int, int]], device: torch.device) -> torch.Tensor | None:
    """From pinned memory, so that the host does not wait."""
    if not runs:
        return None
    on_gpu = device.type == "cuda"
    return torch.tensor(runs, dtype=torch.int32, pin_memory=on_gpu).to(device, non_blocking=on_gpu)
