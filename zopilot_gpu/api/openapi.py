"""`GET /openapi.json`: all routes of the service, made from the models that parse and answer them.

A route is one line in `OPERATIONS`; a test compares the lines with the routes that are served and with docs/api.md.
Try it: `python -m zopilot_gpu.api.openapi`.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from zopilot_gpu import __version__
from zopilot_gpu.api import schemas
from zopilot_gpu.api.failures import error_body
from zopilot_gpu.api.openai import answers, errors, shapes
from zopilot_gpu.api.openai.errors import is_openai
from zopilot_gpu.errors import Overloaded

_REFERENCE = "#/components/schemas/{model}"
_JSON, _TEXT = "application/json", "text/plain"
_DESCRIPTIONS = {
    200: "As asked.",
    202: "Taken in, or the model is still loading.",
    204: "The model is still loading.",
    400: "Not JSON, or not valid HTTP for this service.",
    401: "No key was sent.",
    403: "The key is not valid.",
    404: "There is no such thing.",
    408: "The body did not arrive in time. May be sent again.",
    409: "The idempotency key was used with another body.",
    413: "The body is too large.",
    415: "The body is not application/json.",
    422: "Not a valid request; or an answer that was cut before its JSON was whole.",
    429: "The waiting line is full. May be sent again after Retry-After seconds.",
    500: "A fault of the service.",
    503: "Not ready. May be sent again after Retry-After seconds, if there is one.",
    504: "It took longer than the service allows a request.",
}
_KEY = (401, 403)
_GENERATES = (400, *_KEY, 408, 413, 415, 422, 429, 500, 503, 504)
_OPENAI = tuple(status for status in _GENERATES if status != 422)


class ErrorDetail(BaseModel):
    """Why not: a code for programs, a sentence for a person."""

    code: str
    message: str
    request_id: str


class ErrorBody(BaseModel):
    """The body of every answer of 400 and above, but under `/v1/`."""

    success: Literal[False]
    error: ErrorDetail


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of a path: what it does, takes and answers, and the statuses with which it refuses.

    `also` are statuses of success besides 200. `streams` says that `"stream": true` gives server-sent events; `answer` is a
    model, or the media type of what has none. An `open` one needs no key.
    """

    summary: str
    answer: type[BaseModel] | str = _JSON
    body: type[BaseModel] | None = None
    refusals: tuple[int, ...] = _KEY
    also: tuple[int, ...] = ()
    streams: bool = False
    open: bool = False
    example: Any = None


_ERROR = error_body(Overloaded(), "0c5f6c3e5a4f4b1e8d2b7a9c1e3f5a7b")
_OPENAI_ERROR = errors.body(Overloaded())
_HI = [{"role": "user", "content": "Who is the vendor? Acme sent an invoice."}]

