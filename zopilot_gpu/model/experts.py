"""The experts of one layer, behind one interface. Knows how tokens reach their experts; not which they are sent to.

Every implementation computes the same function; `GroupedExperts` is the plain one, for any device and any form of weights.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch.nn.functional import silu

from zopilot_gpu.model.linear import Linear


class Experts(Protocol):
    """E gated feed-forward networks: w2(silu(w1 x) * w3 x)."""

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The weighted sum over each token's experts.

        Args:
            x: [T, d].
            chosen: [T, k] int64, the experts of each token.
            weights: [T, k] in the dtype of `x`, their shares.

        Returns:
            [T, d] in the dtype of `x`.
        """
        ...


class GroupedExperts:
    """Tokens in the order of their experts: each expert that is hit is two products over its own tokens, one after the other.

    Args:
        w13: d -> 2f of each expert: the gate w1, then the up projection w3.
        w2: f -> d of each expert.
    """

    def __init__(self, w13: Sequence[Linear], w2: Sequence[Linear]) -> None:
        self._w13, self._w2 = w13, w2

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See `Experts`."""
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
