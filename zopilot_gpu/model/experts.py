"""The experts of one layer, behind one interface. Knows how tokens reach their experts; not which they are sent to.

Every implementation computes the same function; `RoutedExperts` is the plain one, for any device and any form of weights.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import silu, softmax

from zopilot_gpu.model.linear import Linear


class Experts(Protocol):
    """A router's choice among E gated feed-forward networks, w2(silu(w1 x) * w3 x), and the sum over those chosen."""

    def __call__(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The sum over each token's experts, weighted by their shares.

        Args:
            x: [T, d].
            logits: [T, E], the router's.

        Returns:
            [T, d] in the dtype of `x`; or its summands, [T, k, d] in float32, for `Parts.add_norm` to add up.
        """
        ...


class RoutedExperts:
    """The plain one: the k likeliest experts of each token, with shares that add up to one, in `GroupedExperts`."""

    def __init__(self, experts: "GroupedExperts", top_k: int) -> None:
        self._experts, self._top_k = experts, top_k

    def __call__(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """See `Experts`."""
        shares, chosen = softmax(logits, dim=-1, dtype=torch.float32).topk(self._top_k)
        shares = (shares / shares.sum(dim=-1, keepdim=True)).to(x.dtype)
        return self._experts(x, chosen, shares)


class GroupedExperts:
    """Tokens in the order of their experts: each expert that is hit is two products over its own tokens, one after the other.

    Args:
        w13: d -> 2f of each expert: the gate w1, then the up projection w3.
        w2: f -> d of each expert.
    """

    def __init__(self, w13: Sequence[Linear], w2: Sequence[Linear]) -> None:
        self._w13, self._w2 = w13, w2

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """X [T, d], the experts of each token [T, k] int64 and their shares [T, k] in the dtype of `x` -> [T, d]."""
        order = chosen.flatten().argsort(stable=True)  # [T * k], assignments in the order of their experts
        counts = chosen.flatten().bincount(minlength=len(self._w13)).tolist()
        gate, up = _each(self._w13, x[order // chosen.shape[1]], counts).chunk(2, dim=-1)
        y = _each(self._w2, silu(gate) * up, counts)  # [T * k, d]
        y = torch.empty_like(y).index_copy_(0, order, y)
        return (y.view(*chosen.shape, -1) * weights.unsqueeze(-1)).sum(dim=1)


def _each(products: Sequence[Linear], rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """Each expert's product with its own `counts` of `rows`; experts without any are not touched."""
    parts = zip(products, torch.split(rows, counts), strict=True)
    return torch.cat([product(part) for product, part in parts if len(part)])
