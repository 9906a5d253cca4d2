"""Draws the next token of every row in one launch, for a GPU. Knows what its twin `sampler` knows, and no sequence.

One program a row, so that nothing of a row depends on another. Logits become keys, integers in the order of the logits. A
token's *place* has its key above and below it its id, counted from the last: of places no two are equal.

    logits ─▶ penalty, mask ─▶ keys, each slot's highest     one pass; a slot stands for every 4,096th token
    a bound that as many slots reach as top-k wants          bisected over 4,096 numbers in registers
    which places reach it: top-k, and hardly more            two passes over the keys
    these in order, their shares, top-p, the draw            [256]

A bound that more than 256 places reach, as where most logits are equal, is bisected further over all keys: that costs passes,
not exactness. A row that is greedy, or has one token to choose from, takes the first key that equals the highest.

NOTE: no tensor has fewer elements than the program has threads but what is loaded to be compared with each; none is reshaped,
and Triton's sort, which reshapes, is not used: see decision 9.
"""

import torch
import triton
import triton.language as tl

from zopilot_gpu.engine.sampler import MOST_FEW
from zopilot_gpu.engine.seats import Seated

ID_BITS: tl.constexpr = tl.constexpr(18)
IDS: tl.constexpr = tl.constexpr(2**18 - 1)  # x ^ IDS counts ids from the last one
FEW: tl.constexpr = tl.constexpr(256)  # places that are ordered; also the threads of a program
ROWS: tl.constexpr = tl.constexpr(256)  # of a tile, of a thread each
COLUMNS: tl.constexpr = tl.constexpr(16)  # NOTE: with 32 the accumulators of a thread are spilled
TILE: tl.constexpr = tl.constexpr(4096)
LEAST: tl.constexpr = tl.constexpr(-(2**31))  # beyond the vocabulary
NOTHING: tl.constexpr = tl.constexpr(-2139095041)  # the key of -inf
_WARPS = FEW.value // 32


