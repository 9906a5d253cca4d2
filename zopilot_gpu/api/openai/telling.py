"""The events of a request's jobs as those of its choices. Knows runners and calls; nothing of the wire.

    first job ── first event ──▶ the others start, and find the prompt in the prefix cache
    each choice: Said (text, any number of times) or Called (once, whole and checked), then Ended

What is refused at once is refused before the first event of any choice is told. Leaving the stream ends all the jobs.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal

from runners.base import Runner
from zopilot_gpu.api import json_schema, metrics
from zopilot_gpu.api.openai import tools
from zopilot_gpu.api.openai.parse import Asked
from zopilot_gpu.api.openai.tools import Calling
from zopilot_gpu.events import Done, Event, Job, Text, TokenLogprob, Usage

_REFUSED_S = 1.0  # a refusal comes at once; a choice that only waits for its turn is not waited for
FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of the text of choice `index`."""

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Called:
    """The call that choice `index` is."""

    index: int
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of choice `index`."""

    index: int
    finish_reason: FinishReason
    usage: Usage


Told = Said | Called | Ended


async def begin(runner: Runner, asked: Asked, arrived_s: float) -> AsyncGenerator[Told, None]:
    """The choices of `asked`, mixed as they come. Returns once the first has begun, and the others have not been refused.

    Raises:
        ServiceError: one of them is refused; none goes on.
    """
    first, *others = [_choice(runner, job, index, asked.calling, arrived_s) for index, job in enumerate(asked.jobs)]
    mixing = _Mixing()
    try:
        await mixing.add(first).wait()
        if begun := [asyncio.ensure_future(mixing.add(choice).wait()) for choice in others]:
            _, waiting = await asyncio.wait(begun, timeout=_REFUSED_S)
            for one in waiting:
                one.cancel()
        mixing.raise_what_failed()
        told = mixing.told()
        return _rejoin(await anext(told), told)  # NOTE: it has to have begun, or nobody ends the jobs of one that is dropped
    except BaseException:
        await mixing.close()
        raise


async def _rejoin(first: Told, rest: AsyncGenerator[Told, None]) -> AsyncGenerator[Told, None]:
    async with contextlib.aclosing(rest):
        yield first
        async for told in rest:
            yield told


class _Mixing:
    """Several choices as one stream."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[Told | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._failure: Exception | None = None

    def add(self, choice: AsyncGenerator[Told, None]) -> asyncio.Event:
        """Lets a choice run; the event says that it has begun, or failed."""
        begun = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._carry(choice, begun)))
        return begun

    async def _carry(self, choice: AsyncGenerator[Told, None], begun: asyncio.Event) -> None:
        try:
            async with contextlib.aclosing(choice):
                async for told in choice:
                    self._arrived.put_nowait(told)
                    begun.set()
        except Exception as error:  # noqa: BLE001  (carried to who reads the stream)
            self._failure = self._failure or error
        self._arrived.put_nowait(None)
        begun.set()

    def raise_what_failed(self) -> None:
        if self._failure:
            raise self._failure

    async def told(self) -> AsyncGenerator[Told, None]:
        """What the choices tell; closing it ends them."""
        left = len(self._tasks)
        try:
            while left:
                one = await self._arrived.get()
                if one is None:
                    self.raise_what_failed()
                    left -= 1
                else:
                    yield one
        finally:
            await self.close()

    async def close(self) -> None:
        """Ends what still runs."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _choice(
    runner: Runner, job: Job, index: int, calling: Calling | None, arrived_s: float
) -> AsyncGenerator[Told, None]:
    if calling and calling.forced:
        stream = _call(runner, job, index, calling, arrived_s)
    elif calling:
        stream = _text_or_call(runner, job, index, calling, arrived_s)
    else:
        stream = _text(runner, job, index, arrived_s)
    async with contextlib.aclosing(stream):
        async for told in stream:
            yield told


async def _text(runner: Runner, job: Job, index: int, arrived_s: float) -> AsyncGenerator[Told, None]:
    """A choice that is text; with a schema, proven to keep it before its end is told."""
    pieces = list[str]()
    async with contextlib.aclosing(_observed(runner.generate(job), arrived_s)) as events:
        async for event in events:
            if isinstance(event, Text):
                pieces.append(event.text)
                yield Said(index, event.text, event.logprobs)
            else:
                if job.json_schema is not None and event.finish_reason == "stop":
                    await asyncio.to_thread(json_schema.conform, "".join(pieces), job.json_schema, event)
                yield Ended(index, event.finish_reason, event.usage)


async def _call(runner: Runner, job: Job, index: int, calling: Calling, arrived_s: float) -> AsyncGenerator[Told, None]:
    """A choice that is a call. One that is cut is no call: nothing of it is told but its end."""
    written = tools.job_of_call(job, calling)
    pieces = list[str]()
    async with contextlib.aclosing(_observed(runner.generate(written), arrived_s)) as events:
        async for event in events:
            if isinstance(event, Text):
                if not pieces:
                    yield Said(index, "")  # it has begun
                pieces.append(event.text)
            elif event.finish_reason == "length":
                yield Ended(index, "length", event.usage)
            else:
                call = await asyncio.to_thread(json_schema.conform, "".join(pieces), calling.schema, event)
                yield Called(index, call["name"], json.dumps(call["arguments"], ensure_ascii=False))
                yield Ended(index, "tool_calls", event.usage)


async def _text_or_call(runner: Runner, job: Job, index: int, calling: Calling, arrived_s: float) -> AsyncGenerator[Told, None]:
    """A choice that begins as the model likes; a call is begun again, under its schema."""
    begun = ""
    async with contextlib.aclosing(_text(runner, job, index, arrived_s)) as said:
        is_call = None
        async for told in said:
            if is_call is None and isinstance(told, Said):
                begun += told.text
                is_call = tools.begins_a_call(begun)
                if is_call is None:
                    continue
                told = Said(index, begun)  # noqa: PLW2901  (all of it so far)
            if is_call:
                break
            if is_call is None and begun:
                yield Said(index, begun)  # nothing but white space
            yield told
    if is_call:
        async with contextlib.aclosing(_call(runner, job, index, calling, arrived_s)) as call:
            async for told in call:
                yield told


async def _observed(events: AsyncGenerator[Event, None], arrived_s: float) -> AsyncGenerator[Event, None]:
    """`events`, counted in the metrics."""
    first_s = 0.0
    async with contextlib.aclosing(events):
        async for event in events:
            elapsed_s = time.monotonic() - arrived_s
            if isinstance(event, Done):
                metrics.observe_done(event, elapsed_s - first_s)
            elif not first_s:
                first_s = elapsed_s
                metrics.observe_first_text(first_s)
            yield event
