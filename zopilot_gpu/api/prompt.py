"""`POST /prompt`: one event stream, told as one JSON object or as server-sent events.

Knows how an answer looks on the wire. The status line waits for the first event, so a refusal is never a 200;
an error after it travels in the stream as `event: error`.

    event: text   data: {"text": "..."}                               any number of times
    event: done   data: the same object that a plain answer is        once, or else
    event: error  data: {"success": false, "error": {...}}            once

With a schema the text events are pieces of its JSON, and `output` is the value, proven to keep the schema before it is sent.

The data is ASCII: clients that split lines as Python does would cut it at U+2028.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response

from runners.base import Runner
from zopilot_gpu.api import json_schema, metrics, request
from zopilot_gpu.api.failures import ErrorResponse, as_service_error, error_body
from zopilot_gpu.api.parse import job_of
from zopilot_gpu.api.schemas import Metadata, PromptRequest, PromptResponse, Usage
from zopilot_gpu.events import Done, Event, Job, Text

_PING_S = 15


async def answer(runner: Runner, asked: PromptRequest, timeout_s: float) -> Response:
    """The response to `asked`; errors are responses too."""
    info = request.current()
    try:
        telling = await begin(runner, asked, info, timeout_s)
        if asked.stream:
            return EventSourceResponse(
                telling.as_stream(),
                ping=_PING_S,
                headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
                shutdown_grace_period=timeout_s,  # a stream may finish after SIGTERM, as a plain answer does
            )
        return JSONResponse((await telling.as_whole()).model_dump())
    except Exception as error:  # noqa: BLE001  (a border: BentoML would answer in another shape)
        return ErrorResponse(as_service_error(error))


async def begin(runner: Runner, asked: PromptRequest, info: request.RequestInfo, timeout_s: float) -> "Telling":
    """The answer to `asked`, from its first event on.

    Raises:
        ServiceError: it is refused.
    """
    job = await asyncio.to_thread(job_of, asked, info, timeout_s)
    events = runner.generate(job)
    first = await anext(events)
    return Telling(job, runner.state().model, info, _rejoin(first, events))


async def _rejoin(first: Event, rest: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()


class Telling:
    """One answer being told."""

    def __init__(self, job: Job, model: str, info: request.RequestInfo, events: AsyncGenerator[Event, None]) -> None:
        self._job, self._model, self._info, self._events = job, model, info, events
        self._pieces: list[str] = []
        self._first_s = 0.0

    async def as_whole(self) -> PromptResponse:
        """The answer, once it is whole."""
        async for _ in self._texts():
            pass
        return await self._finish()

    async def as_pieces(self) -> AsyncGenerator[str | PromptResponse, None]:
        """Its text piece by piece, and then the whole answer."""
        async with contextlib.aclosing(self._texts()) as texts:
            async for piece in texts:
                yield piece
        yield await self._finish()

    async def as_stream(self) -> AsyncIterator[ServerSentEvent]:
        """The same as server-sent events."""
        try:
            async for piece in self._texts():
                yield _sse("text", json.dumps({"text": piece}))
            yield _sse("done", json.dumps((await self._finish()).model_dump()))
        except Exception as error:  # noqa: BLE001  (a border: the stream has begun, so the error goes into it)
            yield _sse("error", json.dumps(error_body(as_service_error(error), self._info.request_id)))

    async def _texts(self) -> AsyncGenerator[str, None]:
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                match event:
                    case Text(text):
                        if not self._pieces:
                            self._first_s = self._elapsed_s()
                            metrics.observe_first_text(self._first_s)
                        self._pieces.append(text)
                        yield text
                    case Done():
                        metrics.observe_done(event, self._elapsed_s() - self._first_s)
                        self._done = event

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._info.arrived_s

    async def _finish(self) -> PromptResponse:
        """The whole answer, once its `Done` has come; with a schema, proven to keep it."""
        output: Any = "".join(self._pieces)
        schema, usage = self._job.json_schema, self._done.usage
        if schema is not None:
            output = await asyncio.to_thread(json_schema.conform, output, schema, self._done)
        return PromptResponse(
            output=output,
            metadata=Metadata(
                request_id=self._info.request_id,
                model=self._model,
                generated_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                prompt_length=len(self._job.prompt),
                context_provided=self._job.context is not None,
                output_type="text" if schema is None else "json",
                finish_reason=self._done.finish_reason,
                processing_time_seconds=round(self._elapsed_s(), 4),
                usage=Usage(
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    completion_tokens=usage.completion_tokens,
                ),
            ),
        )


def _sse(event: str, data: str) -> ServerSentEvent:
    return ServerSentEvent(data=data, event=event)
