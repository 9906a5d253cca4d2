"""Waiting lines: bounded, first come, first served. Know seconds and tokens, no jobs.

WaitingLine   one slot:     acquire ──▶ full? Overloaded ──▶ waits (num_waiting) ──▶ runs (num_running) ──▶ release
Admission     many slots:   enter   ──▶ full? Overloaded ──▶ in flight; who of them runs is the engine's business
"""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from zopilot_gpu.errors import DeadlineExceeded, Overloaded

_SMOOTHING = 0.2


class WaitingLine:
    """One slot and at most `max_waiting` requests waiting for it. Belongs to one event loop."""

    def __init__(self, max_waiting: int) -> None:
        self.max_waiting = max_waiting
        self.num_waiting = 0
        self.num_running = 0
        self._slot = asyncio.Semaphore(1)
        self._turn_s = 1.0  # smoothed length of a turn, for Retry-After
        self._began_s = 0.0

    async def acquire(self, deadline_s: float) -> None:
        """Waits for the slot until `deadline_s` (`time.monotonic()`). Every success needs one `release`.

        Raises:
            Overloaded: the line is full.
            DeadlineExceeded: the deadline came first.
        """
        self.refuse_when_full()
        if time.monotonic() >= deadline_s:
            raise DeadlineExceeded
        self.num_waiting += 1
        try:
            async with asyncio.timeout(deadline_s - time.monotonic()):
                await self._slot.acquire()
        except TimeoutError:
            raise DeadlineExceeded from None
        finally:
            self.num_waiting -= 1
        self.num_running = 1
        self._began_s = time.monotonic()

    def refuse_when_full(self) -> None:
        """Raises `Overloaded`, with the time after which a place should be free, where `acquire` would."""
        if self._slot.locked() and self.num_waiting >= self.max_waiting:
            raise Overloaded(retry_after_s=math.ceil(self._turn_s * (self.num_waiting + 1)))

    def release(self) -> None:
        """Gives the slot to the next in line."""
        self._turn_s += _SMOOTHING * (time.monotonic() - self._began_s - self._turn_s)
        self.num_running = 0
        self._slot.release()


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
        self.num_in_flight = 0
        self._tokens_in_flight = 0

    @contextmanager
    def enter(self, num_tokens: int) -> Iterator[None]:
        """One request of at most `num_tokens`, prompt and answer.

        Raises:
            Overloaded: the line is full; with the seconds after which, at the rate observed, it should not be.
        """
        self.refuse_when_full(num_tokens)
        began_s = time.monotonic()
        self.num_in_flight += 1
        self._tokens_in_flight += num_tokens
        try:
            yield
        finally:
            self.num_in_flight -= 1
            self._tokens_in_flight -= num_tokens
            self._turn_s += _SMOOTHING * (time.monotonic() - began_s - self._turn_s)
            self._turn_tokens += _SMOOTHING * (num_tokens - self._turn_tokens)

    def refuse_when_full(self, num_tokens: int = 0) -> None:
        """Raises `Overloaded` where `enter` would."""
        excess = self.num_in_flight + 1 - self._max_requests
        if self.num_in_flight:  # alone, anything that fits into the model is let in
            excess = max(excess, math.ceil((self._tokens_in_flight + num_tokens - self._max_tokens) / self._turn_tokens))
        if excess > 0:
            num_running = min(self.num_in_flight, self._num_slots)
            raise Overloaded(retry_after_s=math.ceil(self._turn_s * excess / max(num_running, 1)))
