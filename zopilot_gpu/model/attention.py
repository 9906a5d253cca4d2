"""Causal attention over a paged KV pool. Knows blocks and tables; not who owns them.

The pool of a layer is [2, B, N, K, h]: keys, then values. A sequence's token at position p lies in its block table's entry
`p // N`, at offset `p % N`. `attend` is the plain twin: any device, no kernel of ours.
"""

from itertools import pairwise

import torch
from torch.nn.functional import scaled_dot_product_attention

from zopilot_gpu.model.batch import Batch


def write(pool: torch.Tensor, slots: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Puts the step's keys and values [T, K, h] into their slots [T] of `pool` [2, B, N, K, h]."""
    flat = pool.flatten(1, 2)
    flat[0].index_copy_(0, slots, k)
    flat[1].index_copy_(0, slots, v)


def attend(q: torch.Tensor, pool: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Attention of the step's queries over all that their sequences have in the pool.

    Args:
        q: [T, H, h], rotated.
        pool: [2, B, N, K, h], with the step's own keys and values written.
        batch: whose tokens they are.

    Returns:
        [T, H, h] in the dtype of `q`.
    """
    out = torch.empty_like(q)
    starts = batch.query_starts
    lengths = [end - start for start, end in pairwise(starts)]
    decoding = [s for s, length in enumerate(lengths) if length == 1]
    if decoding:
        singles = torch.tensor([starts[s] for s in decoding], device=q.device)
        out[singles] = _attend_single(q[singles], pool, batch, decoding)
    for s, length in enumerate(lengths):
        if length > 1:
            rows = slice(starts[s], starts[s] + length)
            out[rows] = _attend_chunk(q[rows], pool, batch, s)
    return out


def _attend_single(q: torch.Tensor, pool: torch.Tensor, batch: Batch, sequences: list[int]) -> torch.Tensor:
    """One query a sequence, all sequences at once, padded to the longest context: [D, H, h] -> [D, H, h]."""
    lens = torch.tensor([batch.context_lens[s] for s in sequences], device=q.device)
    positions = torch.arange(max(batch.context_lens[s] for s in sequences), device=q.device)
    tables = batch.block_tables[torch.tensor(sequences, device=q.device)]
    mask = positions < lens.unsqueeze(1)  # [D, C]
    # NOTE: padding reads what others left in the pool. A weight of zero does not undo their NaN: zeroed, not only masked.
    k, v = (part.masked_fill(~mask[:, :, None, None], 0) for part in _gather(pool, tables, positions))  # [D, C, K, h]
    return _weigh(q.unsqueeze(2), k, v, mask[:, None, None]).squeeze(2)


def _attend_chunk(q: torch.Tensor, pool: torch.Tensor, batch: Batch, sequence: int) -> torch.Tensor:
    """The last queries of one sequence: [Q, H, h] -> [Q, H, h]."""
    context = batch.context_lens[sequence]
    positions = torch.arange(context, device=q.device)
    k, v = _gather(pool, batch.block_tables[sequence : sequence + 1], positions)  # [1, C, K, h]
    mask = positions <= positions[context - len(q) :].unsqueeze(1)  # [Q, C]
    return _weigh(q.transpose(0, 1).unsqueeze(0), k, v, mask).squeeze(0).transpose(0, 1)


def _weigh(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(h)) v in float32: q [D, H, Q, h], k and v [D, C, K, h], mask to [D, H, Q, C] -> [D, H, Q, h]."""
    wide = (q.float(), k.float().transpose(1, 2), v.float().transpose(1, 2))
    return scaled_dot_product_attention(*wide, attn_mask=mask, enable_gqa=True).to(q.dtype)


def _gather(pool: torch.Tensor, tables: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of `positions` [C] through block `tables` [D, M]: twice [D, C, K, h]."""
    size = pool.shape[2]
    blocks = tables[:, positions // size]  # [D, C]
    offsets = (positions % size).expand_as(blocks)
    return pool[0, blocks, offsets], pool[1, blocks, offsets]
