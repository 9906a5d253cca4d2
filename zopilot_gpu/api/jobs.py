"""`/jobs`: prompts that are answered later. Knows the wire and how a job is done; `zopilot_gpu.jobs` keeps and feeds them.

A job is one prompt: what `/prompt` would take, refuse and answer is what a job takes, refuses and has as its result. A batch is
many jobs that came in one body. Whoever sent a job, told by the key, sees it; to all others it isn't there.
"""

import asyncio
import hashlib
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runners.base import Runner
from zopilot_gpu.api import prompt, request
from zopilot_gpu.api.failures import as_service_error, error_body
from zopilot_gpu.api.parse import check, job_of, parse_prompt, read_as
from zopilot_gpu.api.request import RequestInfo
from zopilot_gpu.api.schemas import PromptRequest, PromptResponse
from zopilot_gpu.errors import EngineFailed, InvalidRequest, ServiceError
from zopilot_gpu.jobs.queue import JobQueue
from zopilot_gpu.jobs.record import STATES, NotNow, Outcome, Record, view, whole_view
from zopilot_gpu.settings import Settings

MAX_BATCH = 1000
MAX_PAGE = 200
_MAX_KEY_CHARS = 200
_PING_S = 15
_LATER = frozenset(
    {"model_loading", "model_unavailable", "overloaded", "rate_limited", "shutting_down"}
)  # refusals of the moment
_END = {"done": "done", "failed": "error", "cancelled": "cancelled"}


class JobRequest(PromptRequest):
    """The body of `POST /jobs` for one prompt."""

    callback_url: str | None = Field(default=None, description="Where to send the result; see Callbacks.")


class BatchRequest(BaseModel):
    """The body of `POST /jobs` for many."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompts: list[PromptRequest] = Field(min_length=1, max_length=MAX_BATCH)
    callback_url: str | None = None


def open_queue(settings: Settings, runner: Runner) -> JobQueue:
    """The service's line of jobs, which does them as `/prompt` does."""

    async def work(record: Record) -> AsyncGenerator[str | Outcome | NotNow, None]:
        info = RequestInfo(record.job_id, owner=record.owner)
        try:
            asked = parse_prompt((record.request or "").encode())
            telling = await prompt.begin(runner, asked, info, settings.request_timeout_s)
            async with aclosing(telling.as_pieces()) as pieces:
                async for piece in pieces:
                    yield Outcome("done", piece.model_dump_json()) if isinstance(piece, PromptResponse) else piece
        except Exception as error:  # noqa: BLE001  (a border: whatever fails, the job ends with it)
            refusal = as_service_error(error)
            if isinstance(refusal, EngineFailed):
                return  # as it runs, so the process ends with it: the next one begins it again, and counts
            if refusal.code in _LATER:
                yield NotNow(refusal.retry_after_s or 1)
            else:
                yield Outcome("failed", json.dumps(error_body(refusal, record.job_id)))

    return JobQueue(settings, runner, work)


def routes(queue: Callable[[], JobQueue]) -> Sequence[Route]:
    """The routes; `queue` gives the service's line of jobs once it is made."""

    async def submit(asked: Request) -> Response:
        return await _submit(queue(), asked)

    async def page(asked: Request) -> Response:
        return await _page(queue(), asked)

    async def one(asked: Request) -> Response:
        return JSONResponse(whole_view(await _own(queue(), asked)))

    async def cancel(asked: Request) -> Response:
        record = await queue().cancel(request.current().owner, asked.path_params["id"])
        return JSONResponse(whole_view(_found(record)))

    async def events(asked: Request) -> Response:
        record = await _own(queue(), asked)
        attempt, _, offset = asked.headers.get("last-event-id", "").partition(":")
        start = (int(attempt), int(offset)) if _is_number(attempt) and _is_number(offset) else (0, 0)
        return EventSourceResponse(
            _events(queue(), record, *start), ping=_PING_S, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        )

    return [
        Route("/jobs", submit, methods=["POST"]),
        Route("/jobs", page, methods=["GET"]),
        Route("/jobs/{id}", one, methods=["GET"]),
        Route("/jobs/{id}", cancel, methods=["DELETE"]),
        Route("/jobs/{id}/events", events, methods=["GET"]),
    ]


async def _submit(queue: JobQueue, asked: Request) -> Response:
    body, owner = await asked.body(), request.current().owner
    key = asked.headers.get("idempotency-key")
    if key is not None and not (0 < len(key) <= _MAX_KEY_CHARS and key.isascii() and key.isprintable()):
        raise InvalidRequest(400, "idempotency_key_invalid", f"Idempotency-Key has 1 to {_MAX_KEY_CHARS} printable characters.")
    digest = hashlib.sha256(body).digest()
    store = queue.store
    if key is not None and (known := await store.submission(owner, key)):
        return _same(known, digest)
    prompts, is_batch, callback_url = await asyncio.to_thread(_read, body)
    if callback_url is not None:
        queue.courier.policy.check(callback_url)
    batch_id, now = (uuid.uuid4().hex if is_batch else None), time.time()
    new = [
        Record(0, uuid.uuid4().hex, batch_id, owner, "queued", 0, one.model_dump_json(), None, callback_url, now, None, None)
        for one in prompts
    ]
    if await queue.submit(new, key, digest) or (known := await store.submission(owner, key or "")) is None:
        return _accepted(new)
    return _same(known, digest)  # the same key came twice at once


