"""What runs in the next step. Knows sequences and blocks; no tensors, no clock, no threads.

Each step gets a budget of tokens, spent in this order: one token for every sequence that is decoding; chunks of prompts that
have begun; chunks of prompts that wait, first come, first served. When the pool runs dry, the youngest running sequence is
preempted: its blocks are given up and it waits again, at the front, to be computed anew (often from the prefix cache).
"""

from collections import deque
from dataclasses import dataclass

from zopilot_gpu.engine.blocks import BlockPool, chunks_of
from zopilot_gpu.engine.sequence import Sequence


class TooLong(Exception):
    """A sequence could never fit into the pool, even alone."""


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A sequence and how many of its next tokens run now, starting at `num_computed`."""

    sequence: Sequence
    num_tokens: int

    @property
    def completes(self) -> bool:
        """Whether the step ends with all known tokens computed, so that a new one is drawn."""
        return self.sequence.num_computed + self.num_tokens == self.sequence.num_tokens


class Scheduler:
    """Decides the steps of one engine.

    Args:
        pool: the KV blocks.
        max_step_tokens: most tokens in a step.
        max_running: most sequences at once.
    """

    def __init__(self, pool: BlockPool, *, max_step_tokens: int, max_running: int) -> None:
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.num_prefix_hits = 0
        self.num_preemptions = 0
        self._max_step_tokens = max_step_tokens
        self._max_running = max_running

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence in line.

        Raises:
            TooLong: all blocks together could not hold it.
        """
        if self.pool.blocks_for(sequence.max_total_tokens) > self.pool.num_blocks:
            raise TooLong
        self.waiting.append(sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step; empty when nothing can run."""
        budget = self._max_step_tokens
        step: list[Scheduled] = []
        in_order = sorted(self.running, key=_num_missing)  # decodes miss one token; the sort keeps the order of age
        for sequence in in_order:
            count = min(_num_missing(sequence), budget)
            if count and sequence in self.running and self._make_room(sequence, count, step):
                step.append(Scheduled(sequence, count))
                budget -= count
        while self.waiting and budget and len(self.running) < self._max_running:
            admitted = self._admit(self.waiting[0], budget)
            if admitted is None:
                break
            step.append(admitted)
            budget -= admitted.num_tokens
        return step

    def advance(self, step: list[Scheduled]) -> None:
        """Records that a step's tokens are in the pool. Call before new tokens are appended."""
        for item in step:
            sequence = item.sequence
            size, num_sealed = self.pool.block_size, sequence.num_computed // self.pool.block_size
            sequence.num_computed += item.num_tokens
            num_full = sequence.num_computed // size
            if num_full > num_sealed:
                sequence.chunks = chunks_of(sequence.token_ids, size, sequence.salt, sequence.chunks)
                for index in range(num_sealed, num_full):
                    self.pool.seal(sequence.block_ids[index], sequence.chunks[index])

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence, wherever it is; its blocks are free or cached at once. A second call does nothing."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def check(self) -> None:
        """See `BlockPool.check`."""
        self.pool.check(sequence.block_ids for sequence in self.running)

    def reset(self) -> None:
        """Drops every sequence and all that is cached: what is left to do when the map of blocks is not to be trusted."""
        self.waiting.clear()
        self.running.clear()
        self.pool.reset()

    def _admit(self, sequence: Sequence, budget: int) -> Scheduled | None:
        """Starts a waiting sequence when all that it knows fits, so that it is not preempted in its prefill."""
        size, tokens = self.pool.block_size, sequence.token_ids
        sequence.chunks = chunks_of(tokens, size, sequence.salt, sequence.chunks)
        shared = self.pool.share_prefix(sequence.chunks[: (len(tokens) - 1) // size])  # one token is left to compute
        missing = self.pool.blocks_for(len(tokens)) - len(shared)
        if missing > self.pool.num_available:
            self.pool.free(shared)
            return None
        self.waiting.popleft()
        self.running.append(sequence)
        sequence.num_computed = len(shared) * size
        if not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
            self.num_prefix_hits += bool(shared)
        sequence.block_ids = shared + self.pool.allocate(missing)
        return Scheduled(sequence, min(_num_missing(sequence), budget))

    def _make_room(self, sequence: Sequence, count: int, step: list[Scheduled]) -> bool:
        """Blocks for the next `count` tokens, taken from the youngest if need be; False when that was `sequence` itself."""
        missing = self.pool.blocks_for(sequence.num_computed + count) - len(sequence.block_ids)
        while missing > self.pool.num_available:
            youngest = self.running[-1]
            self._preempt(youngest)
            step[:] = [item for item in step if item.sequence is not youngest]
            if youngest is sequence:
                return False
        if missing > 0:
            sequence.block_ids += self.pool.allocate(missing)
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(sequence)

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_computed = 0


def _num_missing(sequence: Sequence) -> int:
    return sequence.num_tokens - sequence.num_computed
