"""The waiting line of a runner with one slot: bounded, first come, first served. Knows seconds, no jobs.

acquire ──▶ full? Overloaded ──▶ waits (num_waiting) ──▶ runs (num_running) ──▶ release
"""

import asyncio
import math
import time

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
