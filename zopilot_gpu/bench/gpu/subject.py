"""What is measured: the model as `build_packed` makes it on this device, and the engine over it.

On a GPU these are the kernels; on a CPU the plain parts, so that a run without a card tries every line of a run on one.
Everything of ours that a run constructs is constructed here.
"""

from dataclasses import replace

import torch

from zopilot_gpu.bench.gpu import made_up
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.engine import inputs
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.draws import Draws
from zopilot_gpu.engine.engine import Engine
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.seats import Seats
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.transfer import host_memory
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.nf4 import NF4
from zopilot_gpu.model.weights import build_packed, shapes


def make_model(sizes: Sizes, device: torch.device, *, nested: bool, num_layers: int | None = None) -> Mixtral:
    """A model of made-up weights, in full size or with fewer layers."""
    config = replace(sizes.config, num_layers=num_layers or sizes.config.num_layers)
    return build_packed(config, made_up.packed_tensors(config, device, nested=nested), torch.bfloat16, device)


def weight_of(model: Mixtral, name: str, *, nested: bool) -> NF4:
    """The weight of this packed name that `make_model` gave `model`, made once more."""
    return made_up.weight(shapes(model.config)[name], model.device, name, nested=nested)


def make_engine(model: Mixtral, num_tokens: int, *, max_step_tokens: int, max_running: int) -> Engine:
    """An engine with a pool of `num_tokens`; prefixes are not shared, so that every prompt is computed."""
    size = PoolSize(-(-num_tokens // BLOCK_SIZE), "as many as the benchmark needs")
    pool = BlockPool(size.num_blocks, BLOCK_SIZE, share_prefixes=False)
    scheduler = Scheduler(pool, max_step_tokens=max_step_tokens, max_running=max_running)
    like = model.embedding
    return Engine(model, make_pools(model.config, size, like.dtype, like.device), scheduler)


class Drawing:
    """The draws of an engine's step, the host's work with it, for sequences that stay in their seats.

    Args:
        sequences: they get the seats.
        vocab_size: V.
        device: where logits are.
        by_kernel: see `Draws`.
    """

    def __init__(
        self, sequences: list[Sequence], vocab_size: int, device: torch.device, *, by_kernel: bool | None = None
    ) -> None:
        for seat, one in enumerate(sequences):
            one.seat = seat
        self._sequences, self._device = sequences, device
        self._draws = Draws(Seats(len(sequences), vocab_size, device), vocab_size, device, by_kernel=by_kernel)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of each, from its row of `logits`: [R, V] float32 -> [R] int64."""
        sizes = inputs.Sizes(len(logits), len(logits), 1, len(logits))
        host = host_memory(inputs.num_bytes(sizes), self._device)
        inputs.write_drawing(inputs.on_host(host, sizes), self._sequences)
        views = inputs.on_device(host.to(self._device, non_blocking=True), sizes)
        return self._draws(self._sequences, logits, views, None)[:, 0]
