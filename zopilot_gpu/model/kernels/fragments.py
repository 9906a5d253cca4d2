"""What a thread does that Triton has no words for, in lines of assembly, and the same in Triton for the interpreter.

The lookup table is what makes NF4 fast here: 256 pairs of bf16, one for each byte of packed weights, once for each of the 32
banks of shared memory (32 KiB), so that a warp's lookups never meet. A byte becomes the two weights that a register of `mma`
wants by a permutation and a load, and for four bytes two instructions more: 256 bytes of the table have the pairs of byte b
(below 128) and of b + 128, so that an address is b's lower seven bits, its highest bit and the lane's seven, end to end.
"""

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.nf4 import CODES

_RESERVE: tl.constexpr = tl.constexpr(".shared .align 128 .b8 nf4_pairs[32768]; mov.b32 $0, 0;")
_FILL: tl.constexpr = tl.constexpr(
    "{ .reg .b32 a; mov.b32 a, nf4_pairs; add.u32 a, a, $1; st.shared.v4.b32 [a], {$2, $2, $2, $2}; mov.b32 $0, 0; }"
)
_READY: tl.constexpr = tl.constexpr("bar.sync 0; mov.b32 $0, $1;")
_LOOKUP: tl.constexpr = tl.constexpr(
    """{ .reg .b32 a, b, c, d, s, m, base; mov.b32 base, nf4_pairs;
    lop3.b32 s, $4, 0x80808080, $5, 0xEA; and.b32 m, $4, 0x7f7f7f7f;
    prmt.b32 a, s, m, 0xCC40; prmt.b32 b, s, m, 0xCC51; prmt.b32 c, s, m, 0xCC62; prmt.b32 d, s, m, 0xCC73;
    add.u32 a, a, base; add.u32 b, b, base; add.u32 c, c, base; add.u32 d, d, base;
    ld.shared.b32 $0, [a]; ld.shared.b32 $1, [b]; ld.shared.b32 $2, [c]; ld.shared.b32 $3, [d]; }"""
)
_LOAD_ONCE: tl.constexpr = tl.constexpr("ld.global.nc.L1::no_allocate.v4.b32 {$0, $1, $2, $3}, [$4];")
_LOAD: tl.constexpr = tl.constexpr("ld.global.v4.b32 {$0, $1, $2, $3}, [$4];")
_LOAD_WHERE: tl.constexpr = tl.constexpr("{ .reg .pred p; setp.ne.b32 p, $5, 0; @p ld.global.v4.b32 {$0, $1, $2, $3}, [$4]; }")
_LOAD8: tl.constexpr = tl.constexpr("ld.global.v2.b32 {$0, $1}, [$2];")
_LOAD4: tl.constexpr = tl.constexpr("ld.global.b32 $0, [$1];")
_SCALE_LOW: tl.constexpr = tl.constexpr(
    "{ .reg .b32 s, z; mov.b32 z, 0x80008000; prmt.b32 s, $2, $2, 0x1010; fma.rn.bf16x2 $0, $1, s, z; }"
)
_SCALE_HIGH: tl.constexpr = tl.constexpr(
    "{ .reg .b32 s, z; mov.b32 z, 0x80008000; prmt.b32 s, $2, $2, 0x3232; fma.rn.bf16x2 $0, $1, s, z; }"
)
_ZERO: tl.constexpr = tl.constexpr("mov.f32 $0, $1;")
_PAIR: tl.constexpr = tl.constexpr("cvt.rn.bf16x2.f32 $0, $2, $1;")
_MMA: tl.constexpr = tl.constexpr(
    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
)


def pair_table(device: torch.device) -> torch.Tensor:
    """[256] int32: the two bf16 codes of a byte, the first in the low half, where the lower column belongs."""
    codes = torch.tensor(CODES, device=device).bfloat16().view(torch.int16).int() & 0xFFFF
    return ((codes.unsqueeze(0) << 16) | codes.unsqueeze(1)).flatten().contiguous()


