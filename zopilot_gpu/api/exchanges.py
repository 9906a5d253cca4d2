"""The exchanges in progress: which requests came when, and whether they have been answered. Knows ASGI; no contents.

A stop, or the end of a broken engine, waits for those that were there when it began, and not for those that came since.
"""

import asyncio
import time

from starlette.types import ASGIApp, Receive, Scope, Send

_LOOK_S = 0.02


class Exchanges:
    """The open exchanges of one event loop, numbered as they come."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._num_begun = 0

    @property
    def num_begun(self) -> int:
        """How many have begun so far: a mark between those that are here and those to come."""
        return self._num_begun

    def num_open(self, mark: int) -> int:
        """How many of the first `mark` have not ended."""
        return sum(number <= mark for number in self._open)

    async def ended(self, mark: int, timeout_s: float) -> bool:
        """Waits until the first `mark` have ended; False where that takes longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        while self.num_open(mark):
            if time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def begin(self) -> int:
        """One more; its number."""
        self._num_begun += 1
        self._open.add(self._num_begun)
        return self._num_begun

    def end(self, number: int) -> None:
        """That one has been answered, or its caller has left."""
        self._open.discard(number)


class Counted:
    """Counts the exchanges with the app below."""

    def __init__(self, app: ASGIApp, exchanges: Exchanges) -> None:
        self.app = app
        self._exchanges = exchanges

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        number = self._exchanges.begin()
        try:
            await self.app(scope, receive, send)
        finally:
            self._exchanges.end(number)
