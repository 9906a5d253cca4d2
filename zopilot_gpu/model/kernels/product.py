"""The product of NF4 tiles and rows of x, which every kernel over weights is made of. Knows one program's share of it.

A program has WK * WR warps. Warp (wk, wr) takes R tiles, those of its wr, and of their columns every WK-th 128. What the WK
warps of a tile have summed is added at the end. Letters: R tiles of a warp, Q eighths of tokens (8 are what `mma` takes),
T threads; `fragments` has those of a lane.

NOTE: all tensors of threads have three axes, [R or 1, Q or 1, T], from the first to the last. With fewer, Triton gives them
other layouts, and exchanges registers between threads wherever they meet.
"""

import triton
import triton.language as tl

from zopilot_gpu.model.kernels.fragments import (
    high,
    load4,
    load8,
    load16,
    load16_where,
    lookup,
    low,
    mma,
    pair_of,
    scaled,
    zeros,
)


@triton.jit
def multiply(
    packed, absmax, groups, nested, table, x, there, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
    STRIDE: tl.constexpr, COLUMNS: tl.constexpr, KIND: tl.constexpr, WK: tl.constexpr, EARLY: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Weights times x.

    Args:
        packed: of `tiles.Tiled`, as are `absmax` and `groups`; `nested` and `table` are [256] tables.
        x: [1, Q, T] pointers to int32 pairs of bf16: for lane 4g + t, to columns 8t .. 8t + 7 of its token g. The next 32
    XX        there: [1, Q, T] int32: 0 where there is no token g, whose x is not read.
        tiles: [R, 1, T] int32, each thread's tiles in the stack.
        bank: of `fragments.prepare`.
        w0 .. s3: of `fetch`, for the first step.
        COLUMNS: of the weights. KIND: of absmax, "bf16", "float32" or "nested".
        EARLY: whether absmax is applied to weights, in bf16, and not to sums: half the registers for sums.

    Returns:
        [R, Q, WR, 32, 4] float32: of lane 4g + t, rows g and g + 8 of a tile by tokens 2t and 2t + 1.
    """
    R: tl.constexpr = tiles.shape[0]
    Q: tl.constexpr = x.shape[1]
    T: tl.constexpr = tiles.shape[2]
    chunks: tl.constexpr = COLUMNS // 128
    thread = tl.arange(0, T)[None, None, :]
    first = thread // 32 % WK
    c0, c1, c2, c3 = zeros(R, Q, T, PLAIN), zeros(R, Q, T, PLAIN), zeros(R, Q, T, PLAIN), zeros(R, Q, T, PLAIN)
    for step in range((chunks + WK - 1) // WK):
        chunk = step * WK + first
        # The next tiles are on their way while these are multiplied; the last time, the same once more.
        next_w0, next_w1, next_w2, next_w3, next_v0, next_v1, next_v2, next_v3, next_s0, next_s1, next_s2, next_s3 = fetch(
            packed, absmax, groups, nested, tiles, chunk + WK, COLUMNS, KIND, EARLY, PLAIN
        )
        if chunks % WK != 0:
            inside = chunk < chunks
            s0, s1 = tl.where(inside, s0, 0), tl.where(inside, s1, 0)
            s2, s3 = tl.where(inside, s2, 0), tl.where(inside, s3, 0)
        here = x + tl.minimum(chunk, chunks - 1) * (4 * STRIDE)
        if EARLY:
            c0, c1, c2, c3 = _word(w0, v0, s0, s2, False, here, there, bank, table, c0, c1, c2, c3, EARLY, PLAIN)
            c0, c1, c2, c3 = _word(w1, v1, s0, s2, False, here + STRIDE, there, bank, table, c0, c1, c2, c3, EARLY, PLAIN)
            c0, c1, c2, c3 = _word(w2, v2, s1, s3, True, here + 2 * STRIDE, there, bank, table, c0, c1, c2, c3, EARLY, PLAIN)
            c0, c1, c2, c3 = _word(w3, v3, s1, s3, True, here + 3 * STRIDE, there, bank, table, c0, c1, c2, c3, EARLY, PLAIN)
        else:
            d0, d1, d2, d3 = _block(w0, w1, v0, v1, here, STRIDE, there, bank, table, PLAIN)
            c0, c1, c2, c3 = c0 + d0 * s0, c1 + d1 * s0, c2 + d2 * s2, c3 + d3 * s2
            d0, d1, d2, d3 = _block(w2, w3, v2, v3, here + 2 * STRIDE, STRIDE, there, bank, table, PLAIN)
            c0, c1, c2, c3 = c0 + d0 * s1, c1 + d1 * s1, c2 + d2 * s3, c3 + d3 * s3
        w0, w1, w2, w3 = next_w0, next_w1, next_w2, next_w3
        v0, v1, v2, v3 = next_v0, next_v1, next_v2, next_v3
        s0, s1, s2, s3 = next_s0, next_s1, next_s2, next_s3
    sums = tl.join(tl.join(c0, c2), tl.join(c1, c3))  # [..., row, token]
    return tl.sum(tl.reshape(sums, (R, Q, T // 32 // WK, WK, 32, 4)), axis=3)


@triton.jit
def fetch(
    packed, absmax, groups, nested, tiles, chunk, COLUMNS: tl.constexpr, KIND: tl.constexpr, EARLY: tl.constexpr,
    PLAIN: tl.constexpr,
):  # fmt: skip
    """A chunk of 128 columns: four words of row g, four of row g + 8, and four absmax; [R, 1, T] each.

    Absmax of a row's two blocks are two float32; if EARLY, both are the same pair of bf16.
    """
    lane = tl.arange(0, tiles.shape[2])[None, None, :] % 32
    at = tiles * (COLUMNS // 128) + tl.minimum(chunk, COLUMNS // 128 - 1)
    w0, w1, w2, w3 = load16(packed + at * 256 + lane * 4, True, PLAIN)
    v0, v1, v2, v3 = load16(packed + at * 256 + lane * 4 + 128, True, PLAIN)
    s0, s1, s2, s3 = _scales(absmax, groups, nested, tiles, at, lane // 4, COLUMNS, KIND, EARLY, PLAIN)
    return w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3


@triton.jit
def eight_scaled(a, b, c, d, scales, HIGH: tl.constexpr, PLAIN: tl.constexpr):
    """The eight weights of four pairs times one of two scales."""
    a, b = scaled(a, scales, HIGH, PLAIN), scaled(b, scales, HIGH, PLAIN)
    return a, b, scaled(c, scales, HIGH, PLAIN), scaled(d, scales, HIGH, PLAIN)


@triton.jit
def _block(w0, w1, v0, v1, x, STRIDE: tl.constexpr, there, bank, table, PLAIN: tl.constexpr):
    """64 columns: words w of rows g and v of rows g + 8 [R, 1, T], x [1, Q, T] -> four [R, Q, T], without absmax."""
    R: tl.constexpr = w0.shape[0]
    Q: tl.constexpr = x.shape[1]
    T: tl.constexpr = x.shape[2]
    d0, d1 = tl.zeros((R, Q, T), tl.float32), tl.zeros((R, Q, T), tl.float32)
    d2, d3 = tl.zeros((R, Q, T), tl.float32), tl.zeros((R, Q, T), tl.float32)
    d0, d1, d2, d3 = _word(w0, v0, 0, 0, False, x, there, bank, table, d0, d1, d2, d3, False, PLAIN)
    return _word(w1, v1, 0, 0, False, x + STRIDE, there, bank, table, d0, d1, d2, d3, False, PLAIN)


@triton.jit
def _word(
    w, v, row, far, HIGH: tl.constexpr, x, there, bank, table, d0, d1, d2, d3, EARLY: tl.constexpr, PLAIN: tl.constexpr
):  # fmt: skip
    """32 columns, eight of which are this lane's; if EARLY, `row` and `far` have the absmax of rows g and g + 8."""
    if x.shape[1] == 1:
        b0, b1, b2, b3 = load16_where(x, there, PLAIN)
    else:
        b0, b1, b2, b3 = load16(x, False, PLAIN)
    p0, p1, p2, p3 = lookup(w, bank, table, PLAIN)
    r0, r1, r2, r3 = lookup(v, bank, table, PLAIN)
    if EARLY:
        p0, p1, p2, p3 = eight_scaled(p0, p1, p2, p3, row, HIGH, PLAIN)
        r0, r1, r2, r3 = eight_scaled(r0, r1, r2, r3, far, HIGH, PLAIN)
    d0, d1, d2, d3 = mma(p0, r0, p1, r1, b0, b1, d0, d1, d2, d3, PLAIN)
    return mma(p2, r2, p3, r3, b2, b3, d0, d1, d2, d3, PLAIN)


@triton.jit
def _scales(
    absmax, groups, nested, tiles, at, row, COLUMNS: tl.constexpr, KIND: tl.constexpr, EARLY: tl.constexpr, PLAIN: tl.constexpr
):  # fmt: skip
    """The absmax of row g's two blocks, then of row g + 8's, in float32: four [R, 1, T]. `at` is the chunk in the stack."""
    if KIND == "float32":
        a, b, c, d = load16(absmax + at * 32 + row * 4, False, PLAIN)
        a, b = a.to(tl.float32, bitcast=True), b.to(tl.float32, bitcast=True)
        c, d = c.to(tl.float32, bitcast=True), d.to(tl.float32, bitcast=True)
    elif KIND == "bf16":
        both, far = load8(absmax + at * 16 + row * 2, PLAIN)
        if EARLY:
            a, b, c, d = both, both, far, far
        else:
            a, b, c, d = low(both), high(both), low(far), high(far)
    else:
        blocks: tl.constexpr = COLUMNS // 64
        codes = load4(absmax + at * 8 + row, PLAIN)
        block = tiles * 16 * blocks + row * blocks + (at - tiles * (COLUMNS // 128)) * 2
        a, b = _nested(codes, groups + block // 256 * 2, nested, PLAIN)
        c, d = _nested(codes >> 16, groups + (block + 8 * blocks) // 256 * 2, nested, PLAIN)
    if EARLY and KIND != "bf16":
        a, c = pair_of(a, b, PLAIN), pair_of(c, d, PLAIN)
        b, d = a, c
    return a, b, c, d


@triton.jit
def _nested(codes, group, nested, PLAIN: tl.constexpr):
    """Two absmax out of two codes of a group."""
    scale, offset = load8(group, PLAIN)
    scale, offset = scale.to(tl.float32, bitcast=True), offset.to(tl.float32, bitcast=True)
    a = load4(nested + (codes & 255), PLAIN).to(tl.float32, bitcast=True)
    b = load4(nested + ((codes >> 8) & 255), PLAIN).to(tl.float32, bitcast=True)
    return a * scale + offset, b * scale + offset
