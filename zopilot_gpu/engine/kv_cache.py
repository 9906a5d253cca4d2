"""The KV pool's tensors and its size. Knows memory; which block belongs to whom is `blocks`' business."""

from dataclasses import dataclass

import torch

from zopilot_gpu.model.config import MixtralConfig

BLOCK_SIZE = 16
MARGIN_BYTES = 512 * 1024**2  # for what no step shows: the driver's own, and pieces between tensors
_MOST_BYTES_ON_CPU = 256 * 1024**2


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How many blocks, and why that many."""

    num_blocks: int
    reason: str

    @property
    def num_tokens(self) -> int:
        """Tokens that fit."""
        return self.num_blocks * BLOCK_SIZE


def pool_size(
    config: MixtralConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    max_tokens: int,
    reserved_bytes: int = 1024**3,
    margin_bytes: int = MARGIN_BYTES,
) -> PoolSize:
    """The largest pool that the device's free memory allows, up to `max_tokens`.

    Args:
        config: the model's sizes.
        dtype: of keys and values.
        device: where the pool will be.
        max_tokens: no more are wanted.
        reserved_bytes: what steps and graphs need on a GPU beside weights and pool; best measured (`warmup.warm_up`).
        margin_bytes: what is left to a GPU besides.

    Raises:
        ValueError: not even one sequence of the model's whole context would fit.
    """
    per_block = BLOCK_SIZE * config.kv_bytes_per_token(dtype.itemsize)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        room = free - reserved_bytes - margin_bytes - per_block  # the last for padding
        what = f"{_gib(free)} free, less {_gib(reserved_bytes)} for steps and {_gib(margin_bytes)} to spare"
    else:
        room, what = _MOST_BYTES_ON_CPU, f"{_MOST_BYTES_ON_CPU / 1024**2:.0f} MiB on the CPU"
    wanted = -(-max_tokens // BLOCK_SIZE)
    num_blocks = min(wanted, room // per_block)
    if num_blocks < 1:
        raise ValueError(f"a block of {BLOCK_SIZE} tokens takes {per_block} bytes; there is room for none in {what}")
    reason = f"{max_tokens} tokens asked for" if num_blocks == wanted else what
    return PoolSize(num_blocks, reason)


def make_pools(config: MixtralConfig, size: PoolSize, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """One pool a layer, [2, B + 1, N, K, h] of `dtype`, zeroed; what only fills up a step is written to the last block."""
    shape = (2, size.num_blocks + 1, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.2f} GiB"
