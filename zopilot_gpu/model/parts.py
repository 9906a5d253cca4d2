"""What a layer does between its products, behind one interface. Knows norms, rotary positions and the pool; no weights in NF4.

`PlainParts` is for any device, in plain torch; `kernels.parts` does the same in fewer launches on a GPU.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import embedding, linear

from zopilot_gpu.model import attention
from zopilot_gpu.model.batch import Batch


class Parts(Protocol):
    """The parts of a forward pass that have no weights of their own.

    Attributes:
        can_be_captured: whether a step of `Batch.runs` is work on the device alone, which a CUDA graph can hold.
    """

    can_be_captured: bool

    def waiting(self, device: torch.device) -> frozenset[str]:
        """The kernels that by themselves wait for the one ahead, so that a graph may have them begin before it has ended."""
        ...

    def plan(self, batch: Batch, pool: torch.Tensor, rotary: torch.Tensor, num_heads: int) -> Any:
        """What all layers of a step need to know: `rotary` is [positions, 2, h], `pool` any layer's."""
        ...

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """Rows [T, d] of `table` [V, d], which may be in the host's memory where the ids [T] are on a GPU."""
        ...

    def add_norm(
        self, x: torch.Tensor, change: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum x + change, and its RMSNorm (arXiv 1910.07467): change [T, d] or summands [T, k, d] -> [T, d] twice."""
        ...

    def add_norm_route(
        self, x: torch.Tensor, change: torch.Tensor, weight: torch.Tensor, router: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`add_norm`, and the router's logits of what it normed: router [E, d] -> [T, E] besides."""
        ...

    def rotate_and_write(self, qkv: torch.Tensor, pool: torch.Tensor, plan: Any) -> torch.Tensor:
        """Rotated queries [T, H, h] of [T, (H + 2K) * h]; keys, rotated, and values are in the pool afterwards."""
        ...

    def attend(self, q: torch.Tensor, pool: torch.Tensor, plan: Any) -> torch.Tensor:
        """Attention of the step's queries over all that their sequences have in the pool: [T, H, h] -> the same."""
        ...


@dataclass(frozen=True, slots=True)
class PlainPlan:
    """Of `PlainParts`."""

    rotary: torch.Tensor  # [T, 2, h]
    slots: torch.Tensor  # [T] int64
    groups: list[attention.Group]
    num_heads: int


class PlainParts:
    """Implements `Parts`. Norms and angles are computed in float32 and rounded where transformers' Mixtral rounds."""

    can_be_captured = False

    def waiting(self, device: torch.device) -> frozenset[str]:  # noqa: ARG002
        """See `Parts`."""
        return frozenset()

    def plan(self, batch: Batch, pool: torch.Tensor, rotary: torch.Tensor, num_heads: int) -> PlainPlan:
        """See `Parts`."""
        return PlainPlan(rotary[batch.positions], batch.slots, attention.plan(batch, pool, num_heads), num_heads)

    def embed(self, token_ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        """See `Parts`."""
        return embedding(token_ids.to(table.device), table).to(token_ids.device)

    def add_norm(
        self, x: torch.Tensor, change: torch.Tensor | None, weight: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Parts`."""
        x = x if change is None else x + change
        wide = x.float()
        return x, weight * (wide * (wide.square().mean(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)

    def add_norm_route(
        self, x: torch.Tensor, change: torch.Tensor, weight: torch.Tensor, router: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `Parts`."""
        x, y = self.add_norm(x, change, weight, eps)
        return x, y, linear(y, router)

    def rotate_and_write(self, qkv: torch.Tensor, pool: torch.Tensor, plan: PlainPlan) -> torch.Tensor:
        """See `Parts`."""
        num_kv_heads, width = pool.shape[3:]
        heads = [plan.num_heads, num_kv_heads]
        qk, v = torch.split(qkv.view(len(qkv), -1, width), [sum(heads), num_kv_heads], dim=1)
        q, k = torch.split(rotate(qk, plan.rotary), heads, dim=1)
        attention.write(pool, plan.slots, k, v)
        return q

    def attend(self, q: torch.Tensor, pool: torch.Tensor, plan: PlainPlan) -> torch.Tensor:
        """See `Parts`."""
        return attention.attend(q, pool, plan.groups)


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864), the halves of a head as pairs: x [T, heads, h], rotary [T, 2, h]."""
    cos, sin = rotary.unsqueeze(2).unbind(1)  # [T, 1, h] each
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin
