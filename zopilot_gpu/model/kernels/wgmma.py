"""The product of NF4 tiles and rows of x by Hopper's `wgmma`, for more tokens than a few; `product` is for any card.

Four warps, a warpgroup, multiply 64 rows of weights at once, each warp a tile of its own: decoded into registers as for `mma`,
which `wgmma` takes from there. What `mma` reads of x into registers, again for each warp, `wgmma` reads from shared memory, and
once for all 64 rows. So x is put in the order of its reads:

    rows  [blocks, columns / 32, Q, 2, 2, 8, 4, 2]    column 32i + 8t + 4m + 2h + e of token 8q + g at [i, q, m, h, g, t, e]

of which 16 columns (m) of 8 tokens are two core matrices (h) of 8 tokens by 16 bytes, without swizzling.

    stage s      copied while stage s - 1 is multiplied; two of 8 KiB and the table of pairs are all that a kernel may name
    word         32 columns: its weights are decoded while the word before it is multiplied

Source: PTX ISA, asynchronous warpgroup level matrix instructions.
"""

import triton
import triton.language as tl

from zopilot_gpu.model.kernels.fragments import lookup, mma, prepare
from zopilot_gpu.model.kernels.product import eight_scaled, fetch

_RESERVE: tl.constexpr = tl.constexpr(".shared .align 128 .b8 nf4_x[16384]; mov.b32 $0, $1;")
_COPY: tl.constexpr = tl.constexpr(
    "{ .reg .b32 a; mov.b32 a, nf4_x; add.u32 a, a, $1; cp.async.cg.shared.global [a], [$2], 16; mov.b32 $0, 0; }"
)
_ARRIVE: tl.constexpr = tl.constexpr("cp.async.wait_all; fence.proxy.async.shared::cta; bar.sync 0; mov.b32 $0, 0;")
_SETTLE: tl.constexpr = tl.constexpr("wgmma.wait_group.sync.aligned 0; mov.b32 $0, 0;")
_SETTLED: tl.constexpr = tl.constexpr("wgmma.wait_group.sync.aligned 0; cp.async.wait_all;")


def _word(r: int, q: int) -> str:
    """32 columns of r times 64 rows, by 8q tokens.

    Operands: 4rq sums, the same coming in, then as many each of 8 registers and of the place of x, each 4q times for each r.
    """
    sums = 4 * r * q
    # Where x lies is added to the descriptor's low word, in 16 bytes; its high word is the 512 bytes to the next 8 tokens.
    lines = [
        "{ .reg .b32 a; .reg .b64 d, e; .reg .pred p;",
        f"mov.b32 a, nf4_x; shr.u32 a, a, 4; add.u32 a, a, ${10 * sums}; mov.b64 d, {{a, {512 >> 4}}};",
        f"add.u32 a, a, {256 >> 4}; mov.b64 e, {{a, {512 >> 4}}}; setp.eq.b32 p, 0, 0;",
        "wgmma.fence.sync.aligned;",
    ]
    for half, at in enumerate(("d", "e")):
        for one in range(r):
            out = ", ".join(f"${4 * q * one + index}" for index in range(4 * q))
            weights = ", ".join(f"${(2 + 4 * half + index) * sums + 4 * q * one}" for index in range(4))
            lines.append(
                f"wgmma.mma_async.sync.aligned.m64n{8 * q}k16.f32.bf16.bf16 {{{out}}}, {{{weights}}}, {at}, p, 1, 1, 0;"
            )
    return "\n".join([*lines, "wgmma.commit_group.sync.aligned; }"])


def _tied(sums: int, others: int) -> str:
    """Constraints: sums that come in where they go out, and as many each of other registers."""
    return ",".join(["=f"] * sums + [str(index) for index in range(sums)] + ["r"] * (sums * others))


_WORD12, _WORD14, _WORD18 = tl.constexpr(_word(1, 2)), tl.constexpr(_word(1, 4)), tl.constexpr(_word(1, 8))
_WORD22, _WORD24, _WORD28 = tl.constexpr(_word(2, 2)), tl.constexpr(_word(2, 4)), tl.constexpr(_word(2, 8))
# By sums, 4rq of them: with the nine other registers, and alone.
_TIED8, _TIED16, _TIED32, _TIED64 = (tl.constexpr(_tied(sums, 9)) for sums in (8, 16, 32, 64))
_SAME8, _SAME16, _SAME32, _SAME64 = (tl.constexpr(_tied(sums, 0)) for sums in (8, 16, 32, 64))


