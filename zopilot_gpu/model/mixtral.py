"""Mixtral 8x7B's forward pass over a flat batch and a paged KV pool, in one sitting.

Architecture: Mixtral of Experts (arXiv 2401.04088). Grouped-query attention with rotary positions, RMSNorm before each half of
a layer, and a router that sends each token to k of E experts. Rounding follows transformers' `MixtralForCausalLM`: norms,
rotary angles and routing in float32, everything else in the weights' dtype. Shapes: `zopilot_gpu.model`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import embedding, linear, softmax

from zopilot_gpu.model import attention
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.experts import Experts
from zopilot_gpu.model.linear import Linear


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
    embedding: torch.Tensor  # [V, d]
    layers: Sequence[Layer]
    norm: torch.Tensor  # [d]
    head: torch.Tensor  # [V, d]
    rotary: torch.Tensor  # [positions, 2, h] in the dtype of the activations: cosine, sine

    @torch.inference_mode()
    def forward(self, batch: Batch, pools: Sequence[torch.Tensor]) -> torch.Tensor:
        """Logits of the asked rows; the step's keys and values are in the pools afterwards.

        Args:
            batch: T tokens of S sequences.
            pools: one KV pool a layer, [2, B, N, K, h].

        Returns:
            [R, V] in float32.
        """
        x = embedding(batch.token_ids, self.embedding)  # [T, d]
        rotary = self.rotary[batch.positions]  # [T, 2, h]
        groups = attention.plan(batch, pools[0], self.config.num_heads)
        for layer, pool in zip(self.layers, pools, strict=True):
            q, k, v = self._project(layer, self._norm(x, layer.attention_norm), rotary)
            attention.write(pool, batch.slots, k, v)
            x = x + layer.output(attention.attend(q, pool, groups).flatten(1))
            x = x + self._mix(layer, self._norm(x, layer.experts_norm))
        return linear(self._norm(x[batch.logit_rows], self.norm), self.head).float()

    def _project(self, layer: Layer, x: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Queries [T, H, h], keys and values [T, K, h]: [T, d] -> three."""
        heads = [self.config.num_heads, self.config.num_kv_heads]
        qk, v = torch.split(layer.qkv(x).view(len(x), -1, self.config.head_dim), [sum(heads), heads[1]], dim=1)
        q, k = torch.split(rotate(qk, rotary), heads, dim=1)
        return q, k, v

    def _mix(self, layer: Layer, x: torch.Tensor) -> torch.Tensor:
        shares, chosen = softmax(linear(x, layer.router), dim=-1, dtype=torch.float32).topk(self.config.num_experts_per_token)
        shares = (shares / shares.sum(dim=-1, keepdim=True)).to(x.dtype)
        return layer.experts(x, chosen, shares)

    def _norm(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """RMSNorm (arXiv 1910.07467): [..., d] -> [..., d]."""
        wide = x.float()
        return weight * (wide * (wide.square().mean(-1, keepdim=True) + self.config.norm_eps).rsqrt()).to(x.dtype)


def rotate(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    """Rotary positions (arXiv 2104.09864), the halves of a head as pairs: x [T, heads, h], rotary [T, 2, h]."""
    cos, sin = rotary.unsqueeze(2).unbind(1)  # [T, 1, h] each
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


def rotary_table(config: MixtralConfig, positions: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Cosines and sines of the first `positions`: [positions, 2, h], computed in float32."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    angles = torch.outer(torch.arange(positions, dtype=torch.float32, device=device), config.rope_theta**-exponents)
    angles = torch.cat((angles, angles), dim=-1)
    return torch.stack((angles.cos(), angles.sin()), dim=1).to(dtype)
