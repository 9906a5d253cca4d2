"""Keys and values in a byte, e4m3fn: sign, 4 bits of exponent, 3 of mantissa; 448 is the largest, 0x7f no number.

Written by integers, because Triton's casts have this type only from sm_89 on: the same bits as torch's
`clamp(-448, 448).to(float8_e4m3fn)`, which is the twin (`model/attention.py`). Read as fp16, which holds all 256 exactly: by
the card's own instruction (`cast`, from sm_89), four bytes at once in a register (`asm`), or one by one (`plain`, for the
interpreter).
"""

from functools import cache
from typing import Literal

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.kernels import INTERPRETED

Reading = Literal["cast", "asm", "plain"]

# Bytes b0 .. b3 to four fp16: a byte to the top of a half, its size a bit lower, where fp16 has 2^-8 of it; and NaN as NaN.
_HALVES: tl.constexpr = tl.constexpr(
    """{ .reg .b32 a, b, c, d, e; mov.b32 e, 0x5F805F80;
    prmt.b32 a, $2, 0, 0x1404; prmt.b32 b, $2, 0, 0x3424;
    shr.b32 c, a, 1; shr.b32 d, b, 1; and.b32 a, a, 0x80008000; and.b32 b, b, 0x80008000;
    lop3.b32 a, c, 0x3F803F80, a, 0xEA; lop3.b32 b, d, 0x3F803F80, b, 0xEA;
    mov.b32 c, 0x5C005C00; mul.f16x2 a, a, c; mul.f16x2 b, b, c;
    abs.f16x2 c, a; abs.f16x2 d, b; set.eq.u32.f16x2 c, c, e; set.eq.u32.f16x2 d, d, e;
    or.b32 $0, a, c; or.b32 $1, b, d; }"""
)


@cache
def reading(device: torch.device) -> Reading:
    """How the kernels read this type on a device."""
    if INTERPRETED:
        return "plain"
    return "cast" if torch.cuda.get_device_capability(device) >= (8, 9) else "asm"


@triton.jit
def to_e4m3(value):
    """The byte nearest to a float32, ties to even; beyond 448 it is 448, and no number stays none."""
    bits = value.to(tl.int32, bitcast=True)
    size = bits & 0x7FFFFFFF
    near = (size + 0x7FFFF + ((size >> 20) & 1) - (120 << 23)) >> 20  # 120: what the two biases differ by
    # Below 2^-6 there is no leading one: in a number this much larger, the last bits count what is left in units of 2^-9.
    small = (size.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    byte = tl.where(size < (121 << 23), small, near)
    byte = tl.where(size > 0x43E00000, 0x7E, byte)  # 448
    byte = tl.where(size > 0x7F800000, 0x7F, byte)
    return (byte | ((bits >> 24) & 0x80)).to(tl.uint8)


@triton.jit
def from_e4m3(byte, READING: tl.constexpr):
    """Bytes as fp16, exactly; as float32 where they are read one by one."""
    if READING == "cast":
        value = byte.to(tl.float8e4nv, bitcast=True).to(tl.float16)
    elif READING == "asm":
        value = tl.inline_asm_elementwise(_HALVES, "=r,=r,r", [byte], dtype=tl.float16, is_pure=True, pack=4)
    else:
        byte = byte.to(tl.int32)
        size = byte & 0x7F
        value = (size << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36  # 2^120
        value = tl.where(size == 0x7F, float("nan"), value)
        value = (value.to(tl.int32, bitcast=True) | ((byte & 0x80) << 24)).to(tl.float32, bitcast=True)
    return value
