"""The sizes of a Mixtral, read from the `config.json` of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class MixtralConfig:
    """Sizes and constants; the comments give the letter of the shape legend in `zopilot_gpu.model`."""

    vocab_size: int  # V
    hidden_size: int  # d
    intermediate_size: int  # f
    num_layers: int
    num_heads: int  # H
    num_kv_heads: int  # K
    head_dim: int  # h
    num_experts: int  # E
    num_experts_per_token: int  # k
    rope_theta: float
    norm_eps: float
    max_position: int
    tie_embeddings: bool

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> "MixtralConfig":
        """The configuration of a checkpoint.

        Raises:
            ValueError: it is not a Mixtral, or one with a part that this model does not have.
        """
        if config.get("model_type") != "mixtral":
            raise ValueError(f"model_type is {config.get('model_type')!r}, not 'mixtral'")
        if config.get("sliding_window") is not None:
            raise ValueError("sliding-window attention is not supported")
        if config.get("rope_scaling") is not None:
            raise ValueError("scaled rotary embeddings are not supported")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"the activation {config['hidden_act']!r} is not supported")
        heads = config["num_attention_heads"]
        return cls(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads", heads),
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            num_experts=config["num_local_experts"],
            num_experts_per_token=config["num_experts_per_tok"],
            rope_theta=config.get("rope_theta", 1e6),
            norm_eps=config.get("rms_norm_eps", 1e-5),
            max_position=config["max_position_embeddings"],
            tie_embeddings=config.get("tie_word_embeddings", False),
        )

    @property
    def num_quantised(self) -> int:
        """Weights that NF4 is for, those of attention and experts: 46.44e9 for Mixtral-8x7B."""
        heads = (self.num_heads + self.num_kv_heads) * self.head_dim
        return self.num_layers * self.hidden_size * (2 * heads + self.num_experts * 3 * self.intermediate_size)

    @property
    def num_parameters(self) -> int:
        """Weights in all: 46.7e9 for Mixtral-8x7B."""
        width, vocabulary = self.hidden_size, self.vocab_size * (1 if self.tie_embeddings else 2)
        return self.num_quantised + width * (self.num_layers * (self.num_experts + 2) + vocabulary + 1)

    def kv_bytes_per_token(self, bytes_per_value: int = 2) -> int:
        """Bytes that one token takes in the KV pool, over all layers: 131,072 for Mixtral-8x7B in bf16."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * bytes_per_value
