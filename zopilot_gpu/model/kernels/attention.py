"""Causal attention over the paged pool: decode, its context split among programs, and prefill in chunks.

A *run* is up to 16 tokens of one sequence that lie end to end: `runs [n, 4]` int32 has its sequence, its first row of q, its
number of tokens and the position of the first. A decode is a run of one. Heads that share a KV head are rows of one product.
Of a pool in float8_e4m3fn the keys and values become fp16, which is exact, and so do q and the shares.
"""

from functools import cache

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.kernels import INTERPRETED
from zopilot_gpu.model.kernels.chained import chains, wait_for_before
from zopilot_gpu.model.kernels.e4m3 import from_e4m3, reading

RUN = 16  # tokens of a run in prefill
SPLIT = 64  # positions of a split in decode, at least
MOST_SPLIT = 512  # likewise at most, where so many splits do: one long context must not wait for a single program
MOST_SPLITS = 32
_FEW_POSITIONS = 128  # of a split, for which two warps are enough; four are 13% faster at one context of 16,384
_PROGRAMS = 10  # of a decode for each multiprocessor: twice as many as run at once, for tables are wider than contexts


def attend(
    q: torch.Tensor, pool: torch.Tensor, tables: torch.Tensor, runs: torch.Tensor, out: torch.Tensor, tokens: int
) -> None:
    """Attention of the tokens of `runs`, at most `tokens` each, over all up to their own: into their rows of `out`.

    Args:
        q: [T, H, h], rotated; any stride between tokens.
        pool: [2, B, N, K, h], with the step's own keys and values written.
        tables: [S, blocks] int32, on the device as `runs` is.
        runs: [n, 4], as above.
        out: [T, H, h].
        tokens: 1 or `RUN`.
    """
    (_, num_heads, width), num_kv_heads = q.shape, pool.shape[3]
    group = num_heads // num_kv_heads
    positions = tables.shape[1] * pool.shape[2]
    split = split_of(positions, len(runs) * num_kv_heads, _multiprocessors(q.device))
    splits = -(-positions // split) if tokens == 1 else 1
    rows = max(16, triton.next_power_of_2(tokens * group))
    in_bytes = pool.dtype == torch.float8_e4m3fn  # whose conversion takes registers: with 64 positions at once, some spill
    most = positions if INTERPRETED else 0  # the interpreter counts to constants only
    sums, best = out, out
    if splits > 1:
        sums = torch.empty(splits, len(runs), num_heads, width, dtype=torch.float32, device=q.device)
        best = torch.empty(splits, len(runs), num_heads, 2, dtype=torch.float32, device=q.device)
    attend_kernel[(len(runs), num_kv_heads, splits)](
        q, as_bytes(pool), tables, runs, out, sums, best, width**-0.5, q.stride(0), tables.stride(0), pool.stride(0), len(runs),
        split, num_heads, num_kv_heads, width, triton.next_power_of_2(width), pool.shape[2], group, rows,
        32 if in_bytes else 64, splits > 1, most, reading(q.device) if in_bytes else "",
        num_warps=4 if rows > 16 or (split > _FEW_POSITIONS and not in_bytes) else 2,
        CHAINED=chains(q.device),
    )  # fmt: skip
    if splits > 1:
        merge_kernel[(len(runs), num_heads)](
            sums, best, runs, out, len(runs), split, num_heads, width, triton.next_power_of_2(width), MOST_SPLITS,
            num_warps=4, CHAINED=chains(q.device),
        )  # fmt: skip


def split_of(positions: int, programs: int, multiprocessors: int) -> int:
    """Positions of a split: so many splits that programs are enough for the card, and no more: each is summed up again."""
    wanted = max(1, min(MOST_SPLITS, _PROGRAMS * multiprocessors // programs))
    split: int = min(MOST_SPLIT, triton.next_power_of_2(-(-positions // wanted)))
    least: int = triton.next_power_of_2(-(-positions // MOST_SPLITS))
    return max(SPLIT, split, least)


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return MOST_SPLITS  # the interpreter's
    num: int = torch.cuda.get_device_properties(device).multi_processor_count
    return num


def as_bytes(pool: torch.Tensor) -> torch.Tensor:
    """What a kernel takes of a pool: bytes of e4m3 as such."""
    return pool.view(torch.uint8) if pool.dtype == torch.float8_e4m3fn else pool


@triton.jit
def attend_kernel(
    q, pool, tables, runs, out, sums, best, scale, q_stride, table_stride, value_offset, num_runs, split_size,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SIZE: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, POSITIONS: tl.constexpr, PARTIAL: tl.constexpr,
    MOST: tl.constexpr, E4M3: tl.constexpr, CHAINED: tl.constexpr = False,
):  # fmt: skip
    """One run, one KV head, one split. Rows are (token, head of the group); those beyond the run are computed and not kept."""
    run, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    sequence, first = tl.load(runs + run * 4), tl.load(runs + run * 4 + 1)
    count, position = tl.load(runs + run * 4 + 2), tl.load(runs + run * 4 + 3)
    begin, end = split * split_size, position + count
    if begin >= end:
        return
    if PARTIAL:
        end = tl.minimum(end, begin + split_size)
    span = end - begin
    row, column = tl.arange(0, ROWS), tl.arange(0, PADDED)
    token, head = row // GROUP, kv_head * GROUP + row % GROUP
    mine, inside = token < count, column < WIDTH
    keep = mine[:, None] & inside[None, :]
    wait_for_before(CHAINED)
    asked = tl.load(q + (first + token)[:, None] * q_stride + head[:, None] * WIDTH + column[None, :], mask=keep, other=0.0)
    if E4M3 == "cast" or E4M3 == "asm":  # noqa: PLR1714  (Triton knows no sets)
        asked = asked.to(tl.float16)
    most = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, PADDED), tl.float32)
    for step in range(0, MOST if MOST else span, POSITIONS):
        place = begin + step + tl.arange(0, POSITIONS)
        there = place < end
        block = tl.load(tables + sequence * table_stride + place // SIZE, mask=there, other=0).to(tl.int64)
        at = ((block * SIZE + place % SIZE) * KV_HEADS + kv_head) * WIDTH
        # NOTE: what lies beyond is others'. A weight of zero does not undo their NaN: not read, rather than only masked.
        known = there[:, None] & inside[None, :]
        k = _load(pool + at[:, None] + column[None, :], known, E4M3)
        scores = tl.dot(asked, tl.trans(k), input_precision="ieee") * (scale * 1.44269504)
        seen = there[None, :] & (place[None, :] <= (position + token)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp2(scores - safe[:, None])
        fade = tl.exp2(most - safe)
        v = _load(pool + value_offset + at[:, None] + column[None, :], known, E4M3)
        acc = acc * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        total = total * fade + tl.sum(shares, axis=1)
        most = higher
    if PARTIAL:
        at = (split * num_runs + run) * HEADS + head
        tl.store(sums + at[:, None] * WIDTH + column[None, :], acc, mask=keep)
        tl.store(best + at * 2, most, mask=mine)
        tl.store(best + at * 2 + 1, total, mask=mine)
    else:
        to = ((first + token) * HEADS + head)[:, None] * WIDTH + column[None, :]
        tl.store(out + to, (acc / tl.where(mine, total, 1.0)[:, None]).to(out.dtype.element_ty), mask=keep)


@triton.jit
def _load(pointers, mask, E4M3: tl.constexpr):
    """Keys or values; zeros where the mask does not hold. `E4M3` is of `e4m3.reading`, or empty."""
    found = tl.load(pointers, mask=mask, other=0)
    if E4M3 != "":
        found = from_e4m3(found, E4M3)
    return found


@triton.jit
def merge_kernel(
    sums, best, runs, out, num_runs, split_size,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, SPLITS: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """The splits of a decode made one."""
    run, head = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(runs + run * 4 + 1), tl.load(runs + run * 4 + 3) + 1
    split, column = tl.arange(0, SPLITS), tl.arange(0, PADDED)
    there = split * split_size < end
    at = (split * num_runs + run) * HEADS + head
    wait_for_before(CHAINED)
    most = tl.load(best + at * 2, mask=there, other=float("-inf"))
    share = tl.exp2(most - tl.max(most, axis=0))
    total = tl.sum(share * tl.load(best + at * 2 + 1, mask=there, other=0.0), axis=0)
    keep = there[:, None] & (column < WIDTH)[None, :]
    parts = tl.load(sums + at[:, None] * WIDTH + column[None, :], mask=keep, other=0.0)
    value = tl.sum(parts * share[:, None], axis=0) / total
    tl.store(out + (first * HEADS + head) * WIDTH + column, value.to(out.dtype.element_ty), mask=column < WIDTH)
