"""Measures shapes of programs on the card at hand, with made-up weights of a model's sizes. Takes minutes: for a person, once.

Every candidate is compared with the shape in use before it is timed: what compiles to something else is not taken. Times are
those of CUDA graphs over several copies of the weights, so that no cache holds them.
"""

from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.kernels import launch, shapes
from zopilot_gpu.model.kernels.routing import route
from zopilot_gpu.model.kernels.shapes import Shape, Table
from zopilot_gpu.model.kernels.tiles import Tiled, tile
from zopilot_gpu.model.nf4 import BLOCK, NF4

Tell = Callable[[str], None]
_COPIES = 3
_WORST_DISTANCE = 1e-2
_FEW = [(1, 2, 2), (1, 4, 1), (1, 8, 1), (1, 16, 1), (2, 2, 1), (2, 4, 1), (2, 8, 1), (1, 1, 4), (1, 1, 8), (2, 1, 4)]
_MANY = [(1, 4, 1), (1, 8, 1), (2, 2, 1), (2, 4, 1), (2, 2, 2), (1, 2, 2), (2, 1, 4)]  # R, WK, WR


def candidates(num_tokens: int) -> list[Shape]:
    """What is worth trying for so many tokens."""
    if num_tokens <= 8:
        return [Shape(r, 1, wk, wr) for r, wk, wr in _FEW]
    eighths = (1, 2) if num_tokens <= 16 else (2, 4) if num_tokens <= 64 else (4, 8)
    return [Shape(r, q, wk, wr, early=q > 1) for q in eighths for r, wk, wr in _MANY if r * q <= 16]


def measure(config: MixtralConfig, device: torch.device, tell: Tell) -> Table:
    """The fastest shapes for each rung of the table in use."""
    base = shapes.current()
    width, inner, num_experts = config.hidden_size, config.intermediate_size, config.num_experts
    copies = [
        (_weight((num_experts, 2 * inner, width), device), _weight((num_experts, width, inner), device)) for _ in range(_COPIES)
    ]
    experts = []
    for most, *usual in base.experts:
        best = _experts(config, copies, most, (usual[0], usual[1]), tell)
        experts.append((most, *best))
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    matrices = [_weight((1, heads, width), device) for _ in range(4 * _COPIES)]
    linear = [(most, _linear(matrices, most, usual, tell)) for most, usual in base.linear]
    return Table(tuple(experts), tuple(linear))


def _experts(
    config: MixtralConfig, copies: list[tuple[Tiled, Tiled]], num_tokens: int, usual: tuple[Shape, Shape], tell: Tell
) -> tuple[Shape, Shape]:
    device, top_k = copies[0][0].packed.device, config.num_experts_per_token
    x = torch.randn(num_tokens, config.hidden_size, device=device).bfloat16()
    logits = torch.randn(num_tokens, config.num_experts, device=device).bfloat16()
    plans = {q: route(logits, top_k, 8 * q) for q in (1, 2, 4, 8)}
    w13, w2 = copies[0]
    expected = launch.down(w2, launch.gate_up(w13, x, plans[usual[0].q], top_k, usual[0]), plans[usual[0].q], usual[1])
    found: dict[int, dict[str, tuple[float, Shape]]] = {}
    for shape in {*candidates(num_tokens), *usual}:
        plan = plans[shape.q]
        try:
            inside = launch.gate_up(w13, x, plan, top_k, shape)
            far = (launch.down(w2, inside, plan, shape) - expected).norm() / expected.norm()
            if not far < _WORST_DISTANCE:
                tell(f"{num_tokens} tokens, {shape}: not the same ({far:.1e}), not taken")
                continue
            times = {
                "up": _time([partial(launch.gate_up, w, x, plan, top_k, shape) for w, _ in copies]),
                "down": _time([partial(launch.down, w, inside, plan, shape) for _, w in copies]),
            }
        except (RuntimeError, torch.OutOfMemoryError) as error:  # it does not fit on this card
            tell(f"{num_tokens} tokens, {shape}: {type(error).__name__}")
            continue
        of_q = found.setdefault(shape.q, {})
        for part, ms in times.items():
            if part not in of_q or ms < of_q[part][0]:
                of_q[part] = (ms, shape)
    best = min(found.values(), key=lambda parts: sum(ms for ms, _ in parts.values()))
    tell(f"{num_tokens} tokens: " + ", ".join(f"{part} {shape} {ms * 1e3:.1f} us" for part, (ms, shape) in best.items()))
    return best["up"][1], best["down"][1]


def _linear(matrices: list[Tiled], num_tokens: int, usual: Shape, tell: Tell) -> Shape:
    x = torch.randn(num_tokens, matrices[0].shape[2], device=matrices[0].packed.device).bfloat16()
    expected = launch.product(matrices[0], x, usual).float()
    times: dict[Shape, float] = {}
    for shape in {*candidates(num_tokens), usual}:
        try:
            far = (launch.product(matrices[0], x, shape).float() - expected).norm() / expected.norm()
            if far < _WORST_DISTANCE:
                times[shape] = _time([partial(launch.product, w, x, shape) for w in matrices])
        except (RuntimeError, torch.OutOfMemoryError) as error:
            tell(f"one matrix, {num_tokens} tokens, {shape}: {type(error).__name__}")
    best = min(times, key=times.__getitem__)
    tell(f"one matrix, {num_tokens} tokens: {best} {times[best] * 1e3:.1f} us")
    return best


def _weight(shape: tuple[int, int, int], device: torch.device) -> Tiled:
    count, rows, columns = shape
    packed = torch.randint(0, 256, (count, rows * columns // 2), dtype=torch.uint8, device=device)
    absmax = (torch.rand(count, rows * columns // BLOCK, device=device) * 0.02 + 0.01).bfloat16()
    return tile(NF4(packed, absmax, shape), in_place=True)


def _time(calls: list[Callable[[], object]], repeat: int = 15) -> float:
    """Median milliseconds of one call, of a graph of several rounds of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls * 4:
            call()
    times = list[float]()
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / len(calls * 4))
    return float(median(times))
