"""Many callers on the Mixtral backend: they run together, each gets its own right answer, and the line is bounded."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.conftest import KEY, Serve, Server

NUM_CALLERS = 32
OTHER_KEY = "key-of-somebody-else"
TALKATIVE = {"prompt": "Return all fields as JSON.", "context": {f"field_{n}": f"value {n}" for n in range(12)}}


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[Server]:
    keys = f"{KEY},{OTHER_KEY}"
    with serve(ZOPILOT_GPU_MODEL="demo", ZOPILOT_GPU_MAX_WAITING="8", ZOPILOT_GPU_API_KEY=keys) as server:
        assert server.health()["model"]["runner"] == "mixtral"
        yield server


def asked(number: int) -> dict[str, Any]:
    return {"prompt": "What is the total?", "context": {"vendor": f"Acme {number}", "total": f"{number}8.{number % 10}5"}}


def idle(health: dict[str, Any]) -> bool:
    return bool(health["queue"]["num_running"] == health["queue"]["num_waiting"] == 0)


async def test_32_callers_at_once_get_their_own_answers(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        answers = await asyncio.gather(*(client.post("/prompt", json=asked(number)) for number in range(NUM_CALLERS)))
    for number, answer in enumerate(answers):
        assert answer.json()["output"] == f"{number}8.{number % 10}5"


async def test_they_run_together(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        talking = [asyncio.create_task(client.post("/prompt", json=TALKATIVE)) for _ in range(10)]
        await asyncio.to_thread(server.wait_for, lambda health: health["queue"]["num_running"] == 10)
        outputs = {(await task).json()["output"] for task in talking}
    assert len(outputs) == 1


async def test_beyond_the_line_it_is_an_honest_429(server: Server) -> None:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60, limits=limits) as client:
        answers = await asyncio.gather(*(client.post("/prompt", json=TALKATIVE) for _ in range(120)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert statuses[200] >= 72  # 64 at once, eight in line
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    server.wait_for(idle)


@pytest.mark.parametrize("stream", [False, True])
async def test_clients_who_leave_leave_no_work_behind(server: Server, stream: bool) -> None:  # noqa: FBT001
    async def leave(client: httpx.AsyncClient, after_s: float) -> None:
        asked = client.stream("POST", "/prompt", json=TALKATIVE | {"stream": stream})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s), asked as response:
                await response.aread()

    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        await asyncio.gather(*(leave(client, 0.02 * number) for number in range(20)))
        server.wait_for(idle)
        assert (await client.post("/prompt", json=asked(5))).json()["output"] == "58.55"


async def test_a_prompt_asked_again_is_found_in_the_cache(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        usages = [(await client.post("/prompt", json=TALKATIVE)).json()["metadata"]["usage"] for _ in range(2)]
    assert usages[1]["cached_tokens"] > usages[1]["prompt_tokens"] // 2
    assert usages[0]["prompt_tokens"] == usages[1]["prompt_tokens"]


async def test_what_one_key_asked_another_does_not_find_in_the_cache(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        usages = [
            (await client.post("/prompt", json=TALKATIVE, headers={"X-API-Key": key})).json()["metadata"]["usage"]
            for key in (KEY, OTHER_KEY, OTHER_KEY)
        ]
    assert usages[1]["cached_tokens"] == 0
    assert usages[2]["cached_tokens"] > 0
