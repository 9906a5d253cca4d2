"""Both loops send everything once; the open one sends when requests are due, and counts from then."""

import asyncio
import time
from itertools import count, repeat
from typing import Any

from zopilot_gpu.bench.client import Record
from zopilot_gpu.bench.load import closed_loop, open_loop


class Service:
    """Answers after `answer_s`, one request at a time where `serial`."""

    def __init__(self, answer_s: float, *, serial: bool = False) -> None:
        self._answer_s = answer_s
        self._turn = asyncio.Semaphore(1 if serial else 1000)
        self.asked: list[int] = []
        self.most_at_once = self._at_once = 0

    async def ask(self, body: dict[str, Any], scheduled_s: float) -> Record:
        record = Record(scheduled_s, time.monotonic(), error=None)
        self.asked.append(body["number"])
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        async with self._turn:
            await asyncio.sleep(self._answer_s)
        self._at_once -= 1
        record.ended_s = time.monotonic()
        return record


def numbered(num: int) -> list[dict[str, Any]]:
    return [{"number": number} for number in range(num)]


async def test_a_closed_loop_keeps_its_callers_busy_and_asks_each_once() -> None:
    service, seen = Service(0.01), list[Record]()
    records = await closed_loop(service.ask, numbered(20), 4, on_record=seen.append)
    assert service.asked == list(range(20))
    assert service.most_at_once == 4
    assert records == seen


async def test_a_closed_loop_begins_nothing_after_its_time_and_ends_what_it_began() -> None:
    service = Service(0.2)
    records = await closed_loop(service.ask, ({"number": number} for number in count()), 2, duration_s=0.5)
    assert 2 <= len(records) <= 6  # two callers, 0.2 s each, within 0.5 s
    assert max(record.scheduled_s for record in records) - min(record.scheduled_s for record in records) < 0.5
    assert all(record.ended_s for record in records)


async def test_an_open_loop_sends_when_a_request_is_due() -> None:
    service = Service(0.5)
    due_s = [0.0, 0.01, 0.05, 0.2]
    records = await open_loop(service.ask, numbered(4), iter(due_s))
    began_s = min(record.scheduled_s for record in records)
    assert service.most_at_once == 4  # nobody waited for an answer
    assert [round(record.scheduled_s - began_s, 6) for record in records] == due_s
    assert all(record.send_lag_s >= 0 for record in records)


async def test_an_open_loop_counts_the_wait_for_a_stalled_service() -> None:
    """Ten requests due within 0.1 s at a service that takes 0.05 s each: the last has waited for all others."""
    records = await open_loop(Service(0.05, serial=True).ask, numbered(10), (0.01 * number for number in count()))
    assert max(record.latency_s for record in records) > 0.4


async def test_an_open_loop_that_is_late_itself_counts_that_too() -> None:
    service = Service(0.0)

    async def stall(body: dict[str, Any], scheduled_s: float) -> Record:
        if body["number"] == 0:
            time.sleep(0.2)  # noqa: ASYNC251  (stalls the loop itself)
        return await service.ask(body, scheduled_s)

    records = await open_loop(stall, numbered(3), repeat(0.0))
    assert all(record.latency_s >= 0.2 for record in records)
    assert max(record.send_lag_s for record in records) >= 0.2


async def test_an_open_loop_ends_with_what_is_due_in_its_time() -> None:
    bodies = ({"number": number} for number in count())
    records = await open_loop(Service(0.01).ask, bodies, (0.02 * number for number in count(1)), duration_s=0.11)
    assert len(records) == 5
