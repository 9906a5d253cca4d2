"""NF4: four-bit codes and a scale for each block of 64 weights. Knows the format; does it in plain torch, on any device.

Format: QLoRA (arXiv 2305.14314) appendix E, as bitsandbytes stores it. A weight [rows, columns] is taken in row order; each
block of 64 is divided by its largest magnitude (absmax) and each value replaced by the nearest of 16 codes; two codes make a
byte, the first in the high half. With double quantisation the absmax values are codes too: one byte each into a table of
256, scaled for each 256 of them, plus one offset for the whole weight.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass

import torch

BLOCK = 64
CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_STATE = ".quant_state.bitsandbytes__nf4"


@dataclass(frozen=True, slots=True)
class NF4:
    """A quantised weight of `shape`, one scale a block."""

    packed: torch.Tensor  # [rows * columns / 2] uint8
    absmax: torch.Tensor  # [rows * columns / 64] float32
    shape: tuple[int, int]

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [rows, columns] in `dtype`; the product of code and scale is rounded once, from float32."""
        codes = torch.tensor(CODES, device=self.packed.device)
        halves = torch.stack((self.packed >> 4, self.packed & 15), dim=-1)
        values = codes[halves.long()].view(-1, BLOCK) * self.absmax.view(-1, 1)
        return values.view(self.shape).to(dtype)


def quantise(weight: torch.Tensor) -> NF4:
    """`weight` [rows, columns] in NF4, without double quantisation.

    Raises:
        ValueError: its size is no multiple of 64.
    """
    rows, columns = weight.shape
    if weight.numel() % BLOCK:
        raise ValueError(f"{rows} x {columns} is not a whole number of blocks of {BLOCK}")
    blocks = weight.float().reshape(-1, BLOCK)
    absmax = blocks.abs().amax(dim=1)
    scaled = (blocks * (1.0 / absmax.clamp(min=1e-38)).unsqueeze(1)).clamp(-1, 1)
    codes = torch.tensor(CODES, device=weight.device)
    nearest = torch.bucketize(scaled, (codes[1:] + codes[:-1]) / 2).to(torch.uint8).view(-1, 2)
    return NF4((nearest[:, 0] << 4) | nearest[:, 1], absmax, (rows, columns))


def from_bitsandbytes(name: str, get: Callable[[str], torch.Tensor]) -> NF4:
    """The weight `name` of a checkpoint that bitsandbytes quantised, whose tensors `get` gives.

    Raises:
        KeyError: from `get`, where the checkpoint lacks a part of it.
        ValueError: it is quantised in another way.
    """
    state = json.loads(bytes(get(name + _STATE).tolist()))
    if state["quant_type"] != "nf4" or state["blocksize"] != BLOCK:
        raise ValueError(f"{name} is {state['quant_type']} in blocks of {state['blocksize']}, not nf4 in blocks of {BLOCK}")
    absmax = get(name + ".absmax")
    if "nested_offset" in state:
        table, scales = get(name + ".nested_quant_map"), get(name + ".nested_absmax")
        per_scale = scales.repeat_interleave(state["nested_blocksize"])[: absmax.numel()]
        absmax = table[absmax.long()] * per_scale + state["nested_offset"]
    rows, columns = state["shape"]
    return NF4(get(name).flatten(), absmax.float(), (rows, columns))
