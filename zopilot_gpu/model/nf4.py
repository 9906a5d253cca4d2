"""NF4: four-bit codes and a scale for each block of 64 weights. Knows the format; does it in plain torch, on any device.

Format: QLoRA (arXiv 2305.14314) appendix E, as bitsandbytes stores it. A weight [rows, columns] is taken in row order; each
block of 64 is divided by its largest magnitude (absmax) and each value replaced by the nearest of 16 codes; two codes make a
byte, the first in the high half. With double quantisation the absmax values are codes too: one byte each into a table of
256, scaled for each group of 256 of them, plus an offset. Shapes: n is rows * columns, `...` are stacked matrices.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod

import torch

BLOCK = 64
GROUP = 256
CODES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
_STATE = ".quant_state.bitsandbytes__nf4"
_BLOCKS_AT_ONCE = 2**18  # 64 MiB in float32: what conversions need beside their input and output


@dataclass(frozen=True, slots=True)
class Nested:
    """Absmax values quantised in their turn: `table[code] * scale + offset` in float32."""

    codes: torch.Tensor  # [..., n / 64] uint8
    scales: torch.Tensor  # [..., n / 64 / 256] float32
    offsets: torch.Tensor  # [..., n / 64 / 256] float32; equal within a weight of bitsandbytes, but not in a stack of several

    def dense(self) -> torch.Tensor:
        """[..., n / 64] float32."""
        values = nested_table(self.codes.device)[self.codes.int()].view(*self.scales.shape, GROUP)
        return (values * self.scales.unsqueeze(-1) + self.offsets.unsqueeze(-1)).flatten(-2)

    def __getitem__(self, index: int) -> "Nested":
        return Nested(self.codes[index], self.scales[index], self.offsets[index])


@dataclass(frozen=True, slots=True)
class NF4:
    """A quantised weight, or several of the same shape."""

    packed: torch.Tensor  # [..., n / 2] uint8
    absmax: torch.Tensor | Nested  # [..., n / 64] bf16 or float32
    shape: tuple[int, ...]  # (..., rows, columns)

    def unbind(self) -> "list[NF4]":
        """The weights of a stack; views."""
        return [NF4(self.packed[index], self.absmax[index], self.shape[1:]) for index in range(self.shape[0])]

    def scales(self) -> torch.Tensor:
        """The absmax of each block, [..., n / 64] float32."""
        return self.absmax.dense() if isinstance(self.absmax, Nested) else self.absmax.float()

    def dequantise(self, dtype: torch.dtype) -> torch.Tensor:
        """The weight [..., rows, columns] in `dtype`; the product of code and scale is rounded once, from float32."""
        out = torch.empty(prod(self.shape) // BLOCK, BLOCK, dtype=dtype, device=self.packed.device)
        pairs = _pairs(self.packed.device)
        tensors = (out, self.packed.view(len(out), -1), self.scales().view(-1, 1))
        for some, packed, scales in zip(*(torch.split(tensor, _BLOCKS_AT_ONCE) for tensor in tensors), strict=True):
            torch.mul(pairs.index_select(0, packed.flatten().int()).view(-1, BLOCK), scales, out=some)
        return out.view(self.shape)


def quantise(weight: torch.Tensor) -> NF4:
    """`weight` [rows, columns] in NF4, without double quantisation. The absmax of a bf16 weight is exact in bf16, so it stays.

    Raises:
        ValueError: its size is no multiple of 64.
    """
    rows, columns = weight.shape
    if weight.numel() % BLOCK:
        raise ValueError(f"{rows} x {columns} is not a whole number of blocks of {BLOCK}")
    codes = torch.tensor(CODES, device=weight.device)
    borders = (codes[1:] + codes[:-1]) / 2
    packed, absmax = [], []
    for blocks in torch.split(weight.reshape(-1, BLOCK), _BLOCKS_AT_ONCE):
        largest = blocks.abs().amax(dim=1)
        scaled = (blocks.float() * (1.0 / largest.float().clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
        nearest = torch.bucketize(scaled, borders, out_int32=True).to(torch.uint8).view(-1, 2)
        packed.append((nearest[:, 0] << 4) | nearest[:, 1])
        absmax.append(largest if weight.dtype == torch.bfloat16 else largest.float())
    return NF4(torch.cat(packed), torch.cat(absmax), (rows, columns))


def join(weights: Sequence[NF4], shape: tuple[int, ...]) -> NF4:
    """`weights` end to end, seen as `shape`. Nested where all are; else in float32, but in bf16 where all are."""
    leading = shape[:-2]

    def flat(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in tensors]).view(*leading, -1)

    nested = [weight.absmax for weight in weights if isinstance(weight.absmax, Nested)]
    absmax: torch.Tensor | Nested
    if len(nested) == len(weights):
        absmax = Nested(*(flat([getattr(one, part) for one in nested]) for part in Nested.__slots__))
    else:
        dense = [weight.scales() if isinstance(weight.absmax, Nested) else weight.absmax for weight in weights]
        absmax = flat(dense)  # cat promotes bf16 among float32, which is exact
    return NF4(flat([weight.packed for weight in weights]), absmax, shape)


def from_bitsandbytes(name: str, get: Callable[[str], torch.Tensor]) -> NF4:
    """The weight `name` of a checkpoint that bitsandbytes quantised, whose tensors `get` gives.

    Raises:
        KeyError: from `get`, where the checkpoint lacks a part of it.
        ValueError: it is quantised in another way.
    """
    state = json.loads(bytes(get(name + _STATE).tolist()))
    if state["quant_type"] != "nf4" or state["blocksize"] != BLOCK:
        raise ValueError(f"{name} is {state['quant_type']} in blocks of {state['blocksize']}, not nf4 in blocks of {BLOCK}")
    rows, columns = state["shape"]
    codes = get(name + ".absmax")
    if "nested_offset" not in state:
        return NF4(get(name).flatten(), codes.float(), (rows, columns))
    scales, table = get(name + ".nested_absmax"), get(name + ".nested_quant_map")
    if state["nested_blocksize"] != GROUP or not torch.equal(table, nested_table(table.device)):
        raise ValueError(f"{name} has its absmax quantised in another way than bitsandbytes' own")
    missing = -len(codes) % GROUP
    padded = torch.nn.functional.pad(codes, (0, missing))
    absmax = Nested(padded, scales, torch.full_like(scales, state["nested_offset"]))
    return NF4(get(name).flatten(), absmax.dense()[: len(codes)] if missing else absmax, (rows, columns))


@cache
def nested_table(device: torch.device) -> torch.Tensor:
    """[256] float32: the values of an absmax code, bitsandbytes' `create_dynamic_map()`.

    Of each decade from 1e-6 to 1, twice as many values as of the one below, both signs; 0 and 1.
    """
    values = [torch.tensor([0.0, 1.0])]
    for exponent in range(7):
        edges = torch.linspace(0.1, 1, 2**exponent + 1)
        means = 10 ** (exponent - 6) * ((edges[:-1] + edges[1:]) / 2)
        values += [means, -means]
    return torch.cat(values).sort().values.to(device)


@cache
def _pairs(device: torch.device) -> torch.Tensor:
    """[256, 2] float32: the two values of a byte."""
    codes = torch.tensor(CODES, device=device)
    return torch.cartesian_prod(codes, codes)
