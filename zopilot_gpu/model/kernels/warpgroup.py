"""The experts of a layer on sm_90, for more tokens than a few: what `experts` computes anywhere, by `wgmma`.

A program has a warpgroup or two, which share their x. How many blocks there are is no constant here, so that a kernel serves
any number of tokens.
"""

import triton
import triton.language as tl

from zopilot_gpu.model.kernels.chained import wait_for_before
from zopilot_gpu.model.kernels.fragments import load4
from zopilot_gpu.model.kernels.product import fetch
from zopilot_gpu.model.kernels.routing import block_at
from zopilot_gpu.model.kernels.wgmma import multiply, prepare_both

_STORE: tl.constexpr = tl.constexpr("{ .reg .pred p; setp.ne.b32 p, $3, 0; @p st.global.b32 [$1], $2; mov.b32 $0, 0; }")
# Four sums of rows g and g + 8 by tokens 2t and 2t + 1 become pairs of rows of one token, an even lane's or an odd one's.
_STORE_PAIRS: tl.constexpr = tl.constexpr(
    """{ .reg .pred o, p; .reg .b32 a, b, s, r, c, d; .reg .f32 x, y;
    setp.ne.b32 o, $12, 0; setp.ne.b32 p, $16, 0;
    selp.b32 s, $4, $5, o; shfl.sync.bfly.b32 r, s, 4, 0x1f, 0xffffffff;
    selp.b32 a, r, $4, o; selp.b32 b, $5, r, o; mov.b32 x, a; mov.b32 y, b; cvt.rn.bf16x2.f32 c, y, x;
    selp.b32 s, $6, $7, o; shfl.sync.bfly.b32 r, s, 4, 0x1f, 0xffffffff;
    selp.b32 a, r, $6, o; selp.b32 b, $7, r, o; mov.b32 x, a; mov.b32 y, b; cvt.rn.bf16x2.f32 d, y, x;
    @p st.global.v2.b32 [$8], {c, d}; mov.b32 $0, 0; mov.b32 $1, 0; mov.b32 $2, 0; mov.b32 $3, 0; }"""
)


