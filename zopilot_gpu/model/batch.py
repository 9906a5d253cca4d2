"""One step's input: tokens of many sequences laid end to end, prefill chunks and decodes together.

    token_ids   | prompt chunk of A      | d | d | prompt chunk of D |      T
    sequence    0                        1   2   3                          S
    query_starts 0                       7   8   9                   15     S + 1

A token's *position* is its place in its own sequence; its *slot* is its place in the KV pool, `block * N + offset`.
`context_lens` counts the tokens that a sequence has in the pool once this step has written its own.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Everything a forward pass needs to know of its tokens. Lists are on the host, tensors on the model's device."""

    token_ids: torch.Tensor  # [T] int64
    positions: torch.Tensor  # [T] int64
    slots: torch.Tensor  # [T] int64
    query_starts: list[int]  # S + 1, ascending, from 0 to T
    context_lens: list[int]  # S
    block_tables: torch.Tensor  # [S, most blocks of a sequence] int; what is beyond a sequence's own is never read
    logit_rows: torch.Tensor  # [R] int64, the tokens whose successors are asked for
    # [S, 4] int32 where every sequence has one token: its sequence, its row, 1, its position. Then all that kernels need is on
    # the device, and a CUDA graph can hold the step: the lists above are for those who compute on the host.
    runs: torch.Tensor | None = None

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.context_lens)
