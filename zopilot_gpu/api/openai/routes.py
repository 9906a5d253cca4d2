"""The OpenAI-compatible routes: choices as one JSON object, or as server-sent events.

    data: {"object": "chat.completion.chunk", ...}     any number of times
    data: [DONE]                                       or, when it fails on the way: data: {"error": {...}}

The status line waits until every choice has begun, so a refusal is never a 200. The data is ASCII, as `/prompt`'s is.
"""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runners.base import Runner
from zopilot_gpu.api import request
from zopilot_gpu.api.failures import as_service_error
from zopilot_gpu.api.openai import errors
from zopilot_gpu.api.openai.answers import Model, ModelList
from zopilot_gpu.api.openai.parse import Asked, asked_of_chat, asked_of_completion, parse, refuse_other_model
from zopilot_gpu.api.openai.shapes import ChatRequest, CompletionRequest
from zopilot_gpu.api.openai.telling import Told, begin
from zopilot_gpu.api.openai.wire import ChatWire, CompletionWire, Wire
from zopilot_gpu.settings import Settings

_PING_S = 15


def routes(runner: Callable[[], Runner], settings: Callable[[], Settings]) -> list[Route]:
    """The routes. `runner` and `settings` give the service's, once it is made."""
    started = int(time.time())

    def served() -> Model:
        return Model(id=runner().state().model, created=started)

    async def models(_: Request) -> Response:
        return JSONResponse(ModelList(data=[served()]).model_dump())

    async def model(sent: Request) -> Response:
        refuse_other_model(sent.path_params["model"], runner().state())
        return JSONResponse(served().model_dump())

    async def chat(sent: Request) -> Response:
        asked = parse(ChatRequest, await sent.body())
        refuse_other_model(asked.model, runner().state())
        info = request.current()
        job = await asyncio.to_thread(asked_of_chat, asked, info, settings().request_timeout_s)
        return await _answer(runner(), job, ChatWire, settings().request_timeout_s)

    async def completion(sent: Request) -> Response:
        asked = parse(CompletionRequest, await sent.body())
        refuse_other_model(asked.model, runner().state())
        job = asked_of_completion(asked, request.current(), settings().request_timeout_s)
        return await _answer(runner(), job, CompletionWire, settings().request_timeout_s)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{model:path}", model, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", completion, methods=["POST"]),
    ]


async def _answer(runner: Runner, asked: Asked, kind: type[Wire], timeout_s: float) -> Response:
    info = request.current()
    told = await begin(runner, asked, info.arrived_s)
    wire = kind(info.request_id, runner.state().model, asked)
    if asked.stream:
        return EventSourceResponse(
            _stream(wire, told, asked),
            ping=_PING_S,
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
            shutdown_grace_period=timeout_s,  # a stream may finish after SIGTERM, as a plain answer does
        )
    async with contextlib.aclosing(told):
        async for one in told:
            wire.take(one)
    return JSONResponse(wire.whole().model_dump())


async def _stream(wire: Wire, told: AsyncGenerator[Told, None], asked: Asked) -> AsyncIterator[ServerSentEvent]:
    try:
        async with contextlib.aclosing(told):
            async for one in told:
                wire.take(one)
                for chunk in wire.chunks(one):
                    yield ServerSentEvent(json.dumps(chunk.model_dump()))
        if asked.include_usage:
            yield ServerSentEvent(json.dumps(wire.last().model_dump()))
        yield ServerSentEvent("[DONE]")
    except Exception as error:  # noqa: BLE001  (a border: the stream has begun, so the error goes into it)
        yield ServerSentEvent(json.dumps(errors.body(as_service_error(error))))
