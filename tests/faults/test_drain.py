"""SIGTERM under load: what is in flight is answered right, what comes is told to go elsewhere, and nothing is left behind.

The long run, with its times: `ZOPILOT_GPU_DRAINS=100 python -m pytest tests/faults/test_drain.py -k load -s --timeout 0`.
"""

import asyncio
import json
import os
import random
import signal
import time
from pathlib import Path

import httpx
import psutil

from tests.conftest import Serve, Server
from tests.faults.callers import calling, read_events, right_answers
from tests.faults.test_supervision import LONG_S, until

NUM_DRAINS = int(os.environ.get("ZOPILOT_GPU_DRAINS", "1"))
DEADLINE_S = 60 if NUM_DRAINS < 10 else 25  # the default; longer where the machine is as busy as CI's


async def test_drains_under_load(serve: Serve) -> None:
    chance = random.Random(6)
    expected: dict[str, str] = {}
    told_s: list[float] = []
    took_s: list[float] = []
    num_in_flight = num_right = num_told = 0
    for _ in range(NUM_DRAINS):
        with serve(ZOPILOT_GPU_MODEL="demo", ZOPILOT_GPU_LOG_LEVEL="warning", ZOPILOT_GPU_DRAIN_S=str(DEADLINE_S)) as server:
            expected = expected or right_answers(server)
            processes = psutil.Process(server.process.pid).children(recursive=True)
            async with calling(server, expected) as callers:
                await until(lambda: callers.counts()["right"] >= 16 and len(callers.open) == 16, "16 requests in flight")
                await asyncio.sleep(chance.random() / 4)
                told_s.append(time.monotonic())
                server.process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(server.process.wait, LONG_S) == 0
                took_s.append(time.monotonic() - told_s[-1])
                await until(lambda: not [one for one in callers.open.values() if one < told_s[-1]], "the last answers")
            callers.assert_none_wrong()
            were_there = [one for one in callers.outcomes if one.began_s < told_s[-1] < one.ended_s]
            assert [one for one in were_there if one.kind == "cut"] == []
            assert {one.what for one in callers.outcomes if one.kind == "refused"} <= {"shutting_down"}
            assert not [one for one in processes if one.is_running()]
            num_in_flight += len(were_there)
            num_right += sum(one.kind == "right" for one in were_there)
            num_told += sum(one.kind == "refused" for one in callers.outcomes)
    times = f"{min(took_s):.2f} to {max(took_s):.2f} s; load {os.getloadavg()[0]:.1f}"
    print(  # noqa: T201
        f"\n{NUM_DRAINS} drains: {num_in_flight} in flight, {num_right} answered right and the others told to come again, "
        f"{num_told} refused since; exit 0 after {times}"
    )


async def ask(server: Server, max_tokens: int, *, stream: bool) -> httpx.Response:
    body = {"prompt": "Hi", "max_tokens": max_tokens, "temperature": 0, "stream": stream}
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=LONG_S) as client:
        return await client.post("/prompt", json=body)


async def test_while_it_drains_the_port_answers_and_sends_callers_away(serve: Serve, tiny_mixtral: Path) -> None:
    with serve(ZOPILOT_GPU_MODEL=str(tiny_mixtral), ZOPILOT_GPU_DRAIN_S=str(LONG_S)) as server:
        talking = asyncio.create_task(ask(server, 1500, stream=True))
        await asyncio.to_thread(server.wait_for, lambda health: health["queue"]["num_running"] == 1, LONG_S)
        server.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(server.wait_for, lambda health: health["status"] == "shutting_down", LONG_S)
        async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=LONG_S) as client:
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/ping")).status_code == 503
            refused = await client.post("/prompt", json={"prompt": "Hi"})
        _, name, done = read_events((await talking).text)
        assert await asyncio.to_thread(server.process.wait, LONG_S) == 0
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["connection"] == "close"
    assert (name, done["metadata"]["usage"]["completion_tokens"]) == ("done", 1500)


async def test_what_outlasts_the_drain_is_told_to_come_again(serve: Serve, tiny_mixtral: Path) -> None:
    with serve(ZOPILOT_GPU_MODEL=str(tiny_mixtral), ZOPILOT_GPU_DRAIN_S="0.5") as server:
        asked = [asyncio.create_task(ask(server, 4000, stream=stream)) for stream in (False, True)]
        await asyncio.to_thread(server.wait_for, lambda health: health["queue"]["num_running"] == 2, LONG_S)
        server.process.send_signal(signal.SIGTERM)
        whole, stream = await asyncio.gather(*asked)
        assert await asyncio.to_thread(server.process.wait, LONG_S) == 0
    assert (whole.status_code, whole.json()["error"]["code"]) == (503, "shutting_down")
    assert int(whole.headers["retry-after"]) > 0
    pieces, name, error = read_events(stream.text)
    assert stream.status_code == 200
    assert pieces
    assert (name, error["error"]["code"]) == ("error", "shutting_down")
    assert any('"drain_cut"' in line and json.loads(line)["num_in_flight"] == 2 for line in server.log.read_text().splitlines())
