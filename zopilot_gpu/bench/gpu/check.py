"""Is what the kernels compute right? Each against its twin in float64, on fresh random inputs, with poisoned outputs.

Sizes and numbers of tokens are those that are timed afterwards. A distance is the norm of the difference by the norm of the
twin's result; bf16 operands leave 1e-3 to 1e-2. NaN never passes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any

import torch

from zopilot_gpu.bench.gpu import exact, made_up
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.bench.gpu.subject import Drawing, weight_of
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import Sampling
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import build_packed

BF16 = 1e-2  # what bf16 operands may leave
_EQUAL = 0.0
_WORSE = 1.5  # times the plain model's own distance, that the kernels' model may have


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. `bound` is the largest distance that is right."""

    name: str
    distance: float
    bound: float

    @property
    def is_right(self) -> bool:
        """NaN is not."""
        return self.distance <= self.bound

    def json(self) -> dict[str, Any]:
        """As JSON can have it: a distance that is no number is None."""
        return asdict(self) | {"distance": self.distance if isfinite(self.distance) else None, "right": self.is_right}


@contextmanager
def poisoned() -> Iterator[None]:
    """Lets every `torch.empty` and `torch.empty_like` give NaN, so that what is left unwritten is seen."""
    kept: dict[str, Callable[..., torch.Tensor]] = {"empty": torch.empty, "empty_like": torch.empty_like}

    def poisoned_by(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, **keywords: Any) -> torch.Tensor:
            tensor = make(*args, **keywords)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return made

    try:
        for name, make in kept.items():
            setattr(torch, name, poisoned_by(make))
        yield
    finally:
        for name, make in kept.items():
            setattr(torch, name, make)


Checks = Callable[[Sizes, Mixtral], Iterator[Check]]