def draw(
    logits: torch.Tensor,
    parameters: torch.Tensor,
    masks: torch.Tensor | None = None,
    seated: Seated | None = None,
) -> torch.Tensor:
    """One token a row.

    Args:
        logits: [R, V] float32, of a vocabulary that `draws.choose_kernel` allows.
        parameters: [NUM_PARAMETERS, R] float32, see `sampler.parameters`; the repetition penalty is for `seated` rows.
        masks: [R, ceil(V / 32)] int32, see `grammar`; None allows everything.
        seated: where given, tokens that a seat has seen are penalised, and the one drawn is noted there.

    Returns:
        [R] int64; of a row that draws from many its likeliest. A seated row whose logits are no numbers gets -1, and its seat
        some token.
    """
    num_rows, vocab_size = logits.shape
    device = logits.device
    keys = torch.empty(num_rows, -(-vocab_size // TILE.value) * TILE.value, dtype=torch.int32, device=device)
    places = torch.empty(num_rows, 2, FEW.value, dtype=torch.int64, device=device)
    drawn = torch.empty(num_rows, dtype=torch.int64, device=device)
    homes, seen, last = (drawn, keys, drawn) if seated is None else (seated.homes, seated.seen.view(torch.uint8), seated.last)
    sample_kernel[(num_rows,)](
        logits, keys if masks is None else masks, parameters, homes, seen, last, keys, places, drawn, parameters.stride(0),
        vocab_size, MOST_FEW, masks is not None, seated is not None, num_warps=_WARPS,
    )  # fmt: skip
    return drawn


@triton.jit(do_not_specialize=["stride"])
def sample_kernel(
    logits, masks, parameters, homes, seen, last, keys, places, drawn, stride,
    VOCAB: tl.constexpr, MOST: tl.constexpr, MASKED: tl.constexpr, SEATED: tl.constexpr,
):  # fmt: skip
    """One row. The element of a tile [ROWS, COLUMNS] is a slot."""
    row = tl.program_id(0)
    parameters += row
    temperature, top_k = tl.load(parameters), tl.load(parameters + stride)
    home, penalty = row.to(tl.int64), temperature * 0 + 1
    if SEATED:
        home, penalty = tl.load(homes + row), tl.load(parameters + 3 * stride)
        seen += home * VOCAB
    num_seen = tl.where(penalty != 1, VOCAB, 0)  # none is looked at where that changes nothing
    logits += row * VOCAB
    masks += row * ((VOCAB + 31) // 32)
    keys += row * ((VOCAB + TILE - 1) // TILE * TILE)
    slot = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    largest = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    highest = tl.full((ROWS, COLUMNS), LEAST, tl.int32)
    finite = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, VOCAB, TILE):
        inside = start + slot < VOCAB
        logit = tl.load(logits + start + slot, mask=inside, other=float("-inf"))
        largest = tl.maximum(largest, tl.where(logit == logit, logit, float("inf")))  # noqa: PLR0124  (NaN is not)
        if SEATED:
            known = tl.load(seen + start + slot, mask=start + slot < num_seen, other=0)
            worse = tl.where(logit > 0, tl.div_rn(logit, tl.zeros_like(logit) + penalty), logit * penalty)
            logit = tl.where(known != 0, worse, logit)
        if MASKED:
            begin = start + tl.arange(0, ROWS) * COLUMNS
            words = tl.load(masks + begin // 32, mask=begin < VOCAB, other=0)
            logit = tl.where((words[:, None] >> slot % 32) & 1 == 1, logit, float("-inf"))
        finite += (logit > float("-inf")).to(tl.int32)
        key = tl.where(inside, _turned(tl.where(logit == 0, 0.0, logit).to(tl.int32, bitcast=True)), LEAST)
        highest = tl.maximum(highest, key)
        tl.store(keys + start + slot, key)
    tl.debug_barrier()
    most = tl.max(tl.max(largest, axis=1), axis=0)
    healthy = (most > float("-inf")) & (most < float("inf"))
    best = tl.max(tl.max(highest, axis=1), axis=0)
    need = tl.minimum(top_k, _sum(finite).to(tl.float32)).to(tl.int32)
    token = best
    if healthy & (temperature > 0) & (top_k <= MOST) & (need > 1):
        token = _drawn(keys, places + row * (2 * FEW), slot, highest, best, need, parameters, stride, VOCAB)
    else:
        token = _first(keys, slot, best, VOCAB)
    if SEATED:
        tl.store(drawn + row, tl.where(healthy, token, -1).to(tl.int64))
        tl.store(last + home, token.to(tl.int64))
        if penalty != 1:  # NOTE: not a mask: a scalar one that is False is none to Triton 3.2's interpreter
            tl.store(seen + token, (token * 0 + 1).to(tl.uint8))
    else:
        tl.store(drawn + row, token.to(tl.int64))


@triton.jit
def _first(keys, slot, best, VOCAB: tl.constexpr):
    """The lowest id with the key `best`."""
    found = tl.full((ROWS, COLUMNS), VOCAB, tl.int32)
    for start in range(0, VOCAB, TILE):
        found = tl.minimum(found, tl.where(tl.load(keys + start + slot) == best, start + slot, VOCAB))
    return tl.min(tl.min(found, axis=1), axis=0)


@triton.jit
def _drawn(keys, places, slot, highest, best, need, parameters, stride, VOCAB: tl.constexpr):
    """The token drawn from the `need` likeliest, of which there are at least two."""
    low, count, counts = _bound(keys, slot, highest, best, need, VOCAB)
    of_rows = tl.sum(counts, axis=1)
    at = (tl.cumsum(of_rows, axis=0) - of_rows)[:, None] + tl.cumsum(counts, axis=1) - counts
    for start in range(0, VOCAB, TILE):
        place = _place(keys, start, slot)
        tl.store(places + at, place, mask=place >= low)
        at += (place >= low).to(tl.int32)
    tl.debug_barrier()
    rank = tl.arange(0, FEW)
    found = tl.load(places + rank, mask=rank < count, other=-(2**63))
    before, done = tl.zeros((FEW, 32), tl.int32), count * 0
    while done < count:  # each with 32 others
        other = done + tl.arange(0, 32)
        before += (tl.load(places + other, mask=other < count, other=-(2**63))[None, :] > found[:, None]).to(tl.int32)
        done += 32
    tl.store(places + FEW + tl.sum(before, axis=1), found, mask=rank < count)
    tl.debug_barrier()
    found = tl.load(places + FEW + rank, mask=rank < need, other=0)

    temperature, top_p, where = tl.load(parameters), tl.load(parameters + 2 * stride), tl.load(parameters + 4 * stride)
    logit = _turned((found >> ID_BITS).to(tl.int32)).to(tl.float32, bitcast=True)
    logit = tl.div_rn(logit, tl.zeros_like(logit) + tl.maximum(temperature, 1e-5))
    logit = tl.where(rank < need, logit, float("-inf"))
    share = tl.exp(logit - tl.max(logit, axis=0)).to(tl.float64)  # of the first, which cancels out
    reached = tl.cumsum(share, axis=0)
    kept = reached - share < top_p.to(tl.float64) * tl.max(reached, axis=0)
    end = tl.maximum(tl.sum((kept & (rank < need)).to(tl.int32), axis=0) - 1, 0)
    target = where.to(tl.float64) * tl.max(tl.where(rank == end, reached, 0.0), axis=0)
    index = tl.minimum(tl.sum((reached <= target).to(tl.int32), axis=0), end)
    below = tl.max(tl.where(rank == index, found & IDS, 0), axis=0)
    return (below ^ IDS).to(tl.int32)


@triton.jit
def _bound(keys, slot, highest, best, need, VOCAB: tl.constexpr):
    """A place that at least `need` and at most FEW tokens reach; how many do, and how many of each slot."""
    low, high = (tl.minimum(best, NOTHING) + 1).to(tl.int64) << ID_BITS, (best.to(tl.int64) + 1) << ID_BITS
    for _ in range(16):  # slots' highest that reach it are so many tokens at least, and hardly more
        middle = (((low + high) >> 1) >> ID_BITS).to(tl.int32)
        enough = _sum((highest >= middle).to(tl.int32)) >= need
        low = tl.where(enough, middle.to(tl.int64) << ID_BITS, low)
        high = tl.where(enough, high, middle.to(tl.int64) << ID_BITS)
    counts = _reaching(keys, slot, low, VOCAB)
    count = _sum(counts)
    high = (best.to(tl.int64) + 1) << ID_BITS
    while count > FEW:
        middle = (low + high) >> 1
        fewer = _reaching(keys, slot, middle, VOCAB)
        enough = _sum(fewer) >= need
        low, high = tl.where(enough, middle, low), tl.where(enough, high, middle)
        counts = tl.where(enough, fewer, counts)
        count = _sum(counts)
    return low, count, counts


@triton.jit
def _reaching(keys, slot, low, VOCAB: tl.constexpr):
    """How many tokens of each slot reach `low`."""
    counts = tl.zeros((ROWS, COLUMNS), tl.int32)
    for start in range(0, VOCAB, TILE):
        counts += (_place(keys, start, slot) >= low).to(tl.int32)
    return counts


@triton.jit
def _place(keys, start, slot):
    """The key above, the id counted from the last below: the lower id of equals is the higher place."""
    return (tl.load(keys + start + slot).to(tl.int64) << ID_BITS) + ((start + slot) ^ IDS)


@triton.jit
def _turned(bits):
    """A float's bits as a signed integer in the order of floats, and back."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _sum(tile):
    return tl.sum(tl.sum(tile, axis=1), axis=0)
