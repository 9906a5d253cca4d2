"""Which tokens go to which experts, decided and sorted on the device. Knows logits of the router; no count reaches the host.

The choice is total: whatever bits the logits have, each token gets k different experts, so that every assignment has a slot and
no block reaches beyond. A logit that is no number counts as the largest, -inf as the least finite number; where the softmax of
a token has no value (NaN, +inf or nothing but -inf) its shares are NaN, and only what it becomes itself is spoilt.

order   [T * k] int32       assignments (token * k + place) in the order of their experts: a *slot* is a place in it
blocks  [blocks, 3] int32   expert, first slot and number of slots, at most `size` of them; expert -1 is a block of none
shares  [T * k] float32     of each assignment
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from zopilot_gpu.model.kernels.chained import chains, wait_for_before

MOST_TOKENS = 2048  # that one program sorts
LEAST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # of float32's finite numbers


@dataclass(frozen=True, slots=True)
class Routing:
    """The plan of a step's tokens for one layer."""

    order: torch.Tensor
    blocks: torch.Tensor
    shares: torch.Tensor

    @property
    def num_assignments(self) -> int:
        """Of all tokens."""
        return len(self.order)


@dataclass(frozen=True, slots=True)
class Picked:
    """The plan of a single token: none. Each program picks its expert out of the logits [1, E] itself, a launch less."""

    logits: torch.Tensor
    top_k: int

    @property
    def num_assignments(self) -> int:
        """Of the one token."""
        return self.top_k


