"""Jobs outlive the service: killed twice with -9 while jobs come in and run, none is lost and each ends exactly once.

`ZOPILOT_GPU_RESTART_JOBS=1000 python -m pytest tests/faults/test_jobs_restart.py -s` for the long run.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.conftest import Serve, Server
from tests.faults.receiver import Receiver

NUM_JOBS = int(os.environ.get("ZOPILOT_GPU_RESTART_JOBS", "60"))
TALKATIVE = {f"field_{n}": f"value {n}" for n in range(10)}


def asked(number: int, callback_url: str) -> dict[str, Any]:
    """Every fourth job takes long, so that a kill finds some that run."""
    total = {"total": f"{number}.{number % 10}5"}
    question = {"prompt": "What is the total?", "context": {"vendor": "Acme"} | total}
    long = {"prompt": "Return all fields as JSON.", "context": TALKATIVE | total}
    return (question if number % 4 else long) | {"callback_url": callback_url, "temperature": 0}


def kill(server: Server) -> None:
    process = psutil.Process(server.process.pid)
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    server.process.wait()


class Submitter:
    """Submits every job until the service has said yes to it, to whichever instance is there."""

    def __init__(self, callback_url: str) -> None:
        self.url: str | None = None
        self.headers: dict[str, str] = {}
        self.ids: dict[int, set[str]] = {number: set() for number in range(NUM_JOBS)}
        self._callback_url = callback_url

    async def submit(self, number: int) -> None:
        body, headers = asked(number, self._callback_url), {"Idempotency-Key": f"job-{number}"}
        while True:
            if self.url:
                with contextlib.suppress(httpx.TransportError):
                    async with httpx.AsyncClient(base_url=self.url, headers=self.headers, timeout=60) as client:
                        taken = await client.post("/jobs", json=body, headers=headers)
                    if taken.status_code == 202:
                        self.ids[number].add(taken.json()["id"])
                        return
                    assert taken.status_code in {429, 503}, taken.text
            await asyncio.sleep(0.05)

    async def submit_all(self) -> None:
        for number in range(NUM_JOBS):
            await self.submit(number)
            await asyncio.sleep(0.02)


async def num_ended(server: Server) -> int:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        num, after = 0, ""
        while True:
            page = (await client.get(f"/jobs?limit=200{after}")).json()
            num += sum(job["state"] == "done" for job in page["jobs"]) if "jobs" in page else 0
            if not page.get("next"):
                return num
            after = f"&after={page['next']}"


async def until(condition: Any, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline_s, "took too long"
        await asyncio.sleep(0.1)


def check_metrics(server: Server) -> None:
    with server.client() as client:
        series = client.get("/metrics").text
    assert f'zopilot_gpu_jobs{{state="done"}} {NUM_JOBS}.0' in series
    assert float(series.split('zopilot_gpu_callbacks_total{outcome="delivered"} ')[1].split()[0]) > 0


async def test_killed_twice_no_job_is_lost_and_each_ends_once(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    logs, last_s = "", 300 + NUM_JOBS
    with Receiver() as receiver:
        env = {"ZOPILOT_GPU_MODEL": "demo", "ZOPILOT_GPU_JOBS_PATH": str(path), "ZOPILOT_GPU_JOBS_RUNNING": "3"}
        env |= receiver.env | {"ZOPILOT_GPU_CALLBACK_RETRY_S": "1"}
        submitter = Submitter(f"http://{receiver.host}/done")
        submitting = asyncio.create_task(submitter.submit_all())
        for life, share in enumerate((0.3, 0.6, 1.0)):
            with serve(ready=False, **env) as server:
                submitter.headers, submitter.url = server.headers, server.url
                await asyncio.to_thread(server.wait_for, lambda health: health["status"] == "ok")

                async def enough(server: Server = server, share: float = share, life: int = life) -> bool:
                    """So many are done; and some run, so that a kill has something to cut."""
                    done = await num_ended(server)
                    if done < NUM_JOBS * share or done == NUM_JOBS or life == 2:
                        return done >= NUM_JOBS * share
                    return bool((await asyncio.to_thread(server.health))["queue"]["num_running"] > 0)

                await until(enough, last_s)
                if life == 0:
                    receiver.status = 204  # it was down until now
                if life < 2:
                    submitter.url = None
                    kill(server)
                else:
                    await submitting

                    async def delivered() -> bool:
                        return len(receiver.deliveries) >= NUM_JOBS

                    await until(delivered, 120)
                    check_metrics(server)
            logs += server.log.read_text()
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT job_id, idempotency_key, state, attempt, result FROM jobs").fetchall()
        assert database.execute("SELECT COUNT(*) FROM outbox").fetchone() == (0,)
    database.close()
    assert {key for _, key, *_ in rows} == {f"job-{number}" for number in range(NUM_JOBS)}
    assert len(rows) == NUM_JOBS
    assert {state for _, _, state, *_ in rows} == {"done"}
    for job_id, key, _, _, result in rows:
        number = int(key.removeprefix("job-"))
        assert submitter.ids[number] == {job_id}
        if number % 4:
            assert json.loads(result)["output"] == f"{number}.{number % 10}5"
    told = Counter(json.loads(line)["job_id"] for line in logs.splitlines() if '"job_ended"' in line)
    assert max(told.values()) == 1
    jobs_told = [{body["job"]["id"] for body in bodies} for bodies in receiver.deliveries.values()]
    assert all(len(ids) == 1 for ids in jobs_told)
    assert Counter(job_id for ids in jobs_told for job_id in ids) == Counter({job_id: 1 for job_id, *_ in rows})
    assert receiver.num_unsigned == 0
    assert receiver.num_refused > 0
    again = sum(attempt > 1 for *_, attempt, _ in rows)
    twice = sum(len(bodies) > 1 for bodies in receiver.deliveries.values())
    print(f"\n{NUM_JOBS} jobs, 2 kills: {again} ran again, {receiver.num_refused} callbacks refused, {twice} sent twice")  # noqa: T201
    assert again > 0


async def test_a_stop_puts_what_runs_back_and_the_next_start_ends_it(serve: Serve, tiny_mixtral: Path, tmp_path: Path) -> None:
    env = {"ZOPILOT_GPU_MODEL": str(tiny_mixtral), "ZOPILOT_GPU_JOBS_PATH": str(tmp_path / "jobs.db")}
    body = {"prompt": "Tell me.", "max_tokens": 600, "temperature": 1}
    with serve(**env) as server:
        with server.client() as client:
            job_id = client.post("/jobs", json=body).json()["id"]
        server.wait_for(lambda health: health["queue"]["num_running"] == 1)
        server.process.terminate()
        assert await asyncio.to_thread(server.process.wait, 120) == 0
    with serve(**env) as server, server.client() as client:
        job: dict[str, Any] = {}
        for _ in range(2400):
            job = client.get(f"/jobs/{job_id}").json()
            if job["state"] == "done":
                break
            await asyncio.sleep(0.05)
    assert job["state"] == "done"
    assert job["attempt"] == 1  # the one that was stopped does not count
    assert job["result"]["metadata"]["usage"]["completion_tokens"] == 600


def test_two_services_do_not_share_their_jobs_and_the_second_says_why(serve: Serve, tmp_path: Path) -> None:
    env = {"ZOPILOT_GPU_MODEL": "demo", "ZOPILOT_GPU_JOBS_PATH": str(tmp_path / "jobs.db")}
    with serve(**env) as first, serve(**env) as second:
        second.wait_for(lambda health: "belongs to another service" in health.get("jobs_problem", ""))
        with second.client() as client:
            refused = client.post("/jobs", json={"prompt": "Hi"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "jobs_unavailable")
            assert client.post("/prompt", json={"prompt": "Hi", "max_tokens": 1}).status_code == 200
        kill(first)
        second.wait_for(lambda health: "jobs_problem" not in health)
        with second.client() as client:
            assert client.post("/jobs", json={"prompt": "Hi"}).status_code == 202


def test_a_place_that_can_not_be_written_is_said(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serve(ZOPILOT_GPU_MODEL="demo", ZOPILOT_GPU_JOBS_PATH=str(tmp_path / "file" / "jobs.db")) as server:
        health = server.wait_for(lambda health: "jobs_problem" in health)
        assert "ZOPILOT_GPU_JOBS_PATH" in health["jobs_problem"]
        assert "jobs_problem" not in httpx.get(f"{server.url}/health", timeout=60).json()