@triton.jit
def prepare(table, THREADS: tl.constexpr, PLAIN: tl.constexpr):
    """Fills the table. Gives each thread its bank, four times a byte: [1, 1, T] int32."""
    thread = tl.arange(0, THREADS)[None, None, :]
    bank = thread % 32 * 0x04040404
    if not PLAIN:
        tl.inline_asm_elementwise(_RESERVE, "=r,r", [thread], dtype=tl.int32, is_pure=False, pack=1)
        index = tl.arange(0, 2048)  # sixteen bytes each, eight for each pair
        pairs = tl.load(table + (index >> 3))
        place = (index & 1023) // 8 * 256 + index // 1024 * 128 + index % 8 * 16
        tl.inline_asm_elementwise(_FILL, "=r,r,r", [place, pairs], dtype=tl.int32, is_pure=False, pack=1)
        bank = tl.inline_asm_elementwise(_READY, "=r,r", [bank], dtype=tl.int32, is_pure=False, pack=1)
    return bank


@triton.jit
def lookup(word, bank, table, PLAIN: tl.constexpr):
    """The pairs of a word's four bytes, the lowest first. NOTE: not pure: it must stay behind `prepare`."""
    if PLAIN:
        a, b = tl.load(table + (word & 255)), tl.load(table + ((word >> 8) & 255))
        c, d = tl.load(table + ((word >> 16) & 255)), tl.load(table + ((word >> 24) & 255))
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            _LOOKUP,
            "=r,=r,=r,=r,r,r",
            [word, bank],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=False,
            pack=1,
        )
    return a, b, c, d


@triton.jit
def load16(pointer, ONCE: tl.constexpr, PLAIN: tl.constexpr):
    """Sixteen bytes as four int32. ONCE: they are read by nobody else and never written, so they need no place in L1."""
    if PLAIN:
        a, b, c, d = tl.load(pointer), tl.load(pointer + 1), tl.load(pointer + 2), tl.load(pointer + 3)
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            _LOAD_ONCE if ONCE else _LOAD,
            "=r,=r,=r,=r,l",
            [pointer],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    return a, b, c, d


@triton.jit
def load16_where(pointer, there, PLAIN: tl.constexpr):
    """Sixteen bytes as four int32 where `there` is not 0, elsewhere anything: a lane less is a quarter of an access less."""
    if PLAIN:
        a, b = tl.load(pointer, mask=there != 0), tl.load(pointer + 1, mask=there != 0)
        c, d = tl.load(pointer + 2, mask=there != 0), tl.load(pointer + 3, mask=there != 0)
    else:
        a, b, c, d = tl.inline_asm_elementwise(
            _LOAD_WHERE,
            "=r,=r,=r,=r,l,r",
            [pointer, there],
            dtype=(tl.int32, tl.int32, tl.int32, tl.int32),
            is_pure=True,
            pack=1,
        )
    return a, b, c, d


@triton.jit
def load8(pointer, PLAIN: tl.constexpr):
    """Eight bytes as two int32."""
    if PLAIN:
        a, b = tl.load(pointer), tl.load(pointer + 1)
    else:
        a, b = tl.inline_asm_elementwise(_LOAD8, "=r,=r,l", [pointer], dtype=(tl.int32, tl.int32), is_pure=True, pack=1)
    return a, b


@triton.jit
def load4(pointer, PLAIN: tl.constexpr):
    """An int32. NOTE: not `tl.load`: for that Triton would choose a layout, and then exchange registers between threads."""
    if PLAIN:
        a = tl.load(pointer)
    else:
        a = tl.inline_asm_elementwise(_LOAD4, "=r,l", [pointer], dtype=tl.int32, is_pure=True, pack=1)
    return a


@triton.jit
def scaled(pair, scales, HIGH: tl.constexpr, PLAIN: tl.constexpr):
    """Both bf16 of a pair times one of two bf16 scales."""
    if PLAIN:
        scale = high(scales) if HIGH else low(scales)
        near, far = (low(pair) * scale).to(tl.int32, bitcast=True), (high(pair) * scale).to(tl.int32, bitcast=True)
        product = (((near + 0x8000) >> 16) & 0xFFFF) | ((far + 0x8000) & -65536)
    else:
        product = tl.inline_asm_elementwise(
            _SCALE_HIGH if HIGH else _SCALE_LOW, "=r,r,r", [pair, scales], dtype=tl.int32, is_pure=True, pack=1
        )
    return product