def most_blocks(num_assignments: int, num_experts: int, size: int) -> int:
    """Blocks that any distribution of assignments needs at most."""
    return min(num_assignments, (num_assignments + min(num_experts, num_assignments) * (size - 1)) // size)


def route(logits: torch.Tensor, top_k: int, size: int) -> Routing:
    """The routing of tokens with these logits [T, E], T up to `MOST_TOKENS`; shares are rounded to the dtype of `logits`."""
    num_tokens, num_experts = logits.shape
    count = num_tokens * top_k
    num_blocks = most_blocks(count, num_experts, size)
    device = logits.device
    routing = Routing(
        torch.empty(count, dtype=torch.int32, device=device),
        torch.empty(num_blocks, 3, dtype=torch.int32, device=device),
        torch.empty(count, device=device),
    )
    route_kernel[(1,)](
        logits, routing.order, routing.blocks, routing.shares, num_tokens, num_blocks, num_experts, top_k, size,
        **compiled_for(num_tokens, num_experts, top_k, size), CHAINED=chains(device),
    )  # fmt: skip
    return routing


def compiled_for(num_tokens: int, num_experts: int, top_k: int, size: int) -> dict[str, int]:
    """What the kernel is compiled for. Of the tokens, their next power of two decides: of others, `warmup` would not know."""
    tokens = max(16, triton.next_power_of_2(num_tokens))
    return {
        "TOKENS": tokens,
        "EXPERTS": triton.next_power_of_2(num_experts),
        "PLACES": triton.next_power_of_2(top_k),
        "BLOCKS": max(2, triton.next_power_of_2(most_blocks(tokens * top_k, num_experts, size))),
        "num_warps": max(1, min(8, tokens * top_k // 64)),
    }


def plain_route(logits: torch.Tensor, top_k: int, size: int) -> Routing:
    """The twin of `route`."""
    known = logits.float().nan_to_num(nan=float("inf"), posinf=float("inf"), neginf=LEAST.value)
    chosen = known.argsort(dim=-1, descending=True, stable=True)[:, :top_k]
    likes = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(1, chosen)
    shares = (likes / likes.sum(dim=-1, keepdim=True)).to(logits.dtype).float()
    order = chosen.flatten().argsort(stable=True)
    blocks, start = [], 0
    for expert, count in enumerate(chosen.flatten().bincount(minlength=logits.shape[1]).tolist()):
        blocks += [[expert, start + done, min(size, count - done)] for done in range(0, count, size)]
        start += count
    blocks += [[-1, 0, 0]] * (most_blocks(chosen.numel(), logits.shape[1], size) - len(blocks))
    return Routing(order.int(), torch.tensor(blocks, dtype=torch.int32, device=logits.device), shares.flatten())


@triton.jit(do_not_specialize=["num_tokens", "num_blocks"])
def route_kernel(
    logits, order, blocks, shares, num_tokens, num_blocks,
    num_experts: tl.constexpr, TOP_K: tl.constexpr, SIZE: tl.constexpr,
    TOKENS: tl.constexpr, EXPERTS: tl.constexpr, PLACES: tl.constexpr, BLOCKS: tl.constexpr,
    CHAINED: tl.constexpr = False,
):  # fmt: skip
    """See `route`. One program; capitals are the next powers of two."""
    token, expert, place = tl.arange(0, TOKENS), tl.arange(0, EXPERTS), tl.arange(0, PLACES)
    inside = (token < num_tokens)[:, None]
    left = logits + tl.minimum(token, num_tokens - 1)[:, None] * num_experts + expert[None, :]
    wait_for_before(CHAINED)
    left = _ranked(tl.load(left, mask=(expert < num_experts)[None, :], other=0.0))
    left = tl.where((expert < num_experts)[None, :], left, float("-inf"))  # as is an expert that is taken
    best = tl.max(left, axis=1)
    has_softmax = (best > LEAST) & (best < float("inf"))
    chosen = tl.full((TOKENS, PLACES), -1, tl.int32)
    likes = tl.zeros((TOKENS, PLACES), tl.float32)
    for index in tl.static_range(TOP_K):
        found = tl.argmax(left, axis=1)[:, None]
        like = tl.exp(tl.max(left, axis=1) - best)[:, None]
        here = (place == index)[None, :]
        chosen, likes = tl.where(here & inside, found, chosen), tl.where(here, like, likes)
        left = tl.where(expert[None, :] == found, float("-inf"), left)
    likes = tl.where(has_softmax[:, None], likes / tl.sum(likes, axis=1)[:, None], float("nan"))
    likes = likes.to(logits.dtype.element_ty).to(tl.float32)
    assignment = token[:, None] * TOP_K + place[None, :]
    tl.store(shares + assignment, likes, mask=inside & (place < TOP_K)[None, :])

    chosen, assignment = tl.reshape(chosen, (TOKENS * PLACES,)), tl.reshape(assignment, (TOKENS * PLACES,))
    block = tl.arange(0, BLOCKS)
    start, done = 0, 0
    for one in range(num_experts):
        hit = (chosen == one).to(tl.int32)
        count = tl.sum(hit, axis=0)
        tl.store(order + start + tl.cumsum(hit, axis=0) - 1, assignment, mask=hit == 1)
        num = (count + SIZE - 1) // SIZE
        mine, skipped = (block >= done) & (block < done + num), (block - done) * SIZE
        tl.store(blocks + block * 3, tl.zeros_like(block) + one, mask=mine)
        tl.store(blocks + block * 3 + 1, start + skipped, mask=mine)
        tl.store(blocks + block * 3 + 2, tl.minimum(count - skipped, SIZE), mask=mine)
        start += count
        done += num
    empty = (block >= done) & (block < num_blocks)
    tl.store(blocks + block * 3, tl.full((BLOCKS,), -1, tl.int32), mask=empty)
    tl.store(blocks + block * 3 + 1, tl.zeros_like(block), mask=empty)
    tl.store(blocks + block * 3 + 2, tl.zeros_like(block), mask=empty)


@triton.jit
def _ranked(logits):
    """Logits as numbers with a maximum. NOTE: a row of NaN once had none, and blocks read what nobody had written."""
    left = logits.to(tl.float32)
    left = tl.where(left < float("inf"), left, float("inf"))
    return tl.where(left > LEAST, left, LEAST)


@triton.jit
def block_at(blocks, place):
    """Expert, first slot and number of slots. Past L1: see `chained`."""
    at = blocks + place * 3
    expert, start = tl.load(at, cache_modifier=".cg"), tl.load(at + 1, cache_modifier=".cg")
    return expert, start, tl.load(at + 2, cache_modifier=".cg")


@triton.jit
def pick(logits, place, NUM_EXPERTS: tl.constexpr, EXPERTS: tl.constexpr, TOP_K: tl.constexpr):
    """Of a single token: the expert at `place` among its k, its share; as `route_kernel` has them. Past L1: see `chained`."""
    expert = tl.arange(0, EXPERTS)
    left = _ranked(tl.load(logits + expert, mask=expert < NUM_EXPERTS, other=0.0, cache_modifier=".cg"))
    left = tl.where(expert < NUM_EXPERTS, left, float("-inf"))
    best = tl.max(left, axis=0)
    chosen, mine, total = place * 0, best * 0.0, best * 0.0
    for index in tl.static_range(TOP_K):
        found = tl.argmax(left, axis=0)
        like = tl.exp(tl.max(left, axis=0) - best)
        total += like
        chosen, mine = tl.where(place == index, found, chosen), tl.where(place == index, like, mine)
        left = tl.where(expert == found, float("-inf"), left)
    share = tl.where((best > LEAST) & (best < float("inf")), mine / total, float("nan"))
    return chosen, share.to(logits.dtype.element_ty).to(tl.float32)
