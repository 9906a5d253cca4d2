"""The worker that dies, for whatever reason, is followed by another; no caller is told a lie, and too many deaths are the end.

Long: `ZOPILOT_GPU_KILLS=100 python -m pytest tests/faults/test_supervision.py -k kill_9 -s --timeout 0`, prints its times.
"""

import asyncio
import os
import random
import signal
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest

from tests.conftest import ROOT, Serve, Server
from tests.faults.callers import calling, right_answers
from zopilot_gpu.process.exits import Exit

NUM_KILLS = int(os.environ.get("ZOPILOT_GPU_KILLS", "2"))
LONG_S = 120  # longer than anything here takes on a busy machine


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {LONG_S} s: {what}"
        await asyncio.sleep(0.02)


def workers(server: Server) -> list[psutil.Process]:
    return psutil.Process(server.process.pid).children()


async def ready(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=LONG_S) as client:
        deadline_s = time.monotonic() + LONG_S
        while time.monotonic() < deadline_s:
            try:
                if (await client.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)
    pytest.fail(f"not ready within {LONG_S} s\n{server.log.read_text()[-4000:]}")


async def test_kill_9_under_16_callers(serve: Serve) -> None:
    chance = random.Random(5)
    took_s: list[float] = []
    with serve(
        BENTOML_CONTAINERIZED="1",
        ZOPILOT_GPU_MODEL="demo",
        ZOPILOT_GPU_LOG_LEVEL="warning",
        ZOPILOT_GPU_MAX_DEATHS=str(NUM_KILLS + 5),
        ZOPILOT_GPU_RESTART_WAIT_S="0",
    ) as server:
        expected = right_answers(server)
        async with calling(server, expected) as callers:
            for _ in range(NUM_KILLS):
                num_right = callers.counts()["right"]
                await until(lambda least=num_right + 16: callers.counts()["right"] >= least, "16 answers")  # type: ignore[misc]
                await asyncio.sleep(chance.random() / 4)
                await until(lambda: bool(callers.open), "a request in flight")
                (worker,) = workers(server)
                killed_s = time.monotonic()
                worker.kill()
                await ready(server)
                took_s.append(time.monotonic() - killed_s)
            num_right = callers.counts()["right"]
            await until(lambda: callers.counts()["right"] >= num_right + 16, "16 answers after the last kill")
        callers.assert_none_wrong()
        assert callers.counts()["cut"] > 0
        assert server.process.poll() is None
        assert server.log.read_text().count('"worker_died"') == NUM_KILLS
    took = f"{min(took_s):.1f} to {max(took_s):.1f} s, median {statistics.median(took_s):.1f} s"
    print(f"\n{NUM_KILLS} kills: {dict(callers.counts())}, ready after {took}; load {os.getloadavg()[0]:.1f}")  # noqa: T201


async def test_an_engine_beyond_help_ends_its_process_and_every_caller_is_told_to_come_again(
    serve: Serve, tmp_path: Path
) -> None:
    with serve(
        BENTOML_CONTAINERIZED="1",
        PYTHONPATH=str(ROOT),
        ZOPILOT_GPU_HUNG_STEP_S="4",
        ZOPILOT_GPU_LOG_LEVEL="warning",
        ZOPILOT_GPU_MODEL="demo",
        ZOPILOT_GPU_RESTART_WAIT_S="0",
        ZOPILOT_GPU_TEST_FAULT=str(tmp_path / "fault"),
        target="tests.faults.faulty_service:ZopilotGPU",
    ) as server:
        expected = right_answers(server)
        async with calling(server, expected, num_callers=6) as callers:

            def told() -> int:
                return sum(one.what == "engine_failed" for one in callers.outcomes)

            async def fails(fault: str, status: str) -> None:
                num_right, num_told = callers.counts()["right"], told()
                (tmp_path / "next").write_text(fault)
                (tmp_path / "next").rename(tmp_path / "fault")  # whole, or the model may find it empty
                await until(lambda: status in server.log.read_text(), status)
                await until(lambda: callers.counts()["right"] >= num_right + 8, "answers of the next process")
                assert (told() > num_told) == (fault != "hold")  # nobody speaks for a process whose interpreter stands still

            await fails("sticky", Exit.CUDA_ERROR.meaning)
            await fails("hang", Exit.HUNG_STEP.meaning)
            assert callers.counts()["cut"] == 0
            await fails("hold", "exit status 1")
        callers.assert_none_wrong()
        log = server.log.read_text()
        assert log.count('"worker_died"') == 3
        assert "Timeout" in log  # and the stacks of all threads after it
        (worker,) = workers(server)
        server.process.send_signal(signal.SIGKILL)
        await until(lambda: not worker.is_running(), "the end of a worker whose launcher is gone")


async def test_too_many_deaths_end_the_launcher_with_a_status_of_its_own(serve: Serve) -> None:
    with serve(
        ready=False,
        BENTOML_CONTAINERIZED="1",
        ZOPILOT_GPU_MODEL="demo",
        ZOPILOT_GPU_MAX_DEATHS="3",
        ZOPILOT_GPU_RESTART_WAIT_S="0",
    ) as server:
        dead: set[int] = set()
        for _ in range(3):
            await until(lambda: any(one.pid not in dead for one in workers(server)), "a worker")
            (worker,) = (one for one in workers(server) if one.pid not in dead)
            dead.add(worker.pid)
            worker.kill()
        assert await asyncio.to_thread(server.process.wait, LONG_S) == 72
    assert '"worker_died_too_often"' in server.log.read_text()