@triton.jit
def pair_of(a, b, PLAIN: tl.constexpr):
    """Two float32 as a pair of bf16."""
    if PLAIN:
        near, far = a.to(tl.int32, bitcast=True), b.to(tl.int32, bitcast=True)
        pair = (((near + 0x8000) >> 16) & 0xFFFF) | ((far + 0x8000) & -65536)
    else:
        pair = tl.inline_asm_elementwise(_PAIR, "=r,f,f", [a, b], dtype=tl.int32, is_pure=True, pack=1)
    return pair


@triton.jit
def zeros(R: tl.constexpr, Q: tl.constexpr, T: tl.constexpr, PLAIN: tl.constexpr):
    """[R, Q, T] float32, of which the compiler does not know that they are zero.

    NOTE: triton 3.4 makes one of two sums that a loop begins with the same constant and leaves with results of one `mma`.
    """
    zero = tl.zeros((R, Q, T), tl.float32)
    if not PLAIN:
        zero = tl.inline_asm_elementwise(_ZERO, "=f,f", [zero], dtype=tl.float32, is_pure=False, pack=1)
    return zero


@triton.jit
def low(pair):
    """The first bf16 of a pair, in float32."""
    return (pair << 16).to(tl.float32, bitcast=True)


@triton.jit
def high(pair):
    """The second bf16 of a pair, in float32."""
    return (pair & -65536).to(tl.float32, bitcast=True)


@triton.jit
def mma(a0, a1, a2, a3, b0, b1, c0, c1, c2, c3, PLAIN: tl.constexpr):
    """C + a b for 16 rows, 16 columns of weights and 8 of x: a [R, 1, T], b [1, Q, T], c [R, Q, T]. Lane 4g + t holds

    a0 (row g, columns 2t, 2t + 1), a1 (g + 8, 2t), a2 (g, 2t + 8), a3 (g + 8, 2t + 8), b0 (columns 2t, x g), b1 (2t + 8, g),
    c0 c1 (row g, x 2t and 2t + 1), c2 c3 (row g + 8).
    """  # noqa: D415
    if PLAIN:
        d0, d1 = _half(a0, a2, b0, b1, c0, c1)
        d2, d3 = _half(a1, a3, b0, b1, c2, c3)
    else:
        d0, d1, d2, d3 = tl.inline_asm_elementwise(
            _MMA,
            "=f,=f,=f,=f,r,r,r,r,r,r,f,f,f,f",
            [a0, a1, a2, a3, b0, b1, c0, c1, c2, c3],
            dtype=(tl.float32, tl.float32, tl.float32, tl.float32),
            is_pure=True,
            pack=1,
        )
    return d0, d1, d2, d3


@triton.jit
def _half(a, a_far, b, b_far, c, c_next):
    """Eight rows of `mma`, in Triton."""
    rows: tl.constexpr = a.shape[0]
    tokens: tl.constexpr = b.shape[1]
    warps: tl.constexpr = a.shape[2] // 32
    a, a_far = tl.reshape(a, (rows, 1, warps, 8, 1, 4)), tl.reshape(a_far, (rows, 1, warps, 8, 1, 4))
    b, b_far = tl.reshape(b, (1, tokens, warps, 1, 8, 4)), tl.reshape(b_far, (1, tokens, warps, 1, 8, 4))
    products = low(a) * low(b) + high(a) * high(b) + low(a_far) * low(b_far) + high(a_far) * high(b_far)
    even, odd = tl.split(tl.reshape(tl.sum(products, axis=5), (rows, tokens, warps, 8, 4, 2)))
    return c + tl.reshape(even, (rows, tokens, warps * 32)), c_next + tl.reshape(odd, (rows, tokens, warps * 32))
