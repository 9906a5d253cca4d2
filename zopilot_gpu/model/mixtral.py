"""Mixtral 8x7B's forward pass over a flat batch and a paged KV pool, in one sitting.

Architecture: Mixtral of Experts (arXiv 2401.04088). Grouped-query attention with rotary positions, RMSNorm before each half of
a layer, and a router that sends each token to k of E experts. Rounding follows transformers' `MixtralForCausalLM`: norms,
rotary angles and routing in float32, everything else in the weights' dtype. Shapes: `zopilot_gpu.model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import linear

from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.experts import Experts
from zopilot_gpu.model.linear import Linear
from zopilot_gpu.model.parts import Parts, PlainParts


@dataclass(frozen=True, slots=True)
class Layer:
    """The weights of one layer."""

    attention_norm: torch.Tensor  # [d]
    qkv: Linear  # d -> (H + 2K) * h
    output: Linear  # H * h -> d
    experts_norm: torch.Tensor  # [d]
    router: torch.Tensor  # [E, d]
    experts: Experts


@dataclass(frozen=True, slots=True)
class Mixtral:
    """The whole model. `forward` is the only thing that it does."""

    config: MixtralConfig
    embedding: torch.Tensor  # [V, d], perhaps in pinned memory of the host
    layers: Sequence[Layer]
    norm: torch.Tensor  # [d]
    head: torch.Tensor  # [V, d]
    rotary: torch.Tensor  # [positions, 2, h] in the dtype of the activations: cosine, sine
    parts: Parts = field(default_factory=PlainParts)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.norm.device

    @torch.inference_mode()
    def forward(self, batch: Batch, pools: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of the asked rows; the step's keys and values are in the pools afterwards.

        Args:
            batch: T tokens of S sequences.
            pools: one KV pool a layer, [2, B, N, K, h].

        Returns:
            [R, V] in float32.
        """
        return self.run(batch, pools, self.parts.plan(batch, pools[0], self.rotary, self.config.num_heads))

    @torch.inference_mode()
    def run(self, batch: Batch, pools: Sequence[torch.Tensor], plan: Any) -> torch.Tensor:
        """`forward` with a plan that is made: tensors on the device only, which a CUDA graph can hold."""
        parts, eps = self.parts, self.config.norm_eps
        x, change = parts.embed(batch.token_ids, self.embedding), None  # [T, d]
        for layer, pool in zip(self.layers, pools, strict=True):
            x, y = parts.add_norm(x, change, layer.attention_norm, eps)
            q = parts.rotate_and_write(layer.qkv(y), pool, plan)  # [T, H, h]
            change = layer.output(parts.attend(q, pool, plan).flatten(1))
            x, y, logits = parts.add_norm_route(x, change, layer.experts_norm, layer.router, eps)
            change = layer.experts(y, logits)
        _, y = parts.add_norm(x, change, self.norm, eps)
        return linear(y[batch.logit_rows], self.head).float()


def rotary_table(config: MixtralConfig, positions: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Cosines and sines of the first `positions`: [positions, 2, h], computed in float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()), dim=1).to(dtype)