@triton.jit
def multiply(
    packed, absmax, groups, nested, table, x, tiles, bank, w0, w1, w2, w3, v0, v1, v2, v3, s0, s1, s2, s3,
    COLUMNS: tl.constexpr, KIND: tl.constexpr, Q: tl.constexpr, q: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """R times 64 rows for each warpgroup, times the first 8q tokens of a block of 8Q; see `product.multiply`.

    Args:
        x: pointer to the block's rows as above, in int32 pairs of bf16.

    Returns:
        [R, 4q, T] float32: of lane 4g + t, at 4n + i, row g + i / 2 * 8 of its tile and token 8n + 2t + i % 2.
    """
    R: tl.constexpr = tiles.shape[0]
    T: tl.constexpr = tiles.shape[2]
    words: tl.constexpr = 4 if Q <= 4 else 16 // Q  # of a stage
    stages: tl.constexpr = COLUMNS // (32 * words)
    sums = tl.zeros((R, 4 * q, T), tl.float32)
    p0, p1, p2, p3, p4, p5, p6, p7 = _decode(w0, v0, s0, s2, False, bank, table, PLAIN)
    _copy(x, 0, stages, words, Q, q, T, PLAIN)
    for chunk in range(COLUMNS // 128):
        # The next tiles are on their way while these are multiplied; the last time, the same once more.
        next_w0, next_w1, next_w2, next_w3, next_v0, next_v1, next_v2, next_v3, next_s0, next_s1, next_s2, next_s3 = fetch(
            packed, absmax, groups, nested, tiles, chunk + 1, COLUMNS, KIND, True, PLAIN
        )
        sums = _multiply(p0, p1, p2, p3, p4, p5, p6, p7, x, chunk, 0, bank, sums, stages, words, Q, q, PLAIN)
        p0, p1, p2, p3, p4, p5, p6, p7 = _decode(w1, v1, s0, s2, False, bank, table, PLAIN)
        sums = _multiply(p0, p1, p2, p3, p4, p5, p6, p7, x, chunk, 1, bank, sums, stages, words, Q, q, PLAIN)
        p0, p1, p2, p3, p4, p5, p6, p7 = _decode(w2, v2, s1, s3, True, bank, table, PLAIN)
        sums = _multiply(p0, p1, p2, p3, p4, p5, p6, p7, x, chunk, 2, bank, sums, stages, words, Q, q, PLAIN)
        p0, p1, p2, p3, p4, p5, p6, p7 = _decode(w3, v3, s1, s3, True, bank, table, PLAIN)
        sums = _multiply(p0, p1, p2, p3, p4, p5, p6, p7, x, chunk, 3, bank, sums, stages, words, Q, q, PLAIN)
        w1, w2, w3, v1, v2, v3 = next_w1, next_w2, next_w3, next_v1, next_v2, next_v3
        s0, s1, s2, s3 = next_s0, next_s1, next_s2, next_s3
        p0, p1, p2, p3, p4, p5, p6, p7 = _decode(next_w0, next_v0, s0, s2, False, bank, table, PLAIN)
        # NOTE: here, and not when the next word begins: what the compiler sees in flight around a loop it serialises.
        _settle(bank, PLAIN)
    return _settled(sums, q, PLAIN)


@triton.jit
def _decode(w, v, row, far, HIGH: tl.constexpr, bank, table, PLAIN: tl.constexpr):
    """Eight registers of 32 columns, as `mma` takes four and four; `row` and `far` are the absmax of rows g and g + 8."""
    p0, p1, p2, p3 = lookup(w, bank, table, PLAIN)
    r0, r1, r2, r3 = lookup(v, bank, table, PLAIN)
    p0, p1, p2, p3 = eight_scaled(p0, p1, p2, p3, row, HIGH, PLAIN)
    r0, r1, r2, r3 = eight_scaled(r0, r1, r2, r3, far, HIGH, PLAIN)
    return p0, r0, p1, r1, p2, r2, p3, r3


@triton.jit
def _multiply(
    p0, p1, p2, p3, p4, p5, p6, p7, x, chunk, WORD: tl.constexpr, bank, sums, STAGES: tl.constexpr, WORDS: tl.constexpr,
    Q: tl.constexpr, q: tl.constexpr, PLAIN: tl.constexpr,
):  # fmt: skip
    """Sets the products of a word going, when those of the word before it are done."""
    if PLAIN:
        return _plainly(p0, p1, p2, p3, p4, p5, p6, p7, x, chunk * 4 + WORD, sums, Q, q)
    if WORD > 0:
        _settle(bank, PLAIN)
    stage = chunk * (4 // WORDS) + WORD // WORDS
    if WORD % WORDS == 0:  # all have the stage's x, and no one reads the one before any longer
        tl.inline_asm_elementwise(_ARRIVE, "=r,r", [bank], dtype=tl.int32, is_pure=False, pack=1)
        _copy(x, stage + 1, STAGES, WORDS, Q, q, p0.shape[2], PLAIN)
    between: tl.constexpr = 8 << 16  # 128 bytes between the two halves of 16 columns
    place = bank * 0 + (stage % 2 * 512 + (WORD % WORDS * (q * 32) + between))
    R: tl.constexpr = p0.shape[0]
    n: tl.constexpr = 4 * R * q
    one: tl.constexpr = _WORD12 if q == 2 else _WORD14 if q == 4 else _WORD18
    two: tl.constexpr = _WORD22 if q == 2 else _WORD24 if q == 4 else _WORD28
    return tl.inline_asm_elementwise(
        one if R == 1 else two, _TIED8 if n == 8 else _TIED16 if n == 16 else _TIED32 if n == 32 else _TIED64,
        [sums, p0, p1, p2, p3, p4, p5, p6, p7, place], dtype=tl.float32, is_pure=False, pack=n,
    )  # fmt: skip


@triton.jit
def _settle(bank, PLAIN: tl.constexpr):
    """Waits for this warpgroup's products."""
    if not PLAIN:
        tl.inline_asm_elementwise(_SETTLE, "=r,r", [bank], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _copy(
    x, stage, STAGES: tl.constexpr, WORDS: tl.constexpr, Q: tl.constexpr, q: tl.constexpr, T: tl.constexpr, PLAIN: tl.constexpr
):  # fmt: skip
    """Sets out for the first q eighths of a stage; beyond the last for the first once more, into the place that is free."""
    if not PLAIN:
        piece = tl.arange(0, WORDS * q * 32 // T)[None, :, None] * T + tl.arange(0, T)[None, None, :]  # of 16 bytes
        word = tl.where(stage < STAGES, stage, 0) * WORDS + piece // (q * 32)
        source = x + word * (Q * 128) + piece % (q * 32) * 4
        to = stage % 2 * 8192 + piece * 16
        tl.inline_asm_elementwise(_COPY, "=r,r,l", [to, source], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def _settled(sums, q: tl.constexpr, PLAIN: tl.constexpr):
    """Sums that all products have been added to."""
    n: tl.constexpr = 4 * sums.shape[0] * q
    if not PLAIN:
        sums = tl.inline_asm_elementwise(
            _SETTLED, _SAME8 if n == 8 else _SAME16 if n == 16 else _SAME32 if n == 32 else _SAME64,
            [sums], dtype=tl.float32, is_pure=False, pack=n,
        )  # fmt: skip
    return sums


@triton.jit
def _plainly(p0, p1, p2, p3, p4, p5, p6, p7, x, word, sums, Q: tl.constexpr, q: tl.constexpr):
    R: tl.constexpr = p0.shape[0]
    T: tl.constexpr = p0.shape[2]
    lane = tl.arange(0, T)[None, None, :] % 32
    here = x + word * (Q * 128) + tl.arange(0, q)[None, :, None] * 128 + lane
    c = tl.zeros((R, q, T), tl.float32)
    d0, d1, d2, d3 = mma(p0, p1, p2, p3, tl.load(here), tl.load(here + 32), c, c, c, c, True)
    d0, d1, d2, d3 = mma(p4, p5, p6, p7, tl.load(here + 64), tl.load(here + 96), d0, d1, d2, d3, True)
    both = tl.permute(tl.join(tl.join(d0, d1), tl.join(d2, d3)), (0, 1, 4, 3, 2))  # [R, q, row, token, T]
    return sums + tl.reshape(both, (R, 4 * q, T))


@triton.jit
def prepare_both(table, THREADS: tl.constexpr, PLAIN: tl.constexpr):
    """Of `fragments`, and the place for x."""
    bank = prepare(table, THREADS, PLAIN)
    if not PLAIN:
        bank = tl.inline_asm_elementwise(_RESERVE, "=r,r", [bank], dtype=tl.int32, is_pure=False, pack=1)
    return bank
