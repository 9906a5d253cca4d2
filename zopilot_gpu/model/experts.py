"""The experts of one layer, behind one interface. Knows how tokens reach their experts; not which they are sent to.

Every implementation computes the same function; `DenseExperts` is the plain one, for any device.
"""

from typing import Protocol

import torch
from torch.nn.functional import linear, silu


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


class DenseExperts:
    """Weights in full, dequantised once; tokens are grouped by expert, so each expert is one product over its own tokens."""

    def __init__(self, w13: torch.Tensor, w2: torch.Tensor) -> None:
        self._w13 = w13  # [E, 2f, d]: the gate w1 above the up projection w3
        self._w2 = w2  # [E, d, f]

    def __call__(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See `Experts`."""
        num_experts, per_token = self._w13.shape[0], chosen.shape[1]
        order = chosen.flatten().argsort(stable=True)  # [T * k], assignments in the order of their experts
        tokens = order // per_token
        counts = chosen.flatten().bincount(minlength=num_experts).tolist()
        out = torch.zeros_like(x)
        parts = zip(torch.split(tokens, counts), torch.split(weights.flatten()[order], counts), strict=True)
        for expert, (rows, shares) in enumerate(parts):
            if rows.numel():
                gate, up = linear(x[rows], self._w13[expert]).chunk(2, dim=-1)
                y = linear(silu(gate) * up, self._w2[expert])
                out.index_add_(0, rows, y * shares.unsqueeze(1))
        return out
