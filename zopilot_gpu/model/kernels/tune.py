"""Measures shapes of programs on the card at hand, with made-up weights of a model's sizes; for a person, once.

Every candidate is compared with the shape in use before it is timed: what compiles to something else is not taken. Times are
those of CUDA graphs over several copies of the weights, so that no cache holds them.
"""

from collections.abc import Callable, Iterable, Sequence
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
_ROUNDS = 4
_WORST_DISTANCE = 1e-2
_MOST_BY_MMA = 128  # tokens, where there are warpgroups
_FEW = [(1, 2, 2), (1, 4, 1), (1, 8, 1), (1, 16, 1), (2, 2, 1), (2, 4, 1), (2, 8, 1)]  # R, WK, WR
_MANY = [(1, 4, 1), (1, 8, 1), (1, 16, 1), (2, 2, 1), (2, 4, 1), (2, 2, 2), (1, 2, 2), (2, 1, 4)]


def candidates(num_tokens: int) -> list[Shape]:
    """What is worth trying for so many tokens."""
    eighths = (1,) if num_tokens <= 8 else (1, 2) if num_tokens <= 16 else (2, 4) if num_tokens <= 64 else (4, 8)
    several = [(q, *one) for q in eighths for one in (_FEW if q == 1 else _MANY)]
    return [Shape(r, q, wk, wr, early=q > 1) for q, r, wk, wr in several if r * q <= 8]


def warpgroups(num_tokens: int) -> list[Shape]:
    """Likewise on sm_90; pieces of 64 rows are those of gate and up, two of `down`, or one."""
    several = [(r, q, wr) for r in (1, 2) for q in (4, 8) for wr in (4, 8)] if num_tokens > 16 else []
    return [Shape(r, q, 1, wr, early=True, wgmma=True) for r, q, wr in several]


def with_fewer_registers(shape: Shape) -> list[Shape]:
    """So that a multiprocessor takes a program more, or two."""
    several = (128,) if shape.wgmma else {4: (96, 128), 8: (64, 80)}.get(shape.num_warps, ())
    return [replace(shape, registers=one) for one in several]


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
    layer = _Layer(config, copies, num_tokens, usual)
    on_hopper = torch.cuda.get_device_capability(layer.x.device)[0] == 9
    several = {*usual, *(warpgroups(num_tokens) if on_hopper else [])}
    if num_tokens <= _MOST_BY_MMA or not on_hopper:
        several |= set(candidates(num_tokens))
    for shape in several:
        layer.take(shape, tell)
    for shape in layer.fastest():
        for one in with_fewer_registers(shape):
            layer.take(one, tell)
    best = min(layer.found.values(), key=lambda parts: sum(ms for ms, _ in parts.values()))
    tell(f"{num_tokens} tokens: " + ", ".join(f"{part} {shape} {ms * 1e3:.1f} us" for part, (ms, shape) in best.items()))
    return best["up"][1], best["down"][1]


class _Layer:
    """A layer of experts with so many tokens, and the fastest shapes of each kind, that is of those whose blocks are alike."""

    def __init__(
        self, config: MixtralConfig, copies: list[tuple[Tiled, Tiled]], num_tokens: int, usual: tuple[Shape, Shape]
    ) -> None:
        self._copies, self._top_k, device = copies, config.num_experts_per_token, copies[0][0].packed.device
        self.x = torch.randn(num_tokens, config.hidden_size, device=device).bfloat16()
        self._logits = torch.randn(num_tokens, config.num_experts, device=device).bfloat16()
        self.found: dict[tuple[int, bool], dict[str, tuple[float, Shape]]] = {}
        self._expected = self._run(*usual)[1]

    def take(self, shape: Shape, tell: Tell) -> None:
        """Times one, for gate and up and for down, if it gives what the usual one does."""
        up, plan = replace(shape, r=1) if shape.wgmma else shape, self._plan(shape)
        try:
            inside, out = self._run(up, shape)
            far = (out - self._expected).norm() / self._expected.norm()
            if not far < _WORST_DISTANCE:
                tell(f"{len(self.x)} tokens, {shape}: not the same ({far:.1e}), not taken")
                return
            ups = [partial(launch.gate_up, w, self.x, plan, self._top_k, up) for w, _ in self._copies]
            downs = [partial(launch.down, w, inside, plan, shape) for _, w in self._copies]
            times = {"up": (_time(ups), up), "down": (_time(downs), shape)}
        except (RuntimeError, torch.OutOfMemoryError) as error:  # it does not fit on this card
            tell(f"{len(self.x)} tokens, {shape}: {type(error).__name__}")
            return
        of_kind = self.found.setdefault((shape.q, shape.wgmma), {})
        for part, timed in times.items():
            of_kind[part] = min(of_kind.get(part, timed), timed, key=lambda one: one[0])

    def fastest(self) -> set[Shape]:
        """Of each kind and part."""
        return {shape for parts in self.found.values() for _, shape in parts.values()}

    def _run(self, up: Shape, down: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        w13, w2 = self._copies[0]
        plan = self._plan(up)
        inside = launch.gate_up(w13, self.x, plan, self._top_k, up)
        return inside, launch.down(w2, inside, plan, down)

    def _plan(self, shape: Shape) -> Routing | Picked:
        return Picked(self._logits, self._top_k) if len(self.x) == 1 else route(self._logits, self._top_k, 8 * shape.q)


def _linear(matrices: list[Tiled], num_tokens: int, usual: Shape, tell: Tell) -> Shape:
    x = torch.randn(num_tokens, matrices[0].shape[2], device=matrices[0].packed.device).bfloat16()
    expected = launch.product(matrices[0], x, usual).float()
    times: dict[Shape, float] = {}

    def take(several: Iterable[Shape]) -> Shape:
        for shape in several:
            try:
                far = (launch.product(matrices[0], x, shape).float() - expected).norm() / expected.norm()
                if far < _WORST_DISTANCE:
                    times[shape] = _time([partial(launch.product, w, x, shape) for w in matrices])
            except (RuntimeError, torch.OutOfMemoryError) as error:
                tell(f"one matrix, {num_tokens} tokens, {shape}: {type(error).__name__}")
        return min(times, key=times.__getitem__)

    best = take(with_fewer_registers(take({*candidates(num_tokens), usual})))
    tell(f"one matrix, {num_tokens} tokens: {best} {times[best] * 1e3:.1f} us")
    return best


def _weight(shape: tuple[int, int, int], device: torch.device) -> Tiled:
    count, rows, columns = shape
    packed = torch.randint(0, 256, (count, rows * columns // 2), dtype=torch.uint8, device=device)
    absmax = (torch.rand(count, rows * columns // BLOCK, device=device) * 0.02 + 0.01).bfloat16()
    return tile(NF4(packed, absmax, shape), in_place=True)


def _time(calls: Sequence[Callable[[], object]], repeat: int = 15) -> float:
    """Median milliseconds of one call, of a graph of several rounds of all of them."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in [*calls] * _ROUNDS:
            call()
    times = list[float]()
    for _ in range(repeat):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / (len(calls) * _ROUNDS))
    return float(median(times))
