"""What is measured: the model as `build_packed` makes it on this device, and the engine over it.

On a GPU these are the kernels; on a CPU the plain parts, so that a run without a card tries every line of a run on one.
Everything of ours that a run constructs is constructed here.
"""

from dataclasses import replace

import torch

from zopilot_gpu.bench.gpu import made_up
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.engine import Engine
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence
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


def draw(logits: torch.Tensor, sequences: list[Sequence]) -> torch.Tensor:
    """The next token of each sequence, from its row of `logits`: [R, V] float32 -> [R] int64; the host's work with it."""
    many = [row for row, one in enumerate(sequences) if sampler.draws_from_many(one.sampling)]
    seen = None
    if any(one.sampling.repetition_penalty != 1 for one in sequences):  # the engine keeps these on the device
        seen = torch.zeros(logits.shape, dtype=torch.bool, device=logits.device)
        seen[:, : len(sequences[0].prompt_ids)] = True
    rows = sampler.Rows(
        parameters=torch.from_numpy(sampler.parameters(sequences)).to(logits.device),
        any_few=any(sampler.draws_from_few(one.sampling) for one in sequences),
        many=torch.tensor(many, device=logits.device) if many else None,
        seen=seen,
    )
    return sampler.sample(logits, rows)
