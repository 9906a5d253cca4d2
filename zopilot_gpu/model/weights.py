"""Builds a Mixtral from the named tensors of a checkpoint. Knows transformers' names; takes bf16 sources and NF4 ones.

Linear layers of a source in full precision go through NF4 as they come in, so that both kinds of checkpoint give the same
model; router, embeddings, norms and head stay as they are.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import linear

from zopilot_gpu.model import nf4
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.experts import DenseExperts
from zopilot_gpu.model.mixtral import Layer, Linear, Mixtral, rotary_table

Get = Callable[[str], torch.Tensor]


def build(config: MixtralConfig, get: Get, dtype: torch.dtype, device: torch.device) -> Mixtral:
    """The model that the tensors of `get` make, dequantised once and computing in `dtype`.

    Args:
        config: its sizes.
        get: a checkpoint's tensor by its name; raises KeyError for one that is not there.
        dtype: of weights and activations.
        device: where they go.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has the wrong shape or format.
    """
    source = _Source(get, dtype, device)
    width = config.hidden_size
    embedding = source.plain("model.embed_tokens.weight", (config.vocab_size, width))
    head = embedding if config.tie_embeddings else source.plain("lm_head.weight", (config.vocab_size, width))
    return Mixtral(
        config=config,
        embedding=embedding,
        layers=[_layer(config, source, f"model.layers.{index}") for index in range(config.num_layers)],
        norm=source.plain("model.norm.weight", (width,)),
        head=head,
        rotary=rotary_table(config, config.max_position, dtype, device),
    )


def _layer(config: MixtralConfig, source: "_Source", name: str) -> Layer:
    width, inner = config.hidden_size, config.intermediate_size
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    sizes = {"q": q_size, "k": kv_size, "v": kv_size}
    qkv = [source.quantised(f"{name}.self_attn.{part}_proj.weight", (size, width)) for part, size in sizes.items()]
    moe = f"{name}.block_sparse_moe"
    experts = [f"{moe}.experts.{index}" for index in range(config.num_experts)]
    w13 = [source.quantised(f"{expert}.{part}.weight", (inner, width)) for expert in experts for part in ("w1", "w3")]
    w2 = [source.quantised(f"{expert}.w2.weight", (width, inner)) for expert in experts]
    return Layer(
        attention_norm=source.plain(f"{name}.input_layernorm.weight", (width,)),
        qkv=_linear(torch.cat(qkv)),
        output=_linear(source.quantised(f"{name}.self_attn.o_proj.weight", (width, q_size))),
        experts_norm=source.plain(f"{name}.post_attention_layernorm.weight", (width,)),
        router=source.plain(f"{moe}.gate.weight", (config.num_experts, width)),
        experts=DenseExperts(torch.stack(w13).view(config.num_experts, 2 * inner, width), torch.stack(w2)),
    )


def _linear(weight: torch.Tensor) -> Linear:
    return partial(linear, weight=weight)


class _Source:
    """A checkpoint's tensors, checked and brought to one dtype and device."""

    def __init__(self, get: Get, dtype: torch.dtype, device: torch.device) -> None:
        self._get, self._dtype, self._device = get, dtype, device

    def plain(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        tensor = self._get(name)
        if tensor.shape != shape:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shape}")
        return tensor.to(self._device, self._dtype)

    def quantised(self, name: str, shape: tuple[int, int]) -> torch.Tensor:
        tensor = self._get(name)
        is_nf4 = tensor.dtype == torch.uint8
        weight = nf4.from_bitsandbytes(name, self._get) if is_nf4 else nf4.quantise(tensor)
        if weight.shape != shape:
            raise ValueError(f"{name} has the shape {weight.shape}, not {shape}")
        # NOTE: bf16 on the way, whatever the dtype: it is what bitsandbytes multiplies with.
        return weight.dequantise(torch.bfloat16).to(self._device, self._dtype)
