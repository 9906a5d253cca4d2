"""Causal attention over a paged KV pool. Knows blocks and tables; not who owns them.

The pool of a layer is [2, B, N, K, h]: keys, then values. A sequence's token at position p lies in its block table's entry
`p // N`, at offset `p % N`. `plan` sorts a step's sequences into groups, once for all layers; `attend` is the plain twin: any
device, no kernel of ours. More letters:

    D  sequences of a group       M  blocks of its longest context       G  heads a KV head, H / K
    Q  queries of each            C  positions gathered, M * N
"""

from dataclasses import dataclass
from itertools import groupby, pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from zopilot_gpu.model.batch import Batch

MOST_E4M3 = 448.0
_MOST_POSITIONS = {"cpu": 4096, "cuda": 65_536}  # of a group: what a cache holds, and what bounds the memory


@dataclass(frozen=True, slots=True)
class Group:
    """Sequences with equally many queries in this step and contexts of like length, attended to at once."""

    rows: torch.Tensor  # [D * Q] int64, their tokens in the batch
    blocks: torch.Tensor  # [D * M] int64
    padding: torch.Tensor  # [...] int64, which of the D * C positions are beyond a sequence's context
    mask: torch.Tensor  # [D, 1, Q * G, C], added to the scores: 0, or -inf for what a query must not see


def plan(batch: Batch, pool: torch.Tensor, num_heads: int) -> list[Group]:
    """The groups of a step, the same in every layer. `pool` is any layer's."""
    size, group_size = pool.shape[2], num_heads // pool.shape[3]
    num_queries = [end - start for start, end in pairwise(batch.query_starts)]
    order = sorted(range(batch.num_sequences), key=lambda s: (num_queries[s], batch.context_lens[s]), reverse=True)
    groups = []
    for _, alike in groupby(order, key=num_queries.__getitem__):
        left = list(alike)
        while left:
            num_blocks = -(-batch.context_lens[left[0]] // size)
            count = max(1, _MOST_POSITIONS[pool.device.type] // (num_blocks * size))
            groups.append(_group(batch, left[:count], num_blocks, pool, group_size))
            del left[:count]
    return groups


def _group(batch: Batch, sequences: list[int], num_blocks: int, pool: torch.Tensor, group_size: int) -> Group:
    """The group of these sequences, the longest of which has `num_blocks` blocks."""
    device, num_positions = pool.device, num_blocks * pool.shape[2]
    starts = torch.tensor([batch.query_starts[s] for s in sequences], device=device)
    lens = torch.tensor([batch.context_lens[s] for s in sequences], device=device).unsqueeze(1)  # [D, 1]
    num_queries = batch.query_starts[sequences[0] + 1] - batch.query_starts[sequences[0]]
    queries, positions = torch.arange(num_queries, device=device), torch.arange(num_positions, device=device)
    hidden = positions >= (lens - num_queries + 1 + queries).unsqueeze(2)  # [D, Q, C]
    mask = torch.zeros_like(hidden, dtype=torch.float32).masked_fill_(hidden, float("-inf"))
    return Group(
        rows=(starts.unsqueeze(1) + queries).flatten(),
        blocks=batch.block_tables[torch.tensor(sequences, device=device), :num_blocks].flatten(),
        padding=(positions >= lens).flatten().nonzero().squeeze(1),
        mask=mask.repeat_interleave(group_size, dim=1).unsqueeze(1),
    )


def write(pool: torch.Tensor, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Puts the step's keys and values [T, K, h] into their slots [T] of `pool` [2, B, N, K, h]."""
    flat = _as_bytes(pool.flatten(1, 2))
    flat[0].index_copy_(0, slots, _as_bytes(stored(k, pool.dtype)))
    flat[1].index_copy_(0, slots, _as_bytes(stored(v, pool.dtype)))


def stored(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Keys or values as a pool of `dtype` holds them. NOTE: torch's cast to e4m3 makes NaN of what is beyond 448."""
    return values.clamp(-MOST_E4M3, MOST_E4M3).to(dtype) if dtype == torch.float8_e4m3fn else values.to(dtype)


def _as_bytes(pool: torch.Tensor) -> torch.Tensor:
    """E4m3 as bytes: torch has few operations for it."""
    return pool.view(torch.uint8) if pool.dtype == torch.float8_e4m3fn else pool


def attend(q: torch.Tensor, pool: torch.Tensor, groups: list[Group]) -> torch.Tensor:
    """Attention of the step's queries over all that their sequences have in the pool.

    Args:
        q: [T, H, h], rotated.
        pool: [2, B, N, K, h], with the step's own keys and values written.
        groups: the step's plan.

    Returns:
        [T, H, h] in the dtype of `q`.
    """
    out = torch.empty_like(q)
    for group in groups:
        out.index_copy_(0, group.rows, _attend(q[group.rows], pool, group))
    return out


def _attend(q: torch.Tensor, pool: torch.Tensor, group: Group) -> torch.Tensor:
    """One group, in float32: [D * Q, H, h] -> the same. The heads of a KV head are more queries to it: none is repeated."""
    (num_kv_heads, head_dim), (num_sequences, _, rows, num_positions) = pool.shape[3:], group.mask.shape
    shape = (num_sequences, num_positions, num_kv_heads, head_dim)
    k, v = (_gather(part, group).view(shape).transpose(1, 2) for part in pool)  # [D, K, C, h]
    q = q.view(num_sequences, -1, num_kv_heads, q.shape[1] // num_kv_heads, head_dim).transpose(1, 2)  # [D, K, Q, G, h]
    flat = q.float().reshape(num_sequences, num_kv_heads, rows, head_dim)
    out = scaled_dot_product_attention(flat, k, v, attn_mask=group.mask).to(q.dtype)
    return out.view(q.shape).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def _gather(part: torch.Tensor, group: Group) -> torch.Tensor:
    """The group's keys or values [D * C, K, h] out of [B, N, K, h], in float32."""
    found = part.index_select(0, group.blocks).flatten(0, 1).float()
    # NOTE: padding reads what others left in the pool. A weight of zero does not undo their NaN: zeroed, not only masked.
    return found.index_fill_(0, group.padding, 0)
