"""Several engines behind one backend: real ones, on the CPU, with the demo model."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
import torch

from runners.background import BackgroundRunner
from runners.base import BackendState, EngineStats, Pulse
from runners.device import Device
from runners.many import ManyBackends, devices_for
from zopilot_gpu.errors import EngineFailed, ModelUnavailable, Overloaded, ServiceError
from zopilot_gpu.events import GREEDY, Done, Event, Job, Text
from zopilot_gpu.settings import Settings


@pytest.fixture
async def runner() -> AsyncIterator[BackgroundRunner]:
    settings = Settings(allow_anonymous=True, model="demo", device="cpu", num_engines=2, max_waiting=3)
    runner = BackgroundRunner(settings)
    async with asyncio.timeout(120):
        while runner.state().phase == "loading":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    yield runner
    await runner.close()


async def answer(runner: BackgroundRunner, number: int) -> tuple[str, int]:
    job = Job(
        f"{number}", "What is the total?", {"vendor": "Acme", "total": f"{number}.40"}, 12, GREEDY, (), time.monotonic() + 300
    )
    text, num_tokens = "", 0
    async with aclosing(runner.generate(job)) as events:
        async for event in events:
            match event:
                case Text(piece):
                    text += piece
                case Done():
                    num_tokens = event.usage.completion_tokens
    return text, num_tokens


async def test_two_engines_share_the_work_and_answer_as_one_does(runner: BackgroundRunner) -> None:
    state = runner.state()
    assert (state.phase, state.num_engines, state.max_running) == ("ready", 2, 128)
    assert state.engine
    assert state.engine.kv_tokens_total > 0
    alone = [await answer(runner, number) for number in range(4)]
    together = await asyncio.gather(*(answer(runner, number) for number in range(4)))
    assert list(together) == alone
    backend = runner._loaded.backend if runner._loaded else None
    assert isinstance(backend, ManyBackends)
    assert all(one.state().engine.num_steps > 2 for one in backend._backends)  # type: ignore[union-attr]
    assert runner.state().num_running == 0


class Fake:
    """A backend with a say in how it is."""

    window, vocab_size = 100, 10

    def __init__(self, pulse: Pulse = Pulse(), full: bool = False) -> None:  # noqa: B008, FBT001, FBT002
        self._pulse, self._full = pulse, full
        self.told: list[ServiceError] = []

    def state(self) -> BackendState:
        return BackendState(1, 2, self._pulse.fatal, "card", 3, 4, EngineStats(1, 2, 3, 4, 5, 6, 7, 8), 9)

    def pulse(self) -> Pulse:
        return self._pulse

    def abandon(self, error: ServiceError) -> None:
        self.told.append(error)

    def refuse_when_full(self, owner: bytes) -> None:
        if self._full:
            raise Overloaded

    async def generate(self, job: Job, ids: list[int], max_tokens: int) -> AsyncGenerator[Event, None]:
        yield Text(str(id(self)))
        await asyncio.sleep(3600)

    async def close(self) -> None: ...


async def test_a_job_goes_to_the_engine_with_the_fewest() -> None:
    fakes = [Fake(), Fake(), Fake()]
    many = ManyBackends(fakes)
    job = Job("1", "Hi", None, 1, GREEDY, (), 10.0**9)
    talking = [many.generate(job, [1], 1) for _ in range(4)]
    chosen = [(await anext(one)).text for one in talking]  # type: ignore[union-attr]
    assert chosen == [str(id(fakes[number])) for number in (0, 1, 2, 0)]
    await talking[1].aclose()
    again = many.generate(job, [1], 1)
    assert (await anext(again)).text == str(id(fakes[1]))  # type: ignore[union-attr]
    for one in (*talking, again):
        await one.aclose()


def test_the_state_is_the_sum_and_one_lost_engine_is_all_of_them() -> None:
    fakes = [Fake(Pulse(None, 1.0)), Fake(Pulse("lost", 0.0))]
    many = ManyBackends(fakes)
    state = many.state()
    assert (state.num_running, state.num_waiting, state.max_running, state.num_engines) == (2, 4, 18, 2)
    assert (state.memory_used_bytes, state.memory_total_bytes, state.problem) == (6, 8, "lost")
    assert state.engine == EngineStats(2, 4, 6, 8, 10, 12, 14, 16)
    assert many.pulse() == Pulse("lost", 1.0)
    error = EngineFailed()
    many.abandon(error)
    assert [one.told for one in fakes] == [[error], [error]]


def test_one_engine_for_each_visible_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    gpu, cpu = Device("cuda", "test"), Device("cpu", "test")
    assert [one.name for one in devices_for(gpu, None)] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [one.name for one in devices_for(gpu, 1)] == ["cuda"]
    assert [one.name for one in devices_for(cpu, None)] == ["cpu"]
    assert [one.name for one in devices_for(cpu, 2)] == ["cpu", "cpu"]
    with pytest.raises(ModelUnavailable, match="3 GPUs"):
        devices_for(gpu, 4)
