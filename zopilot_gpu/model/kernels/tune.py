"""Measures shapes of programs on the card at hand, with made-up weights of a model's sizes. Takes minutes: for a person, once.

Every candidate is compared with the shape in use before it is timed: what compiles to something else is not taken. Times are
those of CUDA graphs over several copies of the weights, so that no cache holds them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median

import torch

from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.kernels import launch, shapes
from zopilot_gpu.model.kernels.routing import Picked, Routing, route
from zopilot_gpu.model.kernels.shapes import Shape, Table
from zopilot_gpu.model.kernels.tiles import Tiled, tile
from zopilot_gpu.model.nf4 import BLOCK, NF4

Tell = Callable[[str], None]
_COPIES = 3
_WORST_DISTANCE = 1e-2
_MOST_BY_MMA = 128  # tokens, where there are warpgroups
_FEW = [(1, 2, 2), (1, 4, 1), (1, 8, 1), (1, 16, 1), (2, 2, 1), (2, 4, 1), (2, 8, 1)]  # R, WK, WR
_MANY = [(1, 4, 1), (1, 8, 1), (1, 16, 1), (2, 2, 1), (2, 4, 1), (2, 2, 2), (1, 2, 2), (2, 1, 4)]
_REGISTERS = {
    2: (None,),
    4: (None, 96, 128),
    8: (None, 64, 80),
    16: (None,),
}  # by warps: as many programs more on a multiprocessor
_WARPGROUPS = [(4, 4, None), (4, 4, 128), (4, 8, None), (8, 4, None), (8, 4, 128), (8, 8, None)]  # Q, WR, registers


def candidates(num_tokens: int) -> list[Shape]:
    """What is worth trying for so many tokens."""
    eighths = (1,) if num_tokens <= 8 else (1, 2) if num_tokens <= 16 else (2, 4) if num_tokens <= 64 else (4, 8)
    return [
        Shape(r, q, wk, wr, early=q > 1, registers=registers)
        for q in eighths
        for r, wk, wr in (_FEW if q == 1 else _MANY)
        if r * q <= 16
        for registers in _REGISTERS[wk * wr]
    ]


def warpgroups(num_tokens: int) -> list[Shape]:
    """Likewise on sm_90; pieces of 64 rows are those of gate and up, two of `down`, or one."""
    if num_tokens <= 16:
        return []
    return [Shape(r, q, 1, wr, early=True, registers=registers, wgmma=True) for r in (1, 2) for q, wr, registers in _WARPGROUPS]


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
    w13, w2 = copies[0]

    def plan_of(shape: Shape) -> Routing | Picked:
        return Picked(logits, top_k) if num_tokens == 1 else route(logits, top_k, 8 * shape.q)

    plan = plan_of(usual[0])
    expected = launch.down(w2, launch.gate_up(w13, x, plan, top_k, usual[0]), plan, usual[1])
    by_warpgroups = warpgroups(num_tokens) if torch.cuda.get_device_capability(device)[0] == 9 else []
    shapes_of = {*usual, *by_warpgroups}
    if num_tokens <= _MOST_BY_MMA or not by_warpgroups:
        shapes_of |= set(candidates(num_tokens))
    found: dict[tuple[int, bool], dict[str, tuple[float, Shape]]] = {}
    for shape in shapes_of:
        plan = plan_of(shape)
        up_shape = replace(shape, r=1) if shape.wgmma else shape
        try:
            inside = launch.gate_up(w13, x, plan, top_k, up_shape)
            far = (launch.down(w2, inside, plan, shape) - expected).norm() / expected.norm()
            if not far < _WORST_DISTANCE:
                tell(f"{num_tokens} tokens, {shape}: not the same ({far:.1e}), not taken")
                continue
            times = {
                "up": (_time([partial(launch.gate_up, w, x, plan, top_k, up_shape) for w, _ in copies]), up_shape),
                "down": (_time([partial(launch.down, w, inside, plan, shape) for _, w in copies]), shape),
            }
        except (RuntimeError, torch.OutOfMemoryError) as error:  # it does not fit on this card
            tell(f"{num_tokens} tokens, {shape}: {type(error).__name__}")
            continue
        for part, (ms, one) in times.items():
            of_kind = found.setdefault((shape.q, shape.wgmma), {})
            if part not in of_kind or ms < of_kind[part][0]:
                of_kind[part] = (ms, one)
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
