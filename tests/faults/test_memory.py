"""Small requests leave nothing behind: BentoML's timer for each of them alone would be 4.4 KB."""

import asyncio
import subprocess
import sys

import httpx
import psutil

from tests.conftest import ROOT, Server

_MIDDLEWARE = "from service import ZopilotGPU; print([m.cls.__name__ for m in ZopilotGPU.to_asgi().user_middleware])"


def test_bentoml_adds_neither_a_timeout_nor_a_limit_of_its_own() -> None:
    names = subprocess.run([sys.executable, "-c", _MIDDLEWARE], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "'Gate'" in names
    assert "Timeout" not in names
    assert "Concurrency" not in names


def resident_bytes(server: Server) -> int:
    (worker,) = [child for child in psutil.Process(server.process.pid).children() if "worker" in " ".join(child.cmdline())]
    return int(worker.memory_info().rss)


async def test_refused_requests_leave_nothing_behind(mixtral_server: Server) -> None:
    async def refused(client: httpx.AsyncClient, count: int) -> None:
        for _ in range(count):
            assert (await client.get("/metrics")).status_code == 401

    async with httpx.AsyncClient(base_url=mixtral_server.url) as client:
        await asyncio.gather(*(refused(client, 100) for _ in range(10)))
        before = resident_bytes(mixtral_server)
        await asyncio.gather(*(refused(client, 400) for _ in range(10)))
    assert resident_bytes(mixtral_server) - before < 8_000_000  # 4,000 timers are 17 MB


def test_no_file_of_the_worker_stays_open(mixtral_server: Server) -> None:
    (worker,) = psutil.Process(mixtral_server.process.pid).children()
    before = worker.num_fds()
    for _ in range(50):
        assert httpx.get(f"{mixtral_server.url}/livez", timeout=60).status_code == 200
    assert worker.num_fds() <= before + 2
