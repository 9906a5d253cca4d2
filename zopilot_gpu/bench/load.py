"""Sends a workload in one of two ways. Knows the clock; nothing of HTTP.

closed loop   a fixed number of callers, each asks again when it has its answer: the service sets the pace
open loop     requests come when they are due, whether others are answered or not: the callers set the pace
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator

from zopilot_gpu.bench.client import Record
from zopilot_gpu.bench.workload import Body

Ask = Callable[[Body, float], Awaitable[Record]]  # a body, and the reading of `time.monotonic()` at which it is due
OnRecord = Callable[[Record], None]


async def closed_loop(
    ask: Ask, bodies: Iterable[Body], num_callers: int, *, duration_s: float = float("inf"), on_record: OnRecord | None = None
) -> list[Record]:
    """Asks all of `bodies`, or as many as are begun within `duration_s`. A request is due when its caller is free.

    Returns:
        One record a request, in the order in which they ended.
    """
    deadline_s = time.monotonic() + duration_s
    records: list[Record] = []
    turns = iter(bodies)

    async def call() -> None:
        while (now_s := time.monotonic()) < deadline_s and (body := next(turns, None)) is not None:
            _keep(await ask(body, now_s), records, on_record)

    async with asyncio.TaskGroup() as callers:
        for _ in range(num_callers):
            callers.create_task(call())
    return records


async def open_loop(
    ask: Ask,
    bodies: Iterable[Body],
    arrivals: Iterator[float],
    *,
    duration_s: float = float("inf"),
    on_record: OnRecord | None = None,
) -> list[Record]:
    """Asks all of `bodies` at their `arrivals` (seconds from now), or those that are due within `duration_s`.

    NOTE: a request is due at its arrival even where this loop is late. Counting from when it was sent would leave out the
    time that it waited for us or for a stalled service (coordinated omission).

    Returns:
        One record a request, in the order in which they ended.
    """
    began_s = time.monotonic()
    records: list[Record] = []

    async def call(body: Body, due_s: float) -> None:
        _keep(await ask(body, due_s), records, on_record)

    async with asyncio.TaskGroup() as calls:
        for body, offset_s in zip(bodies, arrivals, strict=False):
            if offset_s > duration_s:
                break
            await asyncio.sleep(max(0.0, began_s + offset_s - time.monotonic()))
            calls.create_task(call(body, began_s + offset_s))
    return records


def _keep(record: Record, records: list[Record], on_record: OnRecord | None) -> None:
    records.append(record)
    if on_record:
        on_record(record)
