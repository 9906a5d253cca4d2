"""Products with a weight, dequantised once or held in NF4. Knows which kernel multiplies; nothing of layers."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch.nn.functional import linear

from zopilot_gpu.model.nf4 import BLOCK, NF4

Linear = Callable[[torch.Tensor], torch.Tensor]  # [..., columns] -> [..., rows]


def dense(weight: NF4, dtype: torch.dtype) -> Linear:
    """The product with a weight [rows, columns] that is dequantised now."""
    return partial(linear, weight=_in_full(weight, dtype))


def quantised(weight: NF4) -> Linear:
    """The product with a weight that stays in NF4: bitsandbytes' kernel on a GPU, elsewhere dequantised for each product."""
    if weight.packed.is_cuda:
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its warnings are advice for developers
        import bitsandbytes  # noqa: F401, PLC0415  (registers the kernel, and takes seconds)

        return partial(gemm_4bit, weight=weight)
    return partial(_dequantise_and_multiply, weight=weight)


def gemm_4bit(x: torch.Tensor, weight: NF4) -> torch.Tensor:
    """Multiplies by bitsandbytes' kernel: fused for few rows, for many the weight is dequantised into one temporary matrix.

    NOTE: its own form of double quantisation has one offset a weight, and ours one a group: absmax goes in dense.
    """
    absmax = weight.scales().flatten()
    out: torch.Tensor = torch.ops.bitsandbytes.gemm_4bit(x, weight.packed.view(-1, 1), weight.shape, absmax, BLOCK, "nf4")
    return out


def _dequantise_and_multiply(x: torch.Tensor, weight: NF4) -> torch.Tensor:
    return linear(x, _in_full(weight, x.dtype))


def _in_full(weight: NF4, dtype: torch.dtype) -> torch.Tensor:
    """NOTE: bf16 on the way, whatever the dtype: it is what bitsandbytes multiplies with."""
    return weight.dequantise(torch.bfloat16).to(dtype)
