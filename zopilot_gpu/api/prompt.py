"""`POST /prompt`: one event stream, told as one JSON object or as server-sent events.

Knows how an answer looks on the wire. The status line waits for the first event, so a refusal is never a 200;
an error after it travels in the stream as `event: error`.

    event: text   data: {"text": "..."}                               any number of times
    event: done   data: the same object that a plain answer is        once, or else
    event: error  data: {"success": false, "error": {...}}            once

The data is ASCII: clients that split lines as Python does would cut it at U+2028.
"""

import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.responses import JSONResponse, Response

from runners.base import Runner
from zopilot_gpu.api import metrics, request
from zopilot_gpu.api.failures import ErrorResponse, as_service_error, error_body
from zopilot_gpu.api.parse import job_of
from zopilot_gpu.api.schemas import Metadata, PromptRequest, PromptResponse, Usage
from zopilot_gpu.events import Done, Event, Job, Text

_PING_S = 15


async def answer(runner: Runner, asked: PromptRequest, timeout_s: float) -> Response:
    """The response to `asked`; errors are responses too."""
    info = request.current()
    job = job_of(asked, info, timeout_s)
    try:
        events = runner.generate(job)
        first = await anext(events)
        telling = _Telling(job, runner.state().model, info, _rejoin(first, events))
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


async def _rejoin(first: Event, rest: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    try:
        yield first
        async for event in rest:
            yield event
    finally:
        await rest.aclose()


class _Telling:
    """One answer being told."""

    def __init__(self, job: Job, model: str, info: request.RequestInfo, events: AsyncGenerator[Event, None]) -> None:
        self._job, self._model, self._info, self._events = job, model, info, events
        self._pieces: list[str] = []

    async def as_whole(self) -> PromptResponse:
        async for piece in self._texts():
            self._pieces.append(piece)
        return self._response

    async def as_stream(self) -> AsyncIterator[ServerSentEvent]:
        try:
            async for piece in self._texts():
                self._pieces.append(piece)
                yield _sse("text", json.dumps({"text": piece}))
            yield _sse("done", json.dumps(self._response.model_dump()))
        except Exception as error:  # noqa: BLE001  (a border: the stream has begun, so the error goes into it)
            yield _sse("error", json.dumps(error_body(as_service_error(error), self._info.request_id)))

    async def _texts(self) -> AsyncIterator[str]:
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                match event:
                    case Text(text):
                        if not self._pieces:
                            metrics.observe_first_text(self._elapsed_s())
                        yield text
                    case Done():
                        metrics.observe_done(event)
                        self._response = self._finish(event)

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._info.arrived_s

    def _finish(self, done: Done) -> PromptResponse:
        usage = done.usage
        return PromptResponse(
            output="".join(self._pieces),
            metadata=Metadata(
                request_id=self._info.request_id,
                model=self._model,
                generated_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
                prompt_length=len(self._job.prompt),
                context_provided=self._job.context is not None,
                output_type="text",
                finish_reason=done.finish_reason,
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
