"""Weights in NF4 tiles as the model's `Linear` and `Experts`. Knows from how many tokens on a dense product is faster."""

from functools import partial

import torch
from torch.nn.functional import linear

from zopilot_gpu.model.experts import GroupedExperts, RoutedExperts
from zopilot_gpu.model.kernels import launch, shapes
from zopilot_gpu.model.kernels.routing import Picked, route
from zopilot_gpu.model.kernels.shapes import Shape
from zopilot_gpu.model.kernels.tiles import Tiled, tile
from zopilot_gpu.model.nf4 import NF4

_MOST_ROWS = 128  # above, a dense product of the dequantised matrix is faster
MOST_PICKED = 1  # tokens that are not routed in a launch of their own; 0 for measuring


class TiledLinear:
    """The product with one matrix in NF4; `in_place` is of `tile`."""

    def __init__(self, weight: NF4, *, in_place: bool = False) -> None:
        self._weight = tile(weight, in_place=in_place)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """[T, columns] bf16 -> [T, rows] bf16."""
        if len(x) > _MOST_ROWS:
            return _dense(x, self._weight, 0)
        return launch.product(self._weight, x, linear_shape(len(x)))


class TiledExperts:
    """Implements `Experts`: three launches, two for a single token, a few more for many; no number that the host waits for."""

    def __init__(self, w13: NF4, w2: NF4, top_k: int, *, in_place: bool = False) -> None:
        self._w13, self._w2, self._top_k = tile(w13, in_place=in_place), tile(w2, in_place=in_place), top_k
        several = [[partial(_dense, weight=one, index=index) for index in range(one.shape[0])] for one in (self._w13, self._w2)]
        self._dense = RoutedExperts(GroupedExperts(*several), top_k)

    def __call__(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """See `Experts`."""
        if len(x) > shapes.current().most_tokens:  # dense products of dequantised weights are faster then
            return self._dense(x, logits)
        up, down = expert_shapes(len(x))
        plan = Picked(logits, self._top_k) if len(x) <= MOST_PICKED else route(logits, self._top_k, 8 * up.q)
        inner = launch.gate_up(self._w13, x, plan, self._top_k, up)
        return launch.down(self._w2, inner, plan, down).view(len(x), self._top_k, -1)


def expert_shapes(num_tokens: int) -> tuple[Shape, Shape]:
    """For gate and up, and for down; both with the same number of tokens in a block."""
    return shapes.current().of_experts(num_tokens)


def linear_shape(num_tokens: int) -> Shape:
    """For one matrix."""
    return shapes.current().of_linear(num_tokens)


def _dense(x: torch.Tensor, weight: Tiled, index: int) -> torch.Tensor:
    return linear(x, launch.dequantise(weight, index, x.dtype))
