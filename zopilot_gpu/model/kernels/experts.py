"""The experts of a layer: gate and up with SiLU, down with the routing weights, and the sum over k.

Knows blocks of tokens of one expert, which `routing` made on the device; reads no count on the host, so a CUDA graph can hold
it. Nothing is added atomically: the same input gives the same bits. What the second product reads, the first has written in the
order of its loads: `rows [blocks, Q, columns / 32, 32 lanes, 8]`, lane 4g + t with columns 8t .. of token g, 512 bytes in one
piece; where tokens are many, `gather_kernel` does so for the first.
"""

import triton
import triton.language as tl

from zopilot_gpu.model.kernels.chained import wait_for_before
from zopilot_gpu.model.kernels.fragments import load4, prepare
from zopilot_gpu.model.kernels.product import fetch, multiply
from zopilot_gpu.model.kernels.routing import block_at, pick


@triton.jit
def gate_up_kernel(
    packed, absmax, groups, nested, table, x, order, blocks, out,
    TOP_K: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, KIND: tl.constexpr, NUM_BLOCKS: tl.constexpr,
    GATHERED: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, WK: tl.constexpr, WR: tl.constexpr,
    EARLY: tl.constexpr, PLAIN: tl.constexpr, NUM_EXPERTS: tl.constexpr = 0, EXPERTS: tl.constexpr = 0,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Rows [blocks, Q, INNER / 32, 32, 8] = silu(gate x) * up x; each warp has P tiles of gate and P of up.

    `x` is [tokens, COLUMNS], or rows as above if GATHERED. With EXPERTS there is one token, and `blocks` are its logits.
    """
    program = tl.program_id(0)
    block, first = program % NUM_BLOCKS, program // NUM_BLOCKS
    if CHAINED and not GATHERED:
        bank = prepare(table, 32 * WK * WR, PLAIN)
        zero = wait_for_before(CHAINED)
    if EXPERTS > 0:
        expert, _ = pick(blocks, block, NUM_EXPERTS, EXPERTS, NUM_BLOCKS)
        start, count = block, 1
    else:
        expert, start, count = block_at(blocks, block)
        if expert < 0:
            return
    thread = tl.arange(0, 32 * WK * WR)[None, None, :]
    pair = tl.arange(0, 2 * P)[:, None, None] // 2 + (first * WR + thread // 32 // WK) * P
    pair = tl.minimum(pair, INNER // 16 - 1)
    tiles = expert * (INNER // 8) + pair + tl.arange(0, 2 * P)[:, None, None] % 2 * (INNER // 16)
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3 = fetch(
        packed, absmax, groups, nested, tiles, thread // 32 % WK, COLUMNS, KIND, EARLY, PLAIN
    )
    if not CHAINED or GATHERED:
        bank = prepare(table, 32 * WK * WR, PLAIN)
        zero = wait_for_before(CHAINED)
    x, order = x + zero, order + zero
    if Q > 1:
        if count * 2 <= Q * 8:  # half as many where that will do
            _gate_up(
                packed, absmax, groups, nested, table, x, order, out, bank, tiles,
                w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
                block, start, count, first, TOP_K, COLUMNS, INNER, KIND, GATHERED, P, Q, Q // 2, WK, WR, EARLY, PLAIN, EXPERTS,
            )  # fmt: skip
        else:
            _gate_up(
                packed, absmax, groups, nested, table, x, order, out, bank, tiles,
                w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
                block, start, count, first, TOP_K, COLUMNS, INNER, KIND, GATHERED, P, Q, Q, WK, WR, EARLY, PLAIN, EXPERTS,
            )  # fmt: skip
    else:
        _gate_up(
            packed, absmax, groups, nested, table, x, order, out, bank, tiles,
            w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
            block, start, count, first, TOP_K, COLUMNS, INNER, KIND, GATHERED, P, Q, Q, WK, WR, EARLY, PLAIN, EXPERTS,
        )  # fmt: skip


@triton.jit
def _gate_up(
    packed, absmax, groups, nested, table, x, order, out, bank, tiles,
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
    block, start, count, first, TOP_K: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, KIND: tl.constexpr,
    GATHERED: tl.constexpr, P: tl.constexpr, Q: tl.constexpr, q: tl.constexpr, WK: tl.constexpr, WR: tl.constexpr,
    EARLY: tl.constexpr, PLAIN: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The first q eighths of a block of Q."""
    thread = tl.arange(0, 32 * WK * WR)[None, None, :]
    token = tl.arange(0, q)[None, :, None] * 8 + thread % 32 // 4
    there = (token < count).to(tl.int32)
    token = tl.minimum(token, count - 1)
    stride: tl.constexpr = 128 if GATHERED else 16
    if GATHERED:
        here = x + (block * Q + token // 8) * (COLUMNS * 4) + (token % 8 * 4 + thread % 4) * 4
    elif EXPERTS > 0:
        here = x + token * (COLUMNS // 2) + thread % 4 * 4
    else:
        here = x + load4(order + start + token, PLAIN) // TOP_K * (COLUMNS // 2) + thread % 4 * 4
    sums = multiply(
        packed, absmax, groups, nested, table, here, there, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
        stride, COLUMNS, KIND, WK, EARLY, PLAIN,
    )  # fmt: skip
    both = tl.reshape(sums, (P, 2, q, WR, 32, 4))
    is_up = tl.arange(0, 2)[None, :, None, None, None, None] == 1
    gate, up = tl.sum(tl.where(is_up, 0.0, both), axis=1), tl.sum(tl.where(is_up, both, 0.0), axis=1)
    value = gate / (1 + tl.exp(-gate)) * up
    row, token = _place(q, WR, P, first)
    to = (block * Q + token // 8) * (INNER * 8) + row // 32 * 256 + token % 8 * 32 + row % 32
    tl.store(out + to, value.to(out.dtype.element_ty), mask=(token < count) & (row < INNER))


@triton.jit
def down_kernel(
    packed, absmax, groups, nested, table, x, order, blocks, shares, out,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, NUM_BLOCKS: tl.constexpr,
    R: tl.constexpr, Q: tl.constexpr, WK: tl.constexpr, WR: tl.constexpr, EARLY: tl.constexpr, PLAIN: tl.constexpr,
    NUM_EXPERTS: tl.constexpr = 0, EXPERTS: tl.constexpr = 0, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Out [assignments, ROWS] = share * (down x); x is rows [blocks, Q, COLUMNS / 32, 32, 8]; EXPERTS as above."""
    program = tl.program_id(0)
    block, first = program % NUM_BLOCKS, program // NUM_BLOCKS
    if EXPERTS > 0:
        expert, share = pick(blocks, block, NUM_EXPERTS, EXPERTS, NUM_BLOCKS)
        start, count = block, 1
    else:
        expert, start, count = block_at(blocks, block)
        share = 0.0
        if expert < 0:
            return
    thread = tl.arange(0, 32 * WK * WR)[None, None, :]
    tiles = tl.arange(0, R)[:, None, None] + (first * WR + thread // 32 // WK) * R
    tiles = expert * (ROWS // 16) + tl.minimum(tiles, ROWS // 16 - 1)
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3 = fetch(
        packed, absmax, groups, nested, tiles, thread // 32 % WK, COLUMNS, KIND, EARLY, PLAIN
    )
    bank = prepare(table, 32 * WK * WR, PLAIN)
    x += wait_for_before(CHAINED)
    if Q > 1:
        if count * 2 <= Q * 8:  # half as many where that will do
            _down(
                packed, absmax, groups, nested, table, x, order, shares, share, out, bank, tiles,
                w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
                block, start, count, first, COLUMNS, ROWS, KIND, R, Q, Q // 2, WK, WR, EARLY, PLAIN, EXPERTS,
            )  # fmt: skip
        else:
            _down(
                packed, absmax, groups, nested, table, x, order, shares, share, out, bank, tiles,
                w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
                block, start, count, first, COLUMNS, ROWS, KIND, R, Q, Q, WK, WR, EARLY, PLAIN, EXPERTS,
            )  # fmt: skip
    else:
        _down(
            packed, absmax, groups, nested, table, x, order, shares, share, out, bank, tiles,
            w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
            block, start, count, first, COLUMNS, ROWS, KIND, R, Q, Q, WK, WR, EARLY, PLAIN, EXPERTS,
        )  # fmt: skip


@triton.jit
def _down(
    packed, absmax, groups, nested, table, x, order, shares, share, out, bank, tiles,
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
    block, start, count, first, COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr,
    R: tl.constexpr, Q: tl.constexpr, q: tl.constexpr, WK: tl.constexpr, WR: tl.constexpr,
    EARLY: tl.constexpr, PLAIN: tl.constexpr, EXPERTS: tl.constexpr,
):  # fmt: skip
    """The first q eighths of a block of Q."""
    thread = tl.arange(0, 32 * WK * WR)[None, None, :]
    token = tl.arange(0, q)[None, :, None] * 8 + thread % 32 // 4
    there = (token < count).to(tl.int32)
    token = tl.minimum(token, count - 1)
    here = x + (block * Q + token // 8) * (COLUMNS * 4) + (token % 8 * 4 + thread % 4) * 4
    sums = multiply(
        packed, absmax, groups, nested, table, here, there, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
        128, COLUMNS, KIND, WK, EARLY, PLAIN,
    )  # fmt: skip
    row, token = _place(q, WR, R, first)
    inside = token < count
    assignment = start + token
    if EXPERTS == 0:
        assignment = tl.load(order + assignment, mask=inside, other=0)
        share = tl.load(shares + assignment, mask=inside, other=0.0)
    tl.store(out + assignment * ROWS + row, (sums * share).to(out.dtype.element_ty), mask=inside & (row < ROWS))


@triton.jit
def dense_kernel(
    packed, absmax, groups, nested, table, x, out, num_tokens,
    COLUMNS: tl.constexpr, ROWS: tl.constexpr, KIND: tl.constexpr, NUM_BLOCKS: tl.constexpr,
    R: tl.constexpr, Q: tl.constexpr, WK: tl.constexpr, WR: tl.constexpr, EARLY: tl.constexpr, PLAIN: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Out [num_tokens, ROWS] = weight x: the product with one matrix; x is [num_tokens, COLUMNS]."""
    program = tl.program_id(0)
    start, first = program % NUM_BLOCKS * (8 * Q), program // NUM_BLOCKS
    thread = tl.arange(0, 32 * WK * WR)[None, None, :]
    tiles = tl.arange(0, R)[:, None, None] + (first * WR + thread // 32 // WK) * R
    tiles = tl.minimum(tiles, ROWS // 16 - 1)
    w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3 = fetch(
        packed, absmax, groups, nested, tiles, thread // 32 % WK, COLUMNS, KIND, EARLY, PLAIN
    )
    bank = prepare(table, 32 * WK * WR, PLAIN)
    x += wait_for_before(CHAINED)
    token = start + tl.arange(0, Q)[None, :, None] * 8 + thread % 32 // 4
    there = (token < num_tokens).to(tl.int32)
    token = tl.minimum(token, num_tokens - 1)
    here = x + token * (COLUMNS // 2) + thread % 4 * 4
    sums = multiply(
        packed, absmax, groups, nested, table, here, there, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
        16, COLUMNS, KIND, WK, EARLY, PLAIN,
    )  # fmt: skip
    row, token = _place(Q, WR, R, first)
    token += start
    tl.store(out + token * ROWS + row, sums.to(out.dtype.element_ty), mask=(token < num_tokens) & (row < ROWS))


@triton.jit
def gather_kernel(
    x, order, blocks, out, TOP_K: tl.constexpr, COLUMNS: tl.constexpr, Q: tl.constexpr, BLOCK: tl.constexpr,
    WGMMA: tl.constexpr, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """Out = the rows of `x` [tokens, COLUMNS] that each block has, in pairs of bf16 and in the order of what multiplies.

    That is [blocks, Q, COLUMNS / 32, 32, 8] as above, or if WGMMA the order that `wgmma` has.
    """
    wait_for_before(CHAINED)
    eighth = tl.program_id(0)
    start, count = tl.load(blocks + eighth // Q * 3 + 1), tl.load(blocks + eighth // Q * 3 + 2)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)  # of pairs, 128 of 32 columns of eight tokens
    known = index < COLUMNS * 4
    if WGMMA:
        token, column = index // 4 % 8, index % 4 * 4 + index // 32 % 4
        to = (eighth // Q * (COLUMNS // 32) + index // 128) * (Q * 128) + eighth % Q * 128 + index % 128
    else:
        token, column = index // 16 % 8, index % 16
        to = eighth * (COLUMNS * 4) + index
    token += eighth % Q * 8
    inside = known & (token < count)
    row = tl.load(order + start + token, mask=inside, other=0) // TOP_K
    pair = tl.load(x + row * (COLUMNS // 2) + index // 128 * 16 + column, mask=inside, other=0)
    tl.store(out + to, pair, mask=known if WGMMA else inside)


@triton.jit
def sum_kernel(
    parts, out, WIDTH: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr, CHAINED: tl.constexpr = False
):  # fmt: skip
    """Out [tokens, WIDTH] = the sum of parts [tokens, TOP_K, WIDTH]."""
    token, column = tl.program_id(0), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    wait_for_before(CHAINED)
    total = tl.zeros((BLOCK,), tl.float32)
    for index in tl.static_range(TOP_K):
        total += tl.load(parts + (token * TOP_K + index) * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * WIDTH + column, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _place(Q: tl.constexpr, WR: tl.constexpr, R: tl.constexpr, first):
    """Rows and tokens of what `multiply` returns: int32 that broadcast to [R, Q, WR, 32, 4]."""
    lane = tl.arange(0, 32)[None, None, None, :, None]
    part = tl.arange(0, 4)[None, None, None, None, :]  # row g or g + 8, token 2t or 2t + 1
    warp = tl.arange(0, WR)[None, None, :, None, None]
    tile = (first * WR + warp) * R + tl.arange(0, R)[:, None, None, None, None]
    row = tile * 16 + lane // 4 + part // 2 * 8
    token = tl.arange(0, Q)[None, :, None, None, None] * 8 + lane % 4 * 2 + part % 2
    return row, token
