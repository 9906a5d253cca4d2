"""A checkpoint as a source of packed tensors. Knows transformers' names; takes bf16 sources and NF4 ones of bitsandbytes.

Linear layers of a source in full precision go through NF4 as they come in; router, embeddings, norms and head stay as they are.
"""

from collections.abc import Callable

import torch

from zopilot_gpu.model import nf4
from zopilot_gpu.model.config import MixtralConfig

_OF_THE_MODEL = {"embedding": "model.embed_tokens.weight", "norm": "model.norm.weight", "head": "lm_head.weight"}
_OF_A_LAYER = {
    "attention_norm": "input_layernorm.weight",
    "experts_norm": "post_attention_layernorm.weight",
    "router": "block_sparse_moe.gate.weight",
}


class Checkpoint:
    """Implements `weights.Source`."""

    def __init__(self, config: MixtralConfig, get: Callable[[str], torch.Tensor], device: torch.device) -> None:
        self._config, self._get, self.device = config, get, device

    def plain(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See `weights.Source`."""
        theirs = _OF_THE_MODEL.get(name)
        if theirs is None:
            prefix, own = name.rsplit(".", 1)
            theirs = f"model.{prefix}.{_OF_A_LAYER[own]}"
        tensor = self._get(theirs)
        _check(theirs, tuple(tensor.shape), shape)
        return tensor.to(self.device)

    def quantised(self, name: str, shape: tuple[int, ...]) -> nf4.NF4:
        """See `weights.Source`."""
        pieces = [self._piece(piece, (rows, shape[-1])) for piece, rows in self._pieces(name)]
        return nf4.join(pieces, shape)

    def _pieces(self, name: str) -> list[tuple[str, int]]:
        """The weights that make one packed weight, end to end: names and rows."""
        prefix, own = name.rsplit(".", 1)
        config = self._config
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        attention = {
            "qkv": [("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size)],
            "output": [("o_proj", config.hidden_size)],
        }
        if own in attention:
            return [(f"model.{prefix}.self_attn.{part}.weight", rows) for part, rows in attention[own]]
        inner, width = config.intermediate_size, config.hidden_size
        parts = {"w13": [("w1", inner), ("w3", inner)], "w2": [("w2", width)]}[own]
        experts = [f"model.{prefix}.block_sparse_moe.experts.{index}" for index in range(config.num_experts)]
        return [(f"{expert}.{part}.weight", rows) for expert in experts for part, rows in parts]

    def _piece(self, name: str, shape: tuple[int, int]) -> nf4.NF4:
        def get(part: str) -> torch.Tensor:
            return self._get(part).to(self.device)

        tensor = self._get(name)
        weight = nf4.from_bitsandbytes(name, get) if tensor.dtype == torch.uint8 else nf4.quantise(tensor.to(self.device))
        _check(name, weight.shape, shape)
        return weight


def _check(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    if shape != wanted:
        raise ValueError(f"{name} has the shape {shape}, not {wanted}")
