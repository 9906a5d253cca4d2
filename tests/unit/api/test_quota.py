"""Holds the limits of keys: requests, tokens and concurrency, each by name, and what is counted."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import limits.storage.memory
import pytest

from runners.base import RunnerState
from zopilot_gpu.api import metrics, quota
from zopilot_gpu.api.keys import Key, KeyRing
from zopilot_gpu.api.quota import Quota
from zopilot_gpu.errors import InternalError, RateLimited
from zopilot_gpu.events import GREEDY, Done, Event, Job, Text, Usage


class Runner:
    """Answers every job with two pieces of text and what it is told to have used."""

    def __init__(self) -> None:
        self.usage = Usage(10, 0, 5)
        self.fail = False
        self.num_closed = 0

    def state(self) -> RunnerState:
        return RunnerState("ready", "ready", 1.0, "m", "cpu", 0, 0, 0)

    async def generate(self, _: Job) -> AsyncGenerator[Event, None]:
        try:
            yield Text("a")
            if self.fail:
                raise InternalError
            await asyncio.sleep(0)
            yield Text("b")
            yield Done("stop", self.usage)
        finally:
            self.num_closed += 1

    async def close(self) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The wall clock of the windows, at the beginning of one."""
    clock = SimpleNamespace(now_s=60_000_000.0)
    fake = SimpleNamespace(time=lambda: clock.now_s, monotonic=time.monotonic)
    monkeypatch.setattr(limits.storage.memory, "time", fake)
    monkeypatch.setattr(quota, "time", fake)
    monkeypatch.setattr("limits.strategies.time", fake)
    return clock


def of(owner: bytes) -> Job:
    return Job("r", "Hi", None, 8, GREEDY, (), time.monotonic() + 60, owner)


def quota_of(**limits: Any) -> tuple[Quota, Runner]:
    runner = Runner()
    keys = [Key("limited", (b"1",), b"limited", **limits), Key("other", (b"2",), b"other", **limits)]
    return Quota(runner, KeyRing(keys)), runner


async def ask(it: Quota, owner: bytes = b"limited") -> list[Event]:
    async with aclosing(it.generate(of(owner))) as events:
        return [event async for event in events]


async def refused(it: Quota, owner: bytes = b"limited") -> int:
    with pytest.raises(RateLimited) as refusal:
        await ask(it, owner)
    assert (refusal.value.status, refusal.value.code) == (429, "rate_limited")
    assert refusal.value.retry_after_s is not None
    return refusal.value.retry_after_s


def counted(name: str, **labels: str) -> float:
    return metrics.REGISTRY.get_sample_value(f"zopilot_gpu_{name}_total", labels) or 0.0


async def test_requests_a_minute_are_a_moving_window_of_each_key(clock: SimpleNamespace) -> None:
    it, _ = quota_of(requests_per_minute=3)
    for _ in range(3):
        assert len(await ask(it)) == 3
        clock.now_s += 10
    assert await refused(it) == 30
    await ask(it, b"other")
    await ask(it, b"nobody's")
    clock.now_s += 30.5
    await ask(it)
    assert await refused(it) == 10


async def test_tokens_a_minute_are_waited_out_with_what_was_taken_beyond_them(clock: SimpleNamespace) -> None:
    it, runner = quota_of(tokens_per_minute=100)
    runner.usage = Usage(200, 0, 50)
    await ask(it)
    assert await refused(it) > 60
    await ask(it, b"other")
    waited = 0
    while waited < 600:
        clock.now_s += 5
        waited += 5
        try:
            await ask(it)
        except RateLimited:
            continue
        break
    assert 90 <= waited <= 180  # 250 tokens at 100 a minute


async def test_small_answers_pass_until_the_minute_is_used_up(clock: SimpleNamespace) -> None:
    it, _ = quota_of(tokens_per_minute=60)
    for _ in range(4):
        await ask(it)
    assert 1 <= await refused(it) <= 60


async def test_only_so_many_at_once_and_who_leaves_gives_the_place_back() -> None:
    it, runner = quota_of(concurrent=2)
    running = [it.generate(of(b"limited")) for _ in range(2)]
    for events in running:
        await anext(events)
    assert await refused(it) == 1
    await ask(it, b"other")
    await running[0].aclose()
    await ask(it)
    await running[1].aclose()
    assert not +it._running
    assert runner.num_closed == 4


async def test_what_a_key_did_is_counted_by_its_name() -> None:
    it, runner = quota_of(requests_per_minute=3)
    outcomes = ("done", "refused", "failed", "left")
    before = [counted("key_requests", key="limited", outcome=outcome) for outcome in outcomes]
    tokens = counted("key_tokens", key="limited", kind="completion")
    await ask(it)
    runner.fail = True
    with pytest.raises(InternalError):
        await ask(it)
    runner.fail = False
    events = it.generate(of(b"limited"))
    await anext(events)
    await events.aclose()
    await refused(it)
    after = [counted("key_requests", key="limited", outcome=outcome) for outcome in outcomes]
    assert [now - was for now, was in zip(after, before, strict=True)] == [1, 1, 1, 1]
    assert counted("key_tokens", key="limited", kind="completion") == tokens + 5


async def test_an_answer_that_nobody_waited_for_costs_its_pieces(clock: SimpleNamespace) -> None:
    it, _ = quota_of(tokens_per_minute=2)
    events = it.generate(of(b"limited"))
    for _ in range(2):
        await anext(events)
    await events.aclose()
    await refused(it)