def _read(body: bytes) -> tuple[list[PromptRequest], bool, str | None]:
    """The prompts of a body, whether they are a batch, and where their callbacks go. All that `/prompt` refuses is refused."""
    asked: JobRequest | BatchRequest
    if _names_prompts(body):
        asked = read_as(BatchRequest, body)
        prompts = asked.prompts
    else:
        asked = read_as(JobRequest, body)
        prompts = [PromptRequest.model_construct(**asked.model_dump(exclude={"callback_url"}))]
    for number, one in enumerate(prompts):
        try:
            _refuse_stream(one)
            check(one)
            job_of(one, RequestInfo("-"), 1)
        except InvalidRequest as refusal:
            if isinstance(asked, BatchRequest):
                raise InvalidRequest(refusal.status, refusal.code, f"prompts.{number}.{refusal.message}") from None
            raise
        one.seed = secrets.randbits(63) if one.seed is None else one.seed  # a job that runs again says the same again
    return prompts, isinstance(asked, BatchRequest), asked.callback_url


def _refuse_stream(asked: PromptRequest) -> None:
    if asked.stream:
        raise _invalid("stream: GET /jobs/{id}/events is a job's stream")


def _names_prompts(body: bytes) -> bool:
    try:
        asked = from_json(body)
    except ValueError:
        return False  # its problem is told when it is read
    return isinstance(asked, dict) and "prompts" in asked


def _same(known: tuple[bytes, list[Record]], digest: bytes) -> Response:
    if not secrets.compare_digest(known[0], digest):
        raise InvalidRequest(409, "idempotency_key_reused", "This Idempotency-Key came with another body before.")
    return _accepted(known[1])


def _accepted(records: Sequence[Record]) -> Response:
    first = records[0]
    if first.batch_id is None:
        return JSONResponse(view(first), 202, {"Location": f"/jobs/{first.job_id}"})
    body = {"batch": first.batch_id, "jobs": [view(record) for record in records]}
    return JSONResponse(body, 202, {"Location": f"/jobs?batch={first.batch_id}"})


async def _page(queue: JobQueue, asked: Request) -> Response:
    query = asked.query_params
    if unknown := set(query) - {"limit", "after", "state", "batch"}:
        raise _invalid(f"{sorted(unknown)[0][:50]}: unknown parameter")
    limit, after = query.get("limit", "50"), query.get("after", str(2**62))
    if not _is_number(limit) or not 1 <= int(limit) <= MAX_PAGE:
        raise _invalid(f"limit: must be 1 to {MAX_PAGE}")
    if not _is_number(after):
        raise _invalid("after: must be what an earlier page has as `next`")
    if query.get("state", STATES[0]) not in STATES:
        raise _invalid(f"state: must be one of {', '.join(STATES)}")
    where, values = "owner = ? AND seq < ?", [request.current().owner, int(after)]
    for name, column in (("state", "state"), ("batch", "batch_id")):
        if name in query:
            where, values = f"{where} AND {column} = ?", [*values, query[name]]
    found = await queue.store.records(where, [*values, int(limit) + 1], "ORDER BY seq DESC LIMIT ?")
    shown = found[: int(limit)]
    following = str(shown[-1].seq) if len(found) > len(shown) else None
    return JSONResponse({"jobs": [view(record) for record in shown], "next": following})


async def _events(queue: JobQueue, record: Record, attempt: int, offset: int) -> AsyncIterator[ServerSentEvent]:
    try:
        async with aclosing(queue.follow(record, attempt, offset)) as following:
            async for told in following:
                if isinstance(told, Record):
                    record = told
                    yield _sse(_END.get(told.state, "state"), _told(told))
                else:
                    yield _sse("text", {"text": told[2]}, f"{told[0]}:{told[1]}")
    except ServiceError as error:
        yield _sse("error", error_body(error, record.job_id))


def _told(record: Record) -> dict[str, Any]:
    """The end of a job is told as `/prompt` would, anything else as a state."""
    return json.loads(record.result) if record.result else view(record)


def _sse(event: str, data: dict[str, Any], event_id: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data=json.dumps(data), event=event, id=event_id)


async def _own(queue: JobQueue, asked: Request) -> Record:
    return _found(await queue.store.get(request.current().owner, asked.path_params["id"]))


def _found(record: Record | None) -> Record:
    if record is None:
        raise InvalidRequest(404, "job_not_found", "There is no such job, or not with this key.")
    return record


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) < 2**63


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(422, "invalid_request", message)
