"""What runs in the next step. Knows sequences and blocks; no tensors, no clock, no threads.

Each step gets a budget of tokens, spent in this order: one token for every sequence that is decoding; chunks of prompts that
have begun; chunks of prompts that wait, first come, first served. When the pool runs dry, the youngest running sequence is
preempted: its blocks are given up and it waits again, at the front, to be computed anew (often from the prefix cache).

Owners (a sequence's salt) are kept from starving each other, without a price for one who is alone:

    waiting line   the next is of the owner with the fewest running
    slots, blocks  who holds less than a share and finds no room gets it from who holds more, by preemption
    a step         of each owner at most as many tokens as of the one with the least to run, or as an empty step costs, so that
                   k owners slow one another at most k times; where that is too few for all of an owner's, these take turns
"""

from collections import Counter
from dataclasses import dataclass

from zopilot_gpu.engine.blocks import BlockPool, chunks_of
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.fair import FairQueue

_LINGER_STEPS = 16


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
        step_base_tokens: what a step of nothing would cost, in tokens: the time of a step divided by that of one more token.
    """

    def __init__(self, pool: BlockPool, *, max_step_tokens: int, max_running: int, step_base_tokens: int = 64) -> None:
        self.pool = pool
        self.waiting: FairQueue[Sequence] = FairQueue()
        self.running: list[Sequence] = []  # oldest first
        self.num_prefix_hits = 0
        self.num_preemptions = 0
        self._max_step_tokens = max_step_tokens
        self.max_running = max_running
        self._step_base_tokens = step_base_tokens
        self._seats = list(range(max_running))
        self._turn = 0
        self._steps_left: dict[bytes, int] = {}  # for which an owner still counts as being at work

    def add(self, sequence: Sequence) -> None:
        """Puts a new sequence in line.

        Raises:
            TooLong: all blocks together could not hold it.
        """
        if self.pool.blocks_for(sequence.max_total_tokens) > self.pool.num_blocks:
            raise TooLong
        self.waiting.push(sequence.salt, sequence)

    def schedule(self) -> list[Scheduled]:
        """The next step; empty when nothing can run."""
        budget = self._max_step_tokens
        shares = self._shares()
        step: list[Scheduled] = []
        # Decodes miss one token, so they come first; the sort keeps the order of age.
        for sequence in sorted(self.running, key=_turn if shares else _num_missing):
            count = min(_num_missing(sequence), budget, shares.get(sequence.salt, budget))
            if count and sequence in self.running and self._make_room(sequence, count, step):
                budget -= self._take(step, shares, Scheduled(sequence, count))
        while self.waiting.owners and budget:
            admitted = self._admit_next(budget, shares, step)
            if admitted is None:
                break
            budget -= self._take(step, shares, admitted)
        return step

    def advance(self, step: list[Scheduled]) -> None:
        """Records that a step is launched: its tokens are in the pool for every step after it."""
        for item in step:
            item.sequence.num_computed += item.num_tokens
            self.seal(item.sequence)

    def seal(self, sequence: Sequence) -> None:
        """Makes the full blocks shareable whose tokens are computed and known. Call when tokens became either."""
        size = self.pool.block_size
        num_full = min(sequence.num_computed, sequence.num_known) // size
        if num_full > sequence.num_sealed:
            sequence.chunks = chunks_of(sequence.token_ids, size, sequence.salt, sequence.chunks)
            for index in range(sequence.num_sealed, num_full):
                self.pool.seal(sequence.block_ids[index], sequence.chunks[index])
            sequence.num_sealed = num_full

    def remove(self, sequence: Sequence) -> None:
        """Ends a sequence, wherever it is; its blocks are free or cached at once. A second call does nothing.

        A launched step may still write into them. Steps run in the order of their launch, and only a later one can have been
        given the blocks: its writes come after.
        """
        sequence.ended = True
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            self.waiting.remove(sequence.salt, sequence)

    def check(self) -> None:
        """See `BlockPool.check`."""
        self.pool.check(sequence.block_ids for sequence in self.running)

    def reset(self) -> None:
        """Drops every sequence and all that is cached: what is left to do when the map of blocks is not to be trusted."""
        self.waiting.clear()
        self.running.clear()
        self._seats = list(range(self.max_running))
        self.pool.reset()

    def _take(self, step: list[Scheduled], shares: dict[bytes, int], item: Scheduled) -> int:
        step.append(item)
        self._turn += 1
        item.sequence.turn = self._turn
        if item.sequence.salt in shares:
            shares[item.sequence.salt] -= item.num_tokens
        return item.num_tokens

    def _shares(self) -> dict[bytes, int]:
        """The most tokens in this step of each owner; nothing for one who is alone.

        Who has just left counts for some steps more: a caller that asks one thing after the other finds a short step going on.
        """
        wanted = Counter(dict.fromkeys(self._steps_left, 0))
        for sequence in (*self.running, *self.waiting):
            wanted[sequence.salt] += _num_missing(sequence)
        self._steps_left = {owner: _LINGER_STEPS if wanted[owner] else self._steps_left[owner] - 1 for owner in wanted}
        self._steps_left = {owner: left for owner, left in self._steps_left.items() if left}
        if len(wanted) < 2:
            return {}
        return dict.fromkeys(wanted, max(self._step_base_tokens, min(wanted.values())))

    def _admit_next(self, budget: int, shares: dict[bytes, int], step: list[Scheduled]) -> Scheduled | None:
        """Starts the next in line; None where it has to wait on, and those behind it with it."""
        running = Counter(sequence.salt for sequence in self.running)
        owner, sequence = self.waiting.head(lambda one: running[one] if shares.get(one, 1) else float("inf"))
        budget = min(budget, shares.get(owner, budget))
        if not budget or sequence.num_pending:  # preempted a moment ago: all its tokens are known after this step
            return None
        if len(self.running) >= self.max_running:
            most = max(1, self.max_running // len(self._owners()))
            victim = self._above(running, most)
            if victim is None or running[owner] >= most:
                return None
            self._preempt(victim, step)
        return self._admit(sequence, budget, step)

    def _admit(self, sequence: Sequence, budget: int, step: list[Scheduled]) -> Scheduled | None:
        """Starts a waiting sequence when all that it knows fits, so that it is not preempted in its prefill."""
        size, tokens = self.pool.block_size, sequence.token_ids
        sequence.chunks = chunks_of(tokens, size, sequence.salt, sequence.chunks)
        shared = self.pool.share_prefix(sequence.chunks[: (len(tokens) - 1) // size])  # one token is left to compute
        missing = self.pool.blocks_for(len(tokens)) - len(shared)
        if missing > self.pool.num_available:
            self._claim(sequence.salt, missing, len(shared), step)
        if missing > self.pool.num_available:
            self.pool.free(shared)
            return None
        self.waiting.pop(sequence.salt)
        self.running.append(sequence)
        sequence.seat = self._seats.pop()
        sequence.num_computed, sequence.num_sealed = len(shared) * size, len(shared)
        if not sequence.num_preemptions:
            sequence.num_cached = sequence.num_computed
            self.num_prefix_hits += bool(shared)
        sequence.block_ids = shared + self.pool.allocate(missing)
        return Scheduled(sequence, min(_num_missing(sequence), budget))

    def _claim(self, owner: bytes, missing: int, shared: int, step: list[Scheduled]) -> None:
        """Takes blocks for `owner`, up to its share of the pool, from those who hold more than theirs."""
        most = self.pool.num_blocks // len(self._owners())
        if self._blocks_held()[owner] + missing + shared > most:
            return
        while missing > self.pool.num_available:
            victim = self._above(self._blocks_held(), most)
            if victim is None:
                return
            self._preempt(victim, step)

    def _make_room(self, sequence: Sequence, count: int, step: list[Scheduled]) -> bool:
        """Blocks for the next `count` tokens, taken from the youngest if need be; False when that was `sequence` itself."""
        missing = self.pool.blocks_for(sequence.num_computed + count) - len(sequence.block_ids)
        while missing > self.pool.num_available:
            youngest = self._above(self._blocks_held(), 0) or self.running[-1]
            self._preempt(youngest, step)
            if youngest is sequence:
                return False
        if missing > 0:
            sequence.block_ids += self.pool.allocate(missing)
        return True

    def _owners(self) -> set[bytes]:
        return self.waiting.owners | {sequence.salt for sequence in self.running}

    def _blocks_held(self) -> Counter[bytes]:
        held: Counter[bytes] = Counter()
        for sequence in self.running:
            held[sequence.salt] += len(sequence.block_ids)
        return held

    def _above(self, held: Counter[bytes], most: int) -> Sequence | None:
        """The youngest running sequence of the owner that holds the most, where that is above `most`."""
        if not held or max(held.values()) <= most:
            return None
        owner = max(held, key=lambda one: held[one])
        return next(sequence for sequence in reversed(self.running) if sequence.salt == owner)

    def _preempt(self, sequence: Sequence, step: list[Scheduled]) -> None:
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.push(sequence.salt, sequence, first=True)
        step[:] = [item for item in step if item.sequence is not sequence]

    def _release(self, sequence: Sequence) -> None:
        self.pool.free(sequence.block_ids)
        self._seats.append(sequence.seat)
        sequence.block_ids = []
        sequence.num_computed = sequence.num_sealed = sequence.num_tabled = sequence.num_noted = 0
        sequence.seat = -1


def _num_missing(sequence: Sequence) -> int:
    return sequence.num_missing


def _turn(sequence: Sequence) -> int:
    return sequence.turn