def experts(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """Of a layer."""
    return _experts(sizes, model, nested=False)


def dense(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """Products with one matrix."""
    return _products(sizes, model, nested=False)


def nested(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """The same of a model with double quantisation."""
    yield from _experts(sizes, model, nested=True)
    yield from _products(sizes, model, nested=True)


def _experts(sizes: Sizes, model: Mixtral, *, nested: bool) -> Iterator[Check]:
    config, device, layer = model.config, model.device, model.layers[0].experts
    w13, w2 = (weight_of(model, f"layers.0.{name}", nested=nested) for name in ("w13", "w2"))
    for num_tokens in sizes.nested_tokens if nested else sizes.tokens:
        for skewed in (False, True):
            x = made_up.normal(device, num_tokens, config.hidden_size)
            logits = made_up.normal(device, num_tokens, config.num_experts)
            if skewed:  # all experts but two are empty
                logits[:, 1:3] += 20
            with poisoned():
                found = layer(x, logits)
            far = exact.distance(_summed(found), exact.experts(w13, w2, x, logits, config.num_experts_per_token))
            name = f"experts{', nested' if nested else ''}, M={num_tokens}{', all to two' if skewed else ''}"
            yield Check(name, far, BF16)


def _summed(found: torch.Tensor) -> torch.Tensor:
    """NOTE: what `Experts` gives may be summands."""
    return found.double() if found.dim() == 2 else found.double().sum(1)


def _products(sizes: Sizes, model: Mixtral, *, nested: bool) -> Iterator[Check]:
    layer = model.layers[0]
    for name, product in {"qkv": layer.qkv, "output": layer.output}.items():
        weight = weight_of(model, f"layers.0.{name}", nested=nested)
        for num_tokens in sizes.rows[:2] if nested else sizes.rows:
            x = made_up.normal(model.device, num_tokens, weight.shape[-1])
            with poisoned():
                found = product(x)
            kind = ", nested" if nested else ""
            yield Check(f"{name}{kind}, M={num_tokens}", exact.distance(found, exact.product(weight, x)), BF16)


def small(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """What lies between the products."""
    config, device = model.config, model.device
    width, count = config.hidden_size, config.num_experts
    weight, router = made_up.normal(device, width), made_up.normal(device, count, width) * width**-0.5
    for num_tokens in sizes.rows:
        x = made_up.normal(device, num_tokens, width)
        change = model.layers[0].experts(x, made_up.normal(device, num_tokens, count))
        total = x.double() + _summed(change)
        with poisoned():
            found, normed, logits = model.parts.add_norm_route(x, change, weight, router, config.norm_eps)
        far = max(
            exact.distance(found, total),
            exact.distance(normed, exact.norm(total, weight, config.norm_eps)),
            exact.distance(logits, normed.double() @ router.double().T),
        )
        yield Check(f"sum, norm and router, T={num_tokens}", far, BF16)
        yield Check(f"rotary and KV write, T={num_tokens}", _rotation(model, num_tokens), BF16)


def _rotation(model: Mixtral, num_tokens: int) -> float:
    """The worst of queries, keys and values, or infinity where something else of the pool was written."""
    config, device = model.config, model.device
    heads, kv_heads = config.num_heads, config.num_kv_heads
    room = -(-(num_tokens + 8) // BLOCK_SIZE)
    step = made_up.batch([(8, num_tokens + 8)], config, device, room)
    pool = made_up.pools(replace(config, num_layers=1), room + 1, model.embedding, float("nan"))[0]
    qkv = made_up.normal(device, num_tokens, (heads + 2 * kv_heads) * config.head_dim)
    plan = model.parts.plan(step, pool, model.rotary, heads)
    with poisoned():
        q = model.parts.rotate_and_write(qkv, pool, plan)
    rows = qkv.view(num_tokens, -1, config.head_dim)
    turned = exact.rotate(rows[:, :-kv_heads], model.rotary[step.positions])
    keys, values = (part.flatten(0, 1)[step.slots] for part in pool)
    if int(pool.isnan().logical_not().sum()) != keys.numel() + values.numel():
        return float("inf")
    return max(
        exact.distance(q, turned[:, :heads]),
        exact.distance(keys, turned[:, heads:]),
        exact.distance(values, rows[:, -kv_heads:]),
    )


def attention(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """Decodes and chunks of prefill."""
    for count, context in sizes.contexts:
        spans = [(context - 1 - index % 7, context - index % 7) for index in range(count)]
        yield Check(f"attention, decode, {count} x {context}", _attended(model, spans, context), BF16)
    for tokens, context in sizes.chunks:
        yield Check(f"attention, {tokens} tokens of {context}", _attended(model, [(context - tokens, context)], context), BF16)


def _attended(model: Mixtral, spans: list[made_up.Span], context: int) -> float:
    """The distance over the first sequences, the last tokens of a long chunk; float64 of all would take longest of the run."""
    config, device = model.config, model.device
    room = -(-context // BLOCK_SIZE)
    step = made_up.batch(spans, config, device, room)
    pool = made_up.pools(replace(config, num_layers=1), room * len(spans), model.embedding, float("nan"))[0]
    for index, (_, end) in enumerate(spans):  # what is beyond a sequence's own end stays poisoned
        places = slice(index * room * BLOCK_SIZE, index * room * BLOCK_SIZE + end)
        for part in pool:
            part.flatten(0, 1)[places] = made_up.normal(device, end, config.num_kv_heads, config.head_dim)
    q = made_up.normal(device, len(step.positions), config.num_heads, config.head_dim)
    plan = model.parts.plan(step, pool, model.rotary, config.num_heads)
    with poisoned():
        found = model.parts.attend(q, pool, plan)
    if not bool(found.isfinite().all()):
        return float("inf")
    begin, end = spans[0]
    if end - begin > 256:
        last = made_up.batch([(end - 256, end)], config, device, room)
        return exact.distance(found[-256:], exact.attention(q[-256:], pool, last))
    some = made_up.batch(spans[:8], config, device, room)
    rows = len(some.positions)
    return exact.distance(found[:rows], exact.attention(q[:rows], pool, some))


def sampling(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """Greedy is the largest; what is drawn is among the allowed, in float64; both as a count of rows that are wrong."""
    device = model.device
    warm = Sampling(temperature=0.8, top_p=0.9, top_k=20, repetition_penalty=1, seed=None)
    for num_rows in sizes.rows[:3]:
        logits = made_up.normal(device, num_rows, sizes.config.vocab_size, dtype=torch.float32) * 3
        sequences = [Sequence(str(row), [1, 2, 3], 8, seed=row) for row in range(num_rows)]
        draw = Drawing(sequences, sizes.config.vocab_size, device)
        greedy = draw(logits)
        yield Check(f"greedy, R={num_rows}", float((greedy != logits.argmax(-1)).sum()), _EQUAL)
        for one in sequences:
            one.sampling = warm
        drawn = draw(logits)
        ordered, order = (logits.double() / warm.temperature).sort(dim=-1, descending=True)
        shares = ordered[:, : warm.top_k].softmax(-1)
        allowed = shares.cumsum(-1) - shares < warm.top_p + 1e-6
        right = ((order[:, : warm.top_k] == drawn.unsqueeze(1)) & allowed).any(-1)
        yield Check(f"drawn, R={num_rows}", float((~right).sum()), _EQUAL)


def layers(sizes: Sizes, model: Mixtral) -> Iterator[Check]:
    """Two layers by kernels, plain in bf16 and plain in float32, from the same weights: chunks, decodes, long chunks.

    By the median of rows: a router's near tie that falls the other way costs either one a row.
    """
    config, device = replace(sizes.config, num_layers=2, max_position=1024), model.device
    steps = [[(0, 32)] * 16, [(32, 33)] * 16, [(33, 97)] * 16]
    room = -(-97 // BLOCK_SIZE)
    results = []
    for dtype, dequantise in ((torch.bfloat16, False), (torch.bfloat16, True), (torch.float32, True)):
        get = made_up.packed_tensors(config, device, nested=False)
        two = build_packed(config, get, dtype, device, dequantise=dequantise)
        caches = made_up.pools(config, len(steps[0]) * room, two.embedding, float("nan"))
        results.append(torch.cat([two.forward(made_up.batch(spans, config, device, room), caches) for spans in steps]))
        del two, caches
    kernels, plain, full = results
    mine, theirs = (float(((one - full).norm(dim=1) / full.norm(dim=1)).median()) for one in (kernels, plain))
    yield Check(f"two layers and the head (plain in bf16: {theirs:.1e})", mine, theirs * _WORSE)


CHECKS: dict[str, Checks] = {  # of a model of one layer with bf16 absmax
    "experts": experts,
    "dense": dense,
    "small": small,
    "attention": attention,
    "sampling": sampling,
    "layers": layers,
}
