"""What a model takes of a device's memory, item by item. Computes only: nothing here looks at a device.

Two forms in NF4: the usual one, and the lean one for a GPU that the usual one does not fit on, which keeps the embedding in the
host's memory and takes smaller steps. Try it: `python -m runners.memory`, a table for Mixtral-8x7B.
"""

from dataclasses import dataclass
from typing import Literal

from zopilot_gpu.model.config import MixtralConfig

Absmax = Literal["double", "bfloat16", "float32"]
# Bytes of a weight in NF4: half a byte, and an absmax for each 64. A double quantised one has 8 bytes for each 256 besides, and
# these are there twice: as the file has them, and as the kernels read them.
_NF4_BYTES: dict[Absmax, float] = {
    "double": 0.5 + 1 / 64 + 2 * 8 / (64 * 256),
    "bfloat16": 0.5 + 2 / 64,
    "float32": 0.5 + 4 / 64,
}
_WORK_BYTES = 1_000_000_000  # activations, captured graphs, and one expert's matrix where a product dequantises it
LEAN_STEP_TOKENS, LEAN_ROWS, LEAN_CONTEXT = 256, 16, 8192  # at most: tokens of a step, sequences at once, tokens of one
LEAN_LIBRARIES_BYTES = 96 << 20  # cuBLAS' workspace, captured graphs, and what the allocator rounds up
_SPLITS = 32  # of a decode's context, as `kernels.attention` divides it


@dataclass(frozen=True, slots=True)
class Keeps:
    """What is kept how: absmax as the files have it, keys and values in so many bytes each; whether the files are packed."""

    absmax: Absmax = "bfloat16"
    kv_itemsize: int = 2
    is_packed: bool = False


@dataclass(frozen=True, slots=True)
class Sum:
    """The memory that a model takes, in bytes: weights in NF4, each token in the KV pool, and activations.

    `host_bytes` are pinned in the host's memory and not on the device. `items` are what the first and the last are made of.
    """

    weights_bytes: int
    kv_bytes_per_token: int
    work_bytes: int
    host_bytes: int = 0
    items: tuple[tuple[str, int], ...] = ()

    def total(self, context: int) -> int:
        """With `context` tokens of keys and values."""
        return self.weights_bytes + self.kv_bytes_per_token * context + self.work_bytes


def sum_of(config: MixtralConfig, itemsize: int, keeps: Keeps, *, lean: bool = False) -> Sum:
    """What a model takes in NF4; `itemsize` is that of activations, and of weights that are not in NF4."""
    embedding = config.vocab_size * config.hidden_size * itemsize
    host = embedding if lean else 0
    weights = [
        ("weights in NF4", int(config.num_quantised * _NF4_BYTES[keeps.absmax])),
        ("head, norms, routers" if lean else "embedding, head, norms, routers", _others(config, itemsize) - host),
        ("rotary table", config.max_position * 2 * config.head_dim * itemsize),
    ]
    work = _lean_work(config) if lean else [("activations, graphs, a matrix in full", _WORK_BYTES)]
    return Sum(
        weights_bytes=sum(size for _, size in weights),
        kv_bytes_per_token=config.kv_bytes_per_token(keeps.kv_itemsize),
        work_bytes=sum(size for _, size in work),
        host_bytes=host,
        items=(*weights, *work),
    )


def _others(config: MixtralConfig, itemsize: int) -> int:
    return (config.num_parameters - config.num_quantised) * itemsize


def _lean_work(config: MixtralConfig) -> list[tuple[str, int]]:
    """The largest of each kind that a lean step has at once, in bf16; they are not all there at once, so this is a bound."""
    width, inner, top_k = config.hidden_size, config.intermediate_size, config.num_experts_per_token
    tokens, heads = LEAN_STEP_TOKENS, config.num_heads + 2 * config.num_kv_heads
    slots = tokens * top_k + config.num_experts * 31  # blocks of 32, each expert's last one not full
    return [
        ("hidden states", 6 * tokens * width * 2),
        ("q, k, v, and their matrix in full", heads * config.head_dim * (tokens + width) * 2),
        ("experts", slots * (width + inner) * 2 + tokens * top_k * width * 4),
        ("splits of attention", _SPLITS * LEAN_ROWS * config.num_heads * (config.head_dim + 2) * 4),
        ("logits and draws", 8 * LEAN_ROWS * config.vocab_size * 4),
        ("cuBLAS, graphs, rounding", LEAN_LIBRARIES_BYTES),
    ]


def _show() -> None:
    config = MixtralConfig(32_000, 4096, 14_336, 32, 32, 8, 128, 8, 2, 1e6, 1e-5, 32_768, tie_embeddings=False)
    found = sum_of(config, 2, Keeps("double", 1), lean=True)
    for name, size in (*found.items, ("keys and values of 4,096 tokens", 4096 * found.kv_bytes_per_token)):
        print(f"{name:34} {size / 1e6:9.1f} MB")  # noqa: T201
    print(f"{'in all':34} {found.total(4096) / 1e6:9.1f} MB = {found.total(4096) / 2**30:.2f} GiB")  # noqa: T201
    print(f"{'in the memory of the host':34} {found.host_bytes / 1e6:9.1f} MB")  # noqa: T201


if __name__ == "__main__":
    _show()
