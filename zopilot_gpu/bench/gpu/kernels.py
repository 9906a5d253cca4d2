"""Times each part of a layer, and the two ceilings of the card that bound them.

A floor is the larger of two times: the bytes that must move at the rate of a copy, and the operations at that of a large bf16
product. Bytes are the weights that are needed (of experts: of those that are hit) and what is read and written besides, once.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from zopilot_gpu.bench.gpu import made_up
from zopilot_gpu.bench.gpu.clock import Call, eager_ms, graph_ms
from zopilot_gpu.bench.gpu.peers import MARLIN_MS
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.bench.gpu.subject import Drawing
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.engine.sequence import Sequence as Asked
from zopilot_gpu.events import GREEDY, Sampling
from zopilot_gpu.model.attention import stored
from zopilot_gpu.model.kernels import shapes
from zopilot_gpu.model.mixtral import Mixtral

WEIGHT_BYTES = {False: 0.53125, True: 0.515625 + 8 / 16_384}  # a weight, by whether absmax is nested
SERVED = Sampling(temperature=0.1, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=None)  # what /prompt draws with
_SETS = 12  # of inputs and weights, in turn


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the card does at best, as measured: bytes read and written a second, bf16 operations a second."""

    bytes_per_s: float
    flops: float

    def floor_ms(self, num_bytes: float, num_flops: float) -> float:
        """The least time for so much of both."""
        return max(num_bytes / self.bytes_per_s, num_flops / self.flops) * 1000


@dataclass(frozen=True, slots=True)
class Timing:
    """One part of a layer at one size."""

    part: str
    size: str
    ms: float
    num_bytes: float
    num_flops: float
    floor_ms: float
    peer_ms: float | None = None

    @property
    def share(self) -> float:
        """Of its floor; 1 is as fast as the card allows."""
        return self.floor_ms / self.ms

    def json(self) -> dict[str, Any]:
        """Rounded."""
        fields: dict[str, Any] = asdict(self) | {"share": self.share}
        return {name: float(f"{value:.5g}") if isinstance(value, float) else value for name, value in fields.items()}


