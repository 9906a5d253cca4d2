"""Holds how choices run: together, refused together, ended with whoever listens, and how calls are begun again."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from runners.base import RunnerState
from zopilot_gpu.api.openai.parse import Asked
from zopilot_gpu.api.openai.telling import Called, Ended, Said, Told, begin
from zopilot_gpu.api.openai.tools import Calling
from zopilot_gpu.errors import OutputInvalid, Overloaded, ServiceError
from zopilot_gpu.events import GREEDY, Done, Event, Job, Text, Usage

JOB = Job("id", "Hi", None, 9, GREEDY, (), 0)
SCHEMA = json.dumps({"type": "object", "properties": {"name": {"const": "pay"}, "arguments": {"type": "object"}}})
USAGE = Usage(3, 0, 2)


class Scripted:
    """A runner that says what it is told to, one script a job in order; an error in a script is raised."""

    def __init__(self, *scripts: list[Event | ServiceError]) -> None:
        self.scripts = list(scripts)
        self.jobs: list[Job] = []
        self.num_open = 0
        self.start, self.go = asyncio.Event(), asyncio.Event()
        self.start.set()
        self.go.set()

    def state(self) -> RunnerState:
        return RunnerState("ready", "ready", 1, "m", "cpu", 0, 0, 0)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        script = self.scripts[len(self.jobs)]
        self.jobs.append(job)
        self.num_open += 1
        try:
            await self.start.wait()
            for event in script:
                if isinstance(event, ServiceError):
                    raise event
                yield event
                await self.go.wait()
        finally:
            self.num_open -= 1

    async def close(self) -> None: ...


def asked(count: int = 1, calling: Calling | None = None, **fields: str) -> Asked:
    return Asked((replace(JOB, **fields),) * count, "m", stream=False, include_usage=False, calling=calling)  # type: ignore[arg-type]


def text(*pieces: str, reason: str = "stop") -> list[Event | ServiceError]:
    return [*(Text(piece) for piece in pieces), Done(reason, USAGE)]  # type: ignore[arg-type]


async def all_of(runner: Scripted, wanted: Asked) -> list[Told]:
    told = [one async for one in await begin(runner, wanted, time.monotonic())]
    assert runner.num_open == 0
    return told


async def test_choices_are_mixed_and_each_is_whole() -> None:
    told = await all_of(Scripted(text("a", "b"), text("c"), text()), asked(3))
    assert [one for one in told if one.index == 0] == [Said(0, "a"), Said(0, "b"), Ended(0, "stop", USAGE)]
    assert [one for one in told if one.index == 1] == [Said(1, "c"), Ended(1, "stop", USAGE)]
    assert [one for one in told if one.index == 2] == [Ended(2, "stop", USAGE)]


@pytest.mark.parametrize("place", [0, 2])
async def test_one_that_is_refused_refuses_all(place: int) -> None:
    scripts = [text("a", "b")] * 3
    scripts[place] = [Overloaded(retry_after_s=1)]
    runner = Scripted(*scripts)
    with pytest.raises(Overloaded):
        await begin(runner, asked(3), 0)
    assert runner.num_open == 0


async def test_one_that_fails_on_the_way_ends_all() -> None:
    runner = Scripted(text("a", "b"), [Text("c"), Text("d"), Overloaded()])
    with pytest.raises(Overloaded):
        await all_of(runner, asked(2))
    assert runner.num_open == 0


async def test_leaving_ends_all() -> None:
    runner = Scripted(text("a", "b"), text("c", "d"))
    runner.go.clear()
    told = await begin(runner, asked(2), 0)
    assert await anext(told) == Said(0, "a")
    assert runner.num_open == 2
    await told.aclose()
    assert runner.num_open == 0


async def test_leaving_before_the_first_event_ends_all() -> None:
    runner = Scripted(text("a"), text("b"))
    runner.start.clear()
    beginning = asyncio.create_task(begin(runner, asked(2), 0))
    await asyncio.sleep(0.05)
    beginning.cancel()
    with pytest.raises(asyncio.CancelledError):
        await beginning
    assert runner.num_open == 0


async def test_json_is_proven_before_its_end_is_told_but_not_what_was_cut() -> None:
    with pytest.raises(OutputInvalid):
        await all_of(Scripted(text('{"name": "other"}')), asked(json_schema=SCHEMA))
    cut = await all_of(Scripted(text('{"na', reason="length")), asked(json_schema=SCHEMA))
    assert cut[-1] == Ended(0, "length", USAGE)


async def test_a_forced_call_is_told_whole() -> None:
    runner = Scripted(text('{"name": "pay", ', '"arguments": {"a": 1}}'))
    told = await all_of(runner, asked(calling=Calling(SCHEMA, forced=True, preamble="")))
    assert told == [Said(0, ""), Called(0, "pay", '{"a": 1}'), Ended(0, "tool_calls", USAGE)]
    assert runner.jobs[0].json_schema == SCHEMA


AUTO = Calling(SCHEMA, forced=False, preamble="")


async def test_with_auto_a_call_is_begun_again_under_its_schema() -> None:
    runner = Scripted(text(" ", "{", "nonsense"), text('{"name": "pay", "arguments": {}}'))
    told = await all_of(runner, asked(calling=AUTO))
    assert told == [Said(0, ""), Called(0, "pay", "{}"), Ended(0, "tool_calls", USAGE)]
    assert [job.json_schema for job in runner.jobs] == [None, SCHEMA]


@pytest.mark.parametrize("pieces", [("I ", "would {"), (" ", "\n", "no"), ("  ",), ()])
async def test_with_auto_what_begins_otherwise_is_text(pieces: tuple[str, ...]) -> None:
    told = await all_of(Scripted(text(*pieces)), asked(calling=AUTO))
    assert "".join(one.text for one in told if isinstance(one, Said)) == "".join(pieces)
    assert told[-1] == Ended(0, "stop", USAGE)