OPERATIONS: dict[tuple[str, str], Operation] = {
    ("post", "/prompt"): Operation(
        "Answers a prompt about an optional context.", schemas.PromptResponse, schemas.PromptRequest, _GENERATES, streams=True,
        example={"prompt": "What is the total?", "context": {"total": "118.40"}},
    ),
    ("post", "/warmup"): Operation(
        "Generates one token, so that later requests find all loaded.", refusals=(*_KEY, 429, 503), also=(202,)
    ),
    ("get", "/health"): Operation("How the service is: status, model, GPU, queue, engine.", open=True),
    ("get", "/ping"): Operation("For load balancers: 204 loading, 200 ready.", refusals=(503,), also=(204,), open=True),
    ("get", "/livez"): Operation("Whether the process lives.", _TEXT, refusals=(), open=True),
    ("get", "/readyz"): Operation("Whether the model answers.", _TEXT, refusals=(503,), open=True),
    ("get", "/metrics"): Operation("Prometheus series.", _TEXT),
    ("get", "/v1/models"): Operation("The served model.", answers.ModelList),
    ("get", "/v1/models/{model}"): Operation("The served model, by name.", answers.Model, refusals=(*_KEY, 404)),
    ("post", "/v1/chat/completions"): Operation(
        "Answers a conversation.", answers.ChatCompletion, shapes.ChatRequest, (*_OPENAI, 404), streams=True,
        example={"model": "demo", "messages": _HI},
    ),
    ("post", "/v1/completions"): Operation(
        "Continues a text.", answers.Completion, shapes.CompletionRequest, (*_OPENAI, 404), streams=True,
        example={"model": "demo", "prompt": "The invoice is", "max_tokens": 16},
    ),
    ("post", "/jobs"): Operation(
        "Takes a prompt, or a batch of them, to be answered later.", body=schemas.PromptRequest, refusals=(*_GENERATES, 409),
        example={"prompt": "What is the total?", "context": {"total": "118.40"}},
        also=(202,),
    ),
    ("get", "/jobs"): Operation("The caller's jobs, the newest first."),
    ("get", "/jobs/{id}"): Operation("A job, with its result.", refusals=(*_KEY, 404)),
    ("delete", "/jobs/{id}"): Operation("Cancels a job that has not ended.", refusals=(*_KEY, 404)),
    ("get", "/jobs/{id}/events"): Operation("A job as a stream.", "text/event-stream", refusals=(*_KEY, 404)),
    ("get", "/playground"): Operation("A page to try the service with.", "text/html", refusals=(), open=True),
    ("get", "/playground/app.js"): Operation("Its script.", "text/javascript", refusals=(), open=True),
    ("get", "/playground/icon.svg"): Operation("Its icon.", "image/svg+xml", refusals=(), open=True),
    ("get", "/playground/style.css"): Operation("Its style.", "text/css", refusals=(), open=True),
    ("get", "/openapi.json"): Operation("This description."),
    ("get", "/schema.json"): Operation("BentoML's description of the service, for its Python client."),
    ("get", "/docs.json"): Operation("BentoML's own OpenAPI document, of `/prompt` only."),
    ("get", "/"): Operation("BentoML's page.", "text/html"),
}  # fmt: skip


def route() -> Route:
    """The route."""

    async def openapi(_: Request) -> Response:
        return JSONResponse(document())

    return Route("/openapi.json", openapi, methods=["GET"])


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document."""
    used = {ErrorBody, answers.OpenAIError, answers.ChatChunk}
    for operation in OPERATIONS.values():
        used |= {operation.body} if operation.body else set()
        used |= set() if isinstance(operation.answer, str) else {operation.answer}
    in_order = sorted(used, key=lambda model: (model.__module__, model.__name__))
    wanted: list[tuple[Any, Literal["validation"]]] = [(model, "validation") for model in in_order]
    references, definitions = models_json_schema(wanted, ref_template=_REFERENCE)
    named = {model: reference for (model, _), reference in references.items()}
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), operation in OPERATIONS.items():
        paths.setdefault(path, {})[method] = _told(method, path, operation, named)
    return {
        "openapi": "3.1.0",
        "info": {"title": "ZopilotGPU", "version": __version__, "description": "A language model behind POST /prompt."},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def _told(method: str, path: str, operation: Operation, named: dict[Any, Any]) -> dict[str, Any]:
    told: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": "_".join([method, *re.findall(r"\w+", path)]),
        "security": [] if operation.open else [{"key": []}, {"bearer": []}],
        "responses": {str(status): one for status, one in _responses(path, operation, named)},
    }
    if names := re.findall(r"{(\w+)}", path):
        told["parameters"] = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    if operation.body:
        content = {"schema": named[operation.body]} | ({"example": operation.example} if operation.example else {})
        told["requestBody"] = {"required": True, "content": {_JSON: content}}
    return told


def _responses(path: str, operation: Operation, named: dict[Any, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    if isinstance(operation.answer, str):
        content: dict[str, Any] = {operation.answer: {}}
    else:
        content = {_JSON: {"schema": named[operation.answer]}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {"type": "string", "description": "See docs/api.md."}}
    yield 200, {"description": _DESCRIPTIONS[200], "content": content}
    for status in operation.also:
        yield status, {"description": _DESCRIPTIONS[status]}
    refused = {"schema": named[ErrorBody], "example": _ERROR}
    if is_openai(path):
        refused = {"schema": named[answers.OpenAIError], "example": _OPENAI_ERROR}
    for status in sorted(operation.refusals if not operation.open else set(operation.refusals) - set(_KEY)):
        yield status, {"description": _DESCRIPTIONS[status], "content": {_JSON: refused}}


if __name__ == "__main__":
    print(json.dumps(document(), indent=2))  # noqa: T201
