"""Waiting lines: bounded, fair among owners, first come, first served for each. Know seconds and tokens, no jobs.

WaitingLine   one slot:     acquire ──▶ full? Overloaded ──▶ waits (num_waiting) ──▶ runs (num_running) ──▶ release
Admission     many slots:   enter   ──▶ full? Overloaded ──▶ in flight; who of them runs is the engine's business

A full line still takes an owner who holds less than a share of it, so that nobody is refused because of what another has put
in. It stretches by that: with k owners to at most 1 + 1/2 + ... + 1/k times its length.
"""

import asyncio
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from zopilot_gpu.errors import DeadlineExceeded, Overloaded
from zopilot_gpu.fair import FairQueue

_SMOOTHING = 0.2


class WaitingLine:
    """One slot and at most `max_waiting` requests waiting for it. Belongs to one event loop."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.num_waiting = 0
        self.num_running = 0
        self._taken = False
        self._line: FairQueue[asyncio.Future[None]] = FairQueue()
        self._turn_s = 1.0  # smoothed length of a turn, for Retry-After
        self._began_s = 0.0

    async def acquire(self, deadline_s: float, owner: bytes = b"") -> None:
        """Waits for the slot until `deadline_s` (`time.monotonic()`). Every success needs one `release`.

        Raises:
            Overloaded: the line is full.
            DeadlineExceeded: the deadline came first.
        """
        self.refuse_when_full(owner)
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded
        if self._taken:
            await self._wait(deadline_s, owner)
        self._taken = True
        self.num_running = 1
        self._began_s = time.monotonic()

    def refuse_when_full(self, owner: bytes = b"") -> None:
        """Raises `Overloaded`, with the time after which a place should be free, where `acquire` would."""
        if not self._taken or self.num_waiting < self.max_waiting:
            return
        num_owners = len(self._line.owners | {owner})
        if num_owners == 1 or not self.max_waiting or self._line.count(owner) >= max(1, self.max_waiting // num_owners):
            raise Overloaded(retry_after_s=math.ceil(self._turn_s * (self.num_waiting + 1)))

    def release(self) -> None:
        """Gives the slot to the next in line."""
        self._turn_s += _SMOOTHING * (time.monotonic() - self._began_s - self._turn_s)
        self.num_running = 0
        self._pass_on()

    async def _wait(self, deadline_s: float, owner: bytes) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.push(owner, turn)
        self.num_waiting += 1
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await turn
        except BaseException as end:
            self._line.remove(owner, turn)
            if not turn.cancelled():  # then the slot had been given to it meanwhile
                self._pass_on()
            if isinstance(end, TimeoutError):
                raise DeadlineExceeded from None
            raise
        finally:
            self.num_waiting -= 1

    def _pass_on(self) -> None:
        """The slot stays taken while it is handed over, so that no newcomer overtakes."""
        self._taken = False
        while len(self._line) and not self._taken:
            turn = self._line.pop(self._line.head()[0])
            if not turn.done():  # cancelled, it is about to leave
                turn.set_result(None)
                self._taken = True


class Admission:
    """A line by count and by tokens in front of an engine that runs many requests at once. Belongs to one event loop.

    Args:
        num_slots: requests that run at once.
        num_room_tokens: tokens that fit into the engine at once.
        max_waiting: requests that may be in flight beyond the slots.
        max_waiting_tokens: tokens that may be in flight beyond the room.
    """

    def __init__(self, num_slots: int, num_room_tokens: int, max_waiting: int, max_waiting_tokens: int) -> None:
        self._num_slots = num_slots
        self._max_requests = num_slots + max_waiting
        self._max_tokens = num_room_tokens + max_waiting_tokens
        self._turn_s = 1.0  # smoothed, as is the next: what one request takes
        self._turn_tokens = 1.0
        self._requests: Counter[bytes] = Counter()  # in flight, by owner, as are the next
        self._tokens: Counter[bytes] = Counter()

    @property
    def num_in_flight(self) -> int:
        """Requests that have entered and not left."""
        return self._requests.total()

    @contextmanager
    def enter(self, num_tokens: int, owner: bytes = b"") -> Iterator[None]:
        """One request of at most `num_tokens`, prompt and answer.

        Raises:
            Overloaded: the line is full; with the seconds after which, at the rate observed, it should not be.
        """
        self.refuse_when_full(num_tokens, owner)
        began_s = time.monotonic()
        self._requests[owner] += 1
        self._tokens[owner] += num_tokens
        try:
            yield
        finally:
            self._leave(owner, num_tokens)
            self._turn_s += _SMOOTHING * (time.monotonic() - began_s - self._turn_s)
            self._turn_tokens += _SMOOTHING * (num_tokens - self._turn_tokens)

    def refuse_when_full(self, num_tokens: int = 0, owner: bytes = b"") -> None:
        """Raises `Overloaded` where `enter` would."""
        excess = self.num_in_flight + 1 - self._max_requests
        if self.num_in_flight:  # alone, anything that fits into the model is let in
            too_many = self._tokens.total() + num_tokens - self._max_tokens
            excess = max(excess, math.ceil(too_many / self._turn_tokens))
        if excess > 0 and not self._is_below_its_share(owner, num_tokens):
            num_running = min(self.num_in_flight, self._num_slots)
            raise Overloaded(retry_after_s=math.ceil(self._turn_s * excess / max(num_running, 1)))

    def _is_below_its_share(self, owner: bytes, num_tokens: int) -> bool:
        num_owners = len(self._requests.keys() | {owner})
        if num_owners == 1 or not self._requests[owner]:
            return num_owners > 1
        fits = self._tokens[owner] + num_tokens <= self._max_tokens // num_owners
        return fits and self._requests[owner] < self._max_requests // num_owners

    def _leave(self, owner: bytes, num_tokens: int) -> None:
        self._requests[owner] -= 1
        self._tokens[owner] -= num_tokens
        if not self._requests[owner]:
            del self._requests[owner], self._tokens[owner]