@torch.inference_mode()
def ceilings(sizes: Sizes, device: torch.device) -> Ceilings:
    """A copy of memory, and the product of two large random matrices."""
    source = torch.randint(0, 2**31 - 1, (sizes.copy_bytes // 4,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy_ms = eager_ms([partial(target.copy_, source)] * 3, device, sizes.repeats)
    del source, target
    left, right = (made_up.normal(device, sizes.matmul, sizes.matmul) for _ in range(2))
    product_ms = eager_ms([partial(torch.mm, left, right)] * 3, device, sizes.repeats)
    return Ceilings(2e3 * sizes.copy_bytes / copy_ms, 2e3 * sizes.matmul**3 / product_ms)


Timings = Callable[[Sizes, Mixtral, Ceilings], Iterator[Timing]]


def experts(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """A layer's experts at all numbers of tokens."""
    return (_experts(sizes, model, best, num_tokens, nested=False) for num_tokens in sizes.tokens)


def nested_experts(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """The same of a model with double quantisation, at some."""
    return (_experts(sizes, model, best, num_tokens, nested=True) for num_tokens in sizes.nested_tokens)


def dense(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """The products of one matrix in NF4."""
    for rows in sizes.rows:
        yield from _products(sizes, model, best, rows)


def small(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """Norms, rotary positions, the write into the pool."""
    for rows in sizes.rows:
        yield from _small(sizes, model, best, rows)


def attention(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """Decodes and chunks of prefill."""
    for count, context in sizes.contexts:
        yield _attended(sizes, model, best, [(context - 1, context)] * count, f"decode {count} x {context}")
    for tokens, context in sizes.chunks:
        yield _attended(sizes, model, best, [(context - tokens, context)], f"{tokens} tokens of {context}")


def head(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """Logits."""
    return (_head(sizes, model, best, rows) for rows in sizes.rows)


def sampling(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """Draws."""
    for rows in sizes.rows:
        yield from _sampling(sizes, model, best, rows)


def before(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """The ways that newer ones have taken the place of, timed in the same run: docs/benchmarks/log.md."""
    if model.norm.is_cuda:  # the newer ones are kernels'
        from zopilot_gpu.model.kernels import attention as kernels  # noqa: PLC0415
        from zopilot_gpu.model.kernels import weights  # noqa: PLC0415

        picked, split = weights.MOST_PICKED, kernels.MOST_SPLIT
        try:
            weights.MOST_PICKED, kernels.MOST_SPLIT = 0, kernels.SPLIT
            yield replace(_experts(sizes, model, best, 1, nested=False), part="experts, routed apart")
            for count, context in sizes.contexts:
                spans = [(context - 1, context)] * count
                yield replace(
                    _attended(sizes, model, best, spans, f"decode {count} x {context}"), part="attention, many splits"
                )
        finally:
            weights.MOST_PICKED, kernels.MOST_SPLIT = picked, split
        for rows in sizes.rows:
            for timing in _sampling(sizes, model, best, rows, by_kernel=False):
                yield replace(timing, part=f"{timing.part}, launch by launch")


def fp8(sizes: Sizes, model: Mixtral, best: Ceilings) -> Iterator[Timing]:
    """Attention over keys and values of a byte."""
    for count, context in sizes.contexts:
        spans = [(context - 1, context)] * count
        yield _attended(sizes, model, best, spans, f"decode {count} x {context}", torch.float8_e4m3fn)


PARTS: dict[str, Timings] = {  # of a model with bf16 absmax
    "experts": experts,
    "dense": dense,
    "small": small,
    "attention": attention,
    "head": head,
    "sampling": sampling,
    "before": before,
    "fp8": fp8,
}


def _cases(sizes: Sizes, model: Mixtral, call: Callable[[int], object]) -> list[Call]:
    """The call for a few layers and inputs in turn."""
    count = _SETS if model.device.type == "cuda" else 1
    return [partial(call, index) for index in range(max(count, sizes.copies))]


def _experts(sizes: Sizes, model: Mixtral, best: Ceilings, num_tokens: int, *, nested: bool) -> Timing:
    """Routing, both products and the sum over k."""
    config, device = model.config, model.device
    top_k, width, inner = config.num_experts_per_token, config.hidden_size, config.intermediate_size
    xs = [made_up.normal(device, num_tokens, width) for _ in range(4)]
    logits = [made_up.normal(device, num_tokens, config.num_experts) for _ in range(4)]

    def layer(index: int) -> object:
        found = model.layers[index % len(model.layers)].experts(xs[index % 4], logits[index % 4])
        return found if found.dim() == 2 else found.sum(1)

    graphed = num_tokens <= shapes.current().most_tokens  # above, experts wait for the host
    ms = (graph_ms if graphed else eager_ms)(_cases(sizes, model, layer), device, sizes.repeats)
    hit = sum(len(set(one.topk(top_k).indices.flatten().tolist())) for one in logits) / 4
    num_bytes = hit * 3 * width * inner * WEIGHT_BYTES[nested] + num_tokens * width * 2 * 5
    num_flops = 2.0 * num_tokens * top_k * 3 * width * inner
    name = "experts, nested" if nested else "experts"
    peer = None if nested else MARLIN_MS.get(num_tokens)
    return Timing(name, f"M={num_tokens}", ms, num_bytes, num_flops, best.floor_ms(num_bytes, num_flops), peer)


def _products(sizes: Sizes, model: Mixtral, best: Ceilings, rows: int) -> Iterator[Timing]:
    config, device = model.config, model.device
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for part, name, out, width in (
        ("QKV", "qkv", q_size + 2 * kv_size, config.hidden_size),
        ("O", "output", config.hidden_size, q_size),
    ):
        xs = [made_up.normal(device, rows, width) for _ in range(4)]

        def product(index: int, name: str = name, xs: Sequence[torch.Tensor] = xs) -> object:
            return getattr(model.layers[index % len(model.layers)], name)(xs[index % 4])

        ms = graph_ms(_cases(sizes, model, product), device, sizes.repeats)
        num_bytes = out * width * WEIGHT_BYTES[False] + rows * (out + width) * 2
        num_flops = 2.0 * rows * out * width
        yield Timing(part, f"M={rows}", ms, num_bytes, num_flops, best.floor_ms(num_bytes, num_flops))


def _small(sizes: Sizes, model: Mixtral, best: Ceilings, rows: int) -> Iterator[Timing]:
    """What launches bound rather than bytes."""
    config, device = model.config, model.device
    width, layer = config.hidden_size, model.layers[0]
    x = made_up.normal(device, rows, width)
    change = layer.experts(x, made_up.normal(device, rows, config.num_experts))
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    room = -(-rows // BLOCK_SIZE)
    step = made_up.batch([(0, rows)], config, device, room)
    pool = made_up.pools(replace(config, num_layers=1), room, x, 0.5)[0]
    qkv, plan = made_up.normal(device, rows, (heads + 2 * kv_heads) * head_dim), None
    plan = model.parts.plan(step, pool, model.rotary, heads)
    calls: dict[str, tuple[Callable[[int], object], float]] = {
        "sum, norm, router": (
            lambda _: model.parts.add_norm_route(x, change, layer.experts_norm, layer.router, config.norm_eps),
            x.nbytes * 3 + change.nbytes + layer.router.nbytes,
        ),
        "rotary, KV write": (lambda _: model.parts.rotate_and_write(qkv, pool, plan), 2.0 * qkv.nbytes),
    }
    for part, (call, num_bytes) in calls.items():
        ms = graph_ms(_cases(sizes, model, call), device, sizes.repeats)
        yield Timing(part, f"T={rows}", ms, num_bytes, 0.0, best.floor_ms(num_bytes, 0))


def _attended(
    sizes: Sizes,
    model: Mixtral,
    best: Ceilings,
    spans: list[made_up.Span],
    size: str,
    kept: torch.dtype = torch.bfloat16,
) -> Timing:
    config, device = model.config, model.device
    room = -(-spans[0][1] // BLOCK_SIZE)
    step = made_up.batch(spans, config, device, room)
    pools = made_up.pools(replace(config, num_layers=sizes.copies), room * len(spans), model.embedding, 0.5)
    pools = [stored(pool.normal_(), kept) for pool in pools]
    q = made_up.normal(device, len(step.positions), config.num_heads, config.head_dim)
    plan = model.parts.plan(step, pools[0], model.rotary, config.num_heads)
    ms = graph_ms(
        _cases(sizes, model, lambda index: model.parts.attend(q, pools[index % len(pools)], plan)), device, sizes.repeats
    )
    positions = sum(end for _, end in spans)
    pairs = sum((end - begin) * (begin + end + 1) / 2 for begin, end in spans)  # of a query and a position that it sees
    num_bytes = positions * config.kv_bytes_per_token(kept.itemsize) / config.num_layers + 2.0 * q.nbytes
    num_flops = 4.0 * pairs * config.num_heads * config.head_dim
    return Timing(
        "attention, fp8" if kept.itemsize == 1 else "attention",
        size,
        ms,
        num_bytes,
        num_flops,
        best.floor_ms(num_bytes, num_flops),
    )


def _head(sizes: Sizes, model: Mixtral, best: Ceilings, rows: int) -> Timing:
    y = made_up.normal(model.device, rows, model.config.hidden_size)
    heads = [model.head, *(model.head.clone() for _ in range(sizes.copies - 1))]
    call = _cases(sizes, model, lambda index: linear(y, heads[index % len(heads)]).float())
    ms = graph_ms(call, y.device, sizes.repeats)
    num_bytes, num_flops = model.head.nbytes + 4.0 * rows * len(model.head), 2.0 * rows * model.head.numel()
    return Timing("head", f"R={rows}", ms, num_bytes, num_flops, best.floor_ms(num_bytes, num_flops))


def _sampling(sizes: Sizes, model: Mixtral, best: Ceilings, rows: int, *, by_kernel: bool | None = None) -> Iterator[Timing]:
    """With what the host does for it, launched from Python: the floor is one read of the logits."""
    device, vocab_size = model.device, model.config.vocab_size
    logits = made_up.normal(device, rows, vocab_size, dtype=torch.float32)
    for name, sampling in (("greedy", GREEDY), ("as served", SERVED)):
        asked = [Asked(str(row), [1, 2, 3], 8, sampling, seed=row) for row in range(rows)]
        ms = eager_ms([partial(Drawing(asked, vocab_size, device, by_kernel=by_kernel), logits)], device, sizes.repeats)
        yield Timing(f"sampling, {name}", f"R={rows}", ms, logits.nbytes, 0.0, best.floor_ms(logits.nbytes, 0))