@triton.jit(do_not_specialize=["num_blocks"])
def wgmma_up_kernel(
    packed, absmax, groups, nested, table, x, blocks, out, num_blocks,
    COLUMNS: tl.constexpr, INNER: tl.constexpr, KIND: tl.constexpr,
    Q: tl.constexpr, WR: tl.constexpr, PLAIN: tl.constexpr, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Rows of `down`, [blocks] of INNER columns, = silu(gate x) * up x; a warpgroup has 64 rows of gate and 64 of up."""
    program = tl.program_id(0)
    block, first = program % num_blocks, program // num_blocks
    expert, _, count = block_at(blocks, block)
    if expert < 0:
        return
    thread = tl.arange(0, 32 * WR)[None, None, :]
    pair = tl.minimum(first * WR + thread // 32, INNER // 16 - 1)
    tiles = expert * (INNER // 8) + pair + tl.arange(0, 2)[:, None, None] * (INNER // 16)
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3 = fetch(packed, absmax, groups, nested, tiles, 0, COLUMNS, KIND, True, PLAIN)
    bank = prepare_both(table, 32 * WR, PLAIN)
    here = x + block * (Q * COLUMNS * 4) + wait_for_before(CHAINED)
    if count * 2 <= Q * 8:  # half as many where that will do
        _gate_up(
            packed, absmax, groups, nested, table, here, out, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
            block, count, first, COLUMNS, INNER, KIND, Q, Q // 2, WR, PLAIN,
        )  # fmt: skip
    else:
        _gate_up(
            packed, absmax, groups, nested, table, here, out, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
            block, count, first, COLUMNS, INNER, KIND, Q, Q, WR, PLAIN,
        )  # fmt: skip


@triton.jit
def _gate_up(
    packed, absmax, groups, nested, table, x, out, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
    block, count, first, COLUMNS: tl.constexpr, INNER: tl.constexpr, KIND: tl.constexpr,
    Q: tl.constexpr, q: tl.constexpr, WR: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """The first q eighths of a block of Q."""
    sums = multiply(
        packed, absmax, groups, nested, table, x, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
        COLUMNS, KIND, Q, q, PLAIN,
    )  # fmt: skip
    is_up = tl.arange(0, 2)[:, None, None] == 1
    gate, up = tl.sum(tl.where(is_up, 0.0, sums), axis=0), tl.sum(tl.where(is_up, sums, 0.0), axis=0)  # [4q, T]
    value = (gate / (1 + tl.exp(-gate)) * up)[None, :, :]
    row, token = _place(1, q, WR, first)
    if not PLAIN:  # of four sums, one store: rows g, g + 1 and the same + 8 of one token, where g is even
        odd = row % 2
        row, token = row // 16 * 16 + row % 8 // 2 * 2, token // 2 * 2 + odd
    column = row % 32
    to = row // 32 * (Q * 256) + token // 8 * 256 + column % 8 // 2 * 64 + token % 8 * 8 + column // 8 * 2 + column % 2
    to += block * (Q * INNER * 8)
    keep = (token < count) & (row < INNER)
    if PLAIN:  # the interpreter minds what is no number, where it is for nobody too
        tl.store(out + to, value.to(out.dtype.element_ty), mask=row < INNER)
    else:
        tl.inline_asm_elementwise(
            _STORE_PAIRS, "=r,=r,=r,=r,r,r,r,r,l,l,l,l,r,r,r,r,r,r,r,r",
            [value.to(tl.int32, bitcast=True), out + to, odd, keep.to(tl.int32)],
            dtype=tl.int32, is_pure=False, pack=4,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_blocks"])
def wgmma_down_kernel(
    packed, absmax, groups, nested, table, x, order, blocks, shares, out, num_blocks,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
    R: tl.constexpr, Q: tl.constexpr, WR: tl.constexpr, PLAIN: tl.constexpr, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Out [assignments, ROWS] = share * (down x); a warpgroup has R times 64 rows."""
    program = tl.program_id(0)
    block, first = program % num_blocks, program // num_blocks
    expert, start, count = block_at(blocks, block)
    if expert < 0:
        return
    thread = tl.arange(0, 32 * WR)[None, None, :]
    tiles = tl.arange(0, R)[:, None, None] + (first * WR + thread // 32) * R
    tiles = expert * (ROWS // 16) + tl.minimum(tiles, ROWS // 16 - 1)
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3 = fetch(packed, absmax, groups, nested, tiles, 0, COLUMNS, KIND, True, PLAIN)
    bank = prepare_both(table, 32 * WR, PLAIN)
    here = x + block * (Q * COLUMNS * 4) + wait_for_before(CHAINED)
    if count * 2 <= Q * 8:  # half as many where that will do
        _down(
            packed, absmax, groups, nested, table, here, order, shares, out, tiles, bank,
            w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
            start, count, first, COLUMNS, ROWS, KIND, R, Q, Q // 2, WR, PLAIN,
        )  # fmt: skip
    else:
        _down(
            packed, absmax, groups, nested, table, here, order, shares, out, tiles, bank,
            w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
            start, count, first, COLUMNS, ROWS, KIND, R, Q, Q, WR, PLAIN,
        )  # fmt: skip


@triton.jit
def _down(
    packed, absmax, groups, nested, table, x, order, shares, out, tiles, bank,
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
    start, count, first, COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
    R: tl.constexpr, Q: tl.constexpr, q: tl.constexpr, WR: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """The first q eighths of a block of Q."""
    sums = multiply(
        packed, absmax, groups, nested, table, x, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
        COLUMNS, KIND, Q, q, PLAIN,
    )  # fmt: skip
    row, token = _place(R, q, WR, first)
    keep = (token < count) & (row < ROWS)
    assignment = load4(order + start + tl.minimum(token, count - 1), PLAIN)
    value = sums * load4(shares + assignment, PLAIN).to(tl.float32, bitcast=True)
    if PLAIN:
        tl.store(out + assignment * ROWS + row, value, mask=keep)
    else:
        tl.inline_asm_elementwise(
            _STORE, "=r,l,r,r", [out + assignment * ROWS + row, value.to(tl.int32, bitcast=True), keep.to(tl.int32)],
            dtype=tl.int32, is_pure=False, pack=1,
        )  # fmt: skip


@triton.jit
def _place(R: tl.constexpr, q: tl.constexpr, WR: tl.constexpr, first):
    """Rows and tokens of what `multiply` returns: int32 that broadcast to [R, 4q, T]."""
    thread, index = tl.arange(0, 32 * WR)[None, None, :], tl.arange(0, 4 * q)[None, :, None]
    tile = (first * WR + thread // 32) * R + tl.arange(0, R)[:, None, None]
    return tile * 16 + thread % 32 // 4 + index % 4 // 2 * 8, index // 4 * 8 + thread % 4 * 2 + index % 2
