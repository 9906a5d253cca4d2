"""The line of jobs with a runner and work of the test's own: room, refusals, crashes, cancellation, full disks."""

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runners.base import RunnerState
from zopilot_gpu.errors import JobsFull
from zopilot_gpu.events import Event, Job
from zopilot_gpu.jobs.queue import JobQueue
from zopilot_gpu.jobs.record import NotNow, Outcome, Record
from zopilot_gpu.settings import Settings


class Runner:
    """Ready, with room for four; `now` is what it says of itself."""

    def __init__(self) -> None:
        self.now = RunnerState("ready", "ready", 1, "m", "cpu", 0, 0, 8, max_running=4)

    def state(self) -> RunnerState:
        return self.now

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        raise NotImplementedError
        yield

    async def close(self) -> None:
        pass


class Work:
    """Does jobs when it is told to, and remembers what it did."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.num_running = self.most_running = 0
        self.go = asyncio.Event()
        self.refuse = 0

    async def __call__(self, record: Record) -> AsyncGenerator[str | Outcome | NotNow, None]:
        self.begun.append(record.job_id)
        if self.refuse:
            self.refuse -= 1
            yield NotNow(0.05)
            return
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            yield "some "
            await self.go.wait()
            yield "text"
            yield Outcome("done", json.dumps({"success": True, "output": "some text"}))
        finally:
            self.num_running -= 1


@asynccontextmanager
async def queue(path: Path, work: Any, runner: Runner | None = None, **settings: Any) -> AsyncIterator[JobQueue]:
    made = JobQueue(Settings(allow_anonymous=True, jobs_path=path / "jobs.db", **settings), runner or Runner(), work)
    await until(lambda: made._store is not None)
    try:
        yield made
    finally:
        await made.close()


async def until(condition: Callable[[], Any], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110  (conditions of any kind)
            await asyncio.sleep(0.01)


async def submit(line: JobQueue, *names: str, owner: bytes = b"a") -> None:
    await line.submit(
        [Record(0, name, None, owner, "queued", 0, "{}", None, None, time.time(), None, None) for name in names], None, b""
    )


async def states(line: JobQueue) -> dict[str, str]:
    return dict(await line.store.read("SELECT job_id, state FROM jobs"))


async def until_they_are(line: JobQueue, **expected: str) -> None:
    async with asyncio.timeout(60):
        while await states(line) != expected:  # noqa: ASYNC110  (the store sets no event)
            await asyncio.sleep(0.01)


async def test_no_more_run_than_may_and_none_while_a_request_waits(tmp_path: Path) -> None:
    work, runner = Work(), Runner()
    async with queue(tmp_path, work, runner, jobs_running=3) as line:
        runner.now = replace(runner.now, num_waiting=1)
        await submit(line, *"abcdef")
        await asyncio.sleep(0.4)
        assert work.begun == []
        runner.now = replace(runner.now, num_waiting=0)
        await until(lambda: work.num_running == 3)
        await asyncio.sleep(0.3)
        assert work.begun == ["a", "b", "c"]
        work.go.set()
        await until(lambda: len(work.begun) == 6)
        assert work.most_running == 3


@pytest.mark.parametrize("phase", ["loading", "failed", "closed"])
async def test_jobs_wait_for_the_model(tmp_path: Path, phase: Any) -> None:
    work, runner = Work(), Runner()
    runner.now = replace(runner.now, phase=phase)
    async with queue(tmp_path, work, runner) as line:
        await submit(line, "a")
        await asyncio.sleep(0.4)
        assert await states(line) == {"a": "queued"}


@pytest.mark.parametrize("jobs_running", [1, 2])
async def test_keys_take_turns(tmp_path: Path, jobs_running: int) -> None:
    work = Work()
    async with queue(tmp_path, work, jobs_running=jobs_running) as line:
        await submit(line, *"abcdef")
        await submit(line, "z", owner=b"z")
        work.go.set()
        await until(lambda: len(work.begun) == 7)
        assert work.begun.index("z") <= 3


async def test_a_job_that_the_runner_did_not_take_waits_and_runs_once(tmp_path: Path) -> None:
    work = Work()
    work.refuse = 3
    work.go.set()
    async with queue(tmp_path, work, jobs_running=1) as line:
        await submit(line, "a")
        await until_they_are(line, a="done")
        assert len(work.begun) == 4
        record = await line.store.get(b"a", "a")
        assert record is not None
        assert (record.state, record.attempt) == ("done", 1)


async def test_a_stop_puts_what_runs_back_and_the_next_start_runs_it(tmp_path: Path) -> None:
    first, second = Work(), Work()
    async with queue(tmp_path, first) as line:
        await submit(line, "a", "b")
        await until(lambda: first.num_running == 2)
    assert first.num_running == 0
    second.go.set()
    async with queue(tmp_path, second) as line:
        await until_they_are(line, a="done", b="done")
    assert sorted(second.begun) == ["a", "b"]


async def test_a_job_that_kills_the_service_every_time_ends_as_failed(tmp_path: Path) -> None:
    runner = Runner()
    runner.now = replace(runner.now, phase="loading")
    for crash in range(6):
        async with queue(tmp_path, Work(), runner) as line:
            if crash == 0:
                await submit(line, "a")
            record = await line.store.get(b"a", "a")
            assert record is not None
            if crash == 5:
                assert record.state == "failed"
                assert json.loads(record.result or "")["error"]["code"] == "internal_error"
                break
            assert (record.state, record.attempt) == ("queued", crash)
            await line.store.start("a", time.time())
            line._store, store = None, line.store  # as if it died: nothing is put back
            line._main.cancel()
            await line.courier.close()
            await store.close()


async def test_a_job_is_cancelled_once_whoever_is_faster(tmp_path: Path) -> None:
    work = Work()
    async with queue(tmp_path, work) as line:
        await submit(line, "a", "b")
        await until(lambda: work.num_running == 2)
        cancelled = await asyncio.gather(*(line.cancel(b"a", "a") for _ in range(5)))
        assert {record.state for record in cancelled if record} == {"cancelled"}
        await until(lambda: work.num_running == 1)
        work.go.set()
        await until_they_are(line, a="cancelled", b="done")
        ended = await line.cancel(b"a", "b")
        assert ended is not None
        assert ended.state == "done"
        assert await line.cancel(b"z", "b") is None


async def test_a_watcher_of_a_waiting_job_sees_all_of_it(tmp_path: Path) -> None:
    work, runner = Work(), Runner()
    runner.now = replace(runner.now, num_waiting=1)
    async with queue(tmp_path, work, runner) as line:
        await submit(line, "a")
        record = await line.store.get(b"a", "a")
        assert record is not None
        seen: list[Any] = []

        async def watch() -> None:
            seen.extend([told.state if isinstance(told, Record) else told async for told in line.follow(record)])

        watching = asyncio.create_task(watch())
        await asyncio.sleep(0.1)
        runner.now = replace(runner.now, num_waiting=0)
        await until(lambda: work.num_running == 1)
        work.go.set()
        await asyncio.wait_for(watching, 60)
        assert [told for told in seen if isinstance(told, str)] == ["queued", "running", "done"]
        assert "".join(told[2] for told in seen if not isinstance(told, str)) == "some text"


async def test_a_full_disk_delays_the_end_of_a_job_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zopilot_gpu.jobs.queue._REOPEN_S", 0.05)
    work = Work()
    work.go.set()
    async with queue(tmp_path, work) as line:
        end, failures = line.store.end, [sqlite3.OperationalError("database or disk is full")] * 3

        async def failing(*arguments: Any) -> bool:
            if failures:
                raise failures.pop()
            return await end(*arguments)

        monkeypatch.setattr(line.store, "end", failing)
        await submit(line, "a")
        await until(lambda: not failures)
        await until_they_are(line, a="done")
        assert work.begun == ["a"]


async def test_the_line_is_bounded_in_jobs_and_bytes(tmp_path: Path) -> None:
    runner = Runner()
    runner.now = replace(runner.now, phase="loading")
    async with queue(tmp_path, Work(), runner, jobs_max=3, jobs_max_bytes=1_048_576) as line:
        await submit(line, "a", "b")
        with pytest.raises(JobsFull):
            await submit(line, "c", "d")
        big = Record(0, "big", None, b"a", "queued", 0, "x" * 1_048_576, None, None, 0, None, None)
        with pytest.raises(JobsFull):
            await line.submit([big], None, b"")
        await submit(line, "c")
        assert set(await states(line)) == {"a", "b", "c"}


async def test_a_transaction_whose_caller_is_cancelled_is_whole(tmp_path: Path) -> None:
    runner = Runner()
    runner.now = replace(runner.now, phase="loading")
    async with queue(tmp_path, Work(), runner) as line:
        for number in range(30):
            adding = asyncio.create_task(submit(line, f"{number}-1", f"{number}-2"))
            await asyncio.sleep(0.0005 * (number % 7))
            adding.cancel()
        await submit(line, "last")  # the store does one thing after the other: what was cut is over too
        names = set(await states(line))
        assert all((f"{number}-1" in names) == (f"{number}-2" in names) for number in range(30))
        assert "last" in names
