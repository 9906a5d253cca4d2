"""What each key may use: a runner around the runner, so that every way in passes it. Knows limits, windows and counts.

A key without limits is only counted. Tokens are known when an answer ends: a request is refused once its key has used up its
minute, and what the last answers took beyond it is taken off the next. An answer whose caller left counts by its pieces.
"""

import math
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter, SlidingWindowCounterRateLimiter

from runners.base import Runner, RunnerState
from zopilot_gpu.api import metrics
from zopilot_gpu.api.keys import Key, KeyRing
from zopilot_gpu.errors import RateLimited, ServiceError
from zopilot_gpu.events import Done, Event, Job, Text

_MINUTE_S = 60


class Quota:
    """Implements `runners.base.Runner` around another: refuses what a job's key may not use, and counts what it does."""

    def __init__(self, runner: Runner, keys: KeyRing) -> None:
        self._runner = runner
        self._keys = keys
        self._running: Counter[str] = Counter()
        storage = MemoryStorage()
        self._requests = MovingWindowRateLimiter(storage)
        self._tokens = SlidingWindowCounterRateLimiter(storage)
        self._debts: Counter[str] = Counter()  # tokens used beyond the window, by name

    def state(self) -> RunnerState:
        """See `Runner.state`."""
        return self._runner.state()

    async def close(self) -> None:
        """See `Runner.close`."""
        await self._runner.close()

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """See `Runner.generate`.

        Raises:
            RateLimited: the key has used what it may.
        """
        key = self._keys.of_owner(job.owner)
        if key is None:  # anonymous use, or work of our own
            async with aclosing(self._runner.generate(job)) as events:
                async for event in events:
                    yield event
            return
        outcome = "left"
        try:
            self._refuse_beyond(key)
            async with aclosing(self._counted(key, job)) as events:
                async for event in events:
                    if isinstance(event, Done):  # nobody asks for more after it
                        outcome = "done"
                    yield event
        except ServiceError as error:
            outcome = "refused" if error.status < 500 else "failed"
            raise
        finally:
            metrics.observe_key_request(key.name, outcome)

    async def _counted(self, key: Key, job: Job) -> AsyncGenerator[Event, None]:
        num_tokens = 0
        self._running[key.name] += 1
        try:
            async with aclosing(self._runner.generate(job)) as events:
                async for event in events:
                    match event:
                        case Text():
                            num_tokens += 1
                        case Done():
                            num_tokens = event.usage.prompt_tokens + event.usage.completion_tokens
                            metrics.observe_key_tokens(key.name, event.usage)
                    yield event
        finally:
            self._running[key.name] -= 1
            self._spend(key, num_tokens)

    def _refuse_beyond(self, key: Key) -> None:
        """Raises `RateLimited` where the key has used what it may; else takes one request off."""
        if key.concurrent is not None and self._running[key.name] >= key.concurrent:
            raise RateLimited(f"This key may have {key.concurrent} requests at once.", retry_after_s=1)
        if key.tokens_per_minute is not None:
            self._pay(key)
            item = RateLimitItemPerMinute(key.tokens_per_minute, namespace="tokens")
            if self._debts[key.name] or not self._tokens.test(item, key.name):
                more_s = _MINUTE_S * self._debts[key.name] / key.tokens_per_minute
                wait_s = self._wait_s(self._tokens, item, key.name) + more_s
                raise RateLimited(
                    f"This key has used its {key.tokens_per_minute} tokens a minute.", retry_after_s=math.ceil(wait_s)
                )
        if key.requests_per_minute is not None:
            item = RateLimitItemPerMinute(key.requests_per_minute, namespace="requests")
            if not self._requests.hit(item, key.name):
                wait_s = self._wait_s(self._requests, item, key.name)
                raise RateLimited(
                    f"This key has made its {key.requests_per_minute} requests a minute.", retry_after_s=math.ceil(wait_s)
                )

    def _spend(self, key: Key, num_tokens: int) -> None:
        if key.tokens_per_minute is not None:
            self._debts[key.name] += num_tokens
            self._pay(key)

    def _pay(self, key: Key) -> None:
        """Takes what a key owes off its window, as far as that goes."""
        if debt := self._debts[key.name]:
            item = RateLimitItemPerMinute(key.tokens_per_minute or 0, namespace="tokens")
            paid = min(debt, self._tokens.get_window_stats(item, key.name).remaining)
            if paid and self._tokens.hit(item, key.name, cost=paid):
                self._debts[key.name] -= paid

    @staticmethod
    def _wait_s(limiter: MovingWindowRateLimiter | SlidingWindowCounterRateLimiter, item: RateLimitItem, name: str) -> float:
        """Seconds until one more is free; the windows count by the wall clock, so a changed one is bounded."""
        reset_s = limiter.get_window_stats(item, name).reset_time
        return min(max(reset_s - time.time(), 1.0), _MINUTE_S)
