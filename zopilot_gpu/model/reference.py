"""The slow twin: Mixtral over one whole sequence, written as the papers have it. No batch, no pages, no cache, no NF4.

It is for reading in a minute and for tests to compare with; everything is in the dtype of the weights, float64 at best.
Weights have the packed names of `zopilot_gpu.model.weights` and are in full. Shapes: `zopilot_gpu.model`.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.weights import Source, is_quantised, shapes


def weights(config: MixtralConfig, source: Source) -> dict[str, Tensor]:
    """All tensors of `source` in float64, after the rounding to bf16 that weights in NF4 have."""

    def full(name: str, shape: tuple[int, ...]) -> Tensor:
        return source.quantised(name, shape).dequantise(torch.bfloat16) if is_quantised(name) else source.plain(name, shape)

    return {name: full(name, shape).double() for name, shape in shapes(config).items()}


def forward(config: MixtralConfig, weights: Mapping[str, Tensor], token_ids: Tensor) -> Tensor:
    """Logits [T, V] of the tokens [T] of a sequence."""
    x = weights["embedding"][token_ids]  # [T, d]
    for index in range(config.num_layers):
        layer = {name.rpartition(".")[2]: w for name, w in weights.items() if name.startswith(f"layers.{index}.")}
        x = x + attention(config, layer, norm(config, x, layer["attention_norm"]))
        x = x + experts(config, layer, norm(config, x, layer["experts_norm"]))
    return norm(config, x, weights["norm"]) @ weights["embedding" if config.tie_embeddings else "head"].T


def norm(config: MixtralConfig, x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm (arXiv 1910.07467): [T, d] -> [T, d]."""
    return weight * x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()


def attention(config: MixtralConfig, layer: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Each head looks at all tokens up to its own; H / K heads share keys and values: [T, d] -> [T, d]."""
    num_heads, num_kv_heads, num_tokens = config.num_heads, config.num_kv_heads, len(x)
    rows = (x @ layer["qkv"].T).view(num_tokens, -1, config.head_dim)  # [T, H + 2K, h]
    q, k, v = rows[:, :num_heads], rows[:, num_heads:-num_kv_heads], rows[:, -num_kv_heads:]
    q, k = rotate(config, q), rotate(config, k)
    future = torch.ones(num_tokens, num_tokens, dtype=torch.bool).triu(1)
    heads = []
    for head in range(num_heads):
        shared = head * num_kv_heads // num_heads
        scores = q[:, head] @ k[:, shared].T / config.head_dim**0.5  # [T, T]
        heads.append(scores.masked_fill(future, float("-inf")).softmax(-1) @ v[:, shared])
    return torch.cat(heads, dim=-1) @ layer["output"].T


def rotate(config: MixtralConfig, x: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864): value j of a head's left half and of its right half turn as one complex number."""
    half = config.head_dim // 2
    turns = config.rope_theta ** -(torch.arange(half, dtype=x.dtype) / half)  # radians a token
    angles = torch.outer(torch.arange(len(x), dtype=x.dtype), turns).unsqueeze(1)  # [T, 1, h / 2]
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(angles.cos(), angles.sin())
    return torch.cat((turned.real, turned.imag), dim=-1)


def experts(config: MixtralConfig, layer: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Each token goes to the k experts that the router likes best, weighted by how much: [T, d] -> [T, d]."""
    rows = []
    for token, likes in zip(x, (x @ layer["router"].T).softmax(-1), strict=True):
        best = likes.topk(config.num_experts_per_token)
        shares = best.values / best.values.sum()
        parts = [expert(layer["w13"][e], layer["w2"][e], token) for e in best.indices.tolist()]
        rows.append(sum((share * part for share, part in zip(shares, parts, strict=True)), torch.zeros_like(token)))
    return torch.stack(rows)


def expert(w13: Tensor, w2: Tensor, x: Tensor) -> Tensor:
    """One gated feed-forward network (arXiv 2002.05202): [d] -> [d]."""
    gate, up = (w13 @ x).chunk(2)
    return w2 @ (gate * gate.sigmoid() * up)
