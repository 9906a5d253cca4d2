"""What becomes of a request, told by real sockets: whole streams, cut ones, refusals, and things that are no answer."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pytest

from tests.conftest import free_port
from zopilot_gpu.bench.client import Client, Record

USAGE = {"prompt_tokens": 40, "cached_tokens": 32, "completion_tokens": 5}
DONE = {"success": True, "output": "118.40", "metadata": {"processing_time_seconds": 0.25, "usage": USAGE}}
ERROR = {"success": False, "error": {"code": "deadline_exceeded", "message": "Too long.", "request_id": "r"}}
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def event(name: str, data: Any) -> bytes:
    return f"event: {name}\r\ndata: {json.dumps(data)}\r\n\r\n".encode()


def head(status: str = "200 OK", kind: str = "text/event-stream", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", "connection: close"]
    return "\r\n".join([*lines, *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items()), "\r\n"]).encode()


def chunk(content: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(content), content)


STREAM_HEAD = head(transfer_encoding="chunked")


def says(*pieces: bytes, pause_s: float = 0, hangs: bool = False) -> Answer:
    """An answer that sends `pieces` and ends the connection; one that hangs leaves that to the client."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if hangs:
            await reader.read()

    return answer


@contextlib.asynccontextmanager
async def served(*answers: Answer) -> AsyncIterator[str]:
    """A server that gives each connection the next of `answers`, and the last one again and again."""
    left = list(answers)
    handling: list[asyncio.Task[None] | None] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handling.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError):
            asked = await reader.readuntil(b"\r\n\r\n")
            size = next(line for line in asked.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(size.partition(b":")[2]))
            await (left.pop(0) if len(left) > 1 else left[0])(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        await asyncio.gather(*filter(None, handling))


async def asked(*answers: Answer, **options: Any) -> Record:
    async with served(*answers) as url, Client(url, "k", **options) as client:
        return await client.ask({"prompt": "Hi"}, time.monotonic())


async def test_a_stream_leaves_its_times_and_counts() -> None:
    pieces = [chunk(event("text", {"text": piece})) for piece in ("118", ".", "40")]
    record = await asked(says(STREAM_HEAD, *pieces, chunk(event("done", DONE)) + b"0\r\n\r\n", pause_s=0.05))
    assert record.error is None
    assert (record.output, record.num_texts, record.processing_s) == ("118.40", 3, 0.25)
    assert (record.prompt_tokens, record.cached_tokens, record.completion_tokens) == (40, 32, 5)
    assert record.ttft_s is not None
    assert record.time_per_token_s is not None
    assert record.ttft_s >= 0.04
    assert 0.04 < record.last_text_s - record.first_text_s <= record.latency_s - record.ttft_s
    assert record.time_per_token_s == pytest.approx((record.last_text_s - record.first_text_s) / 4)


async def test_a_whole_answer_is_read_too_and_has_no_first_token() -> None:
    body = json.dumps(DONE).encode()
    record = await asked(says(head(kind="application/json", content_length=str(len(body))) + body))
    assert (record.error, record.output, record.completion_tokens) == (None, "118.40", 5)
    assert record.ttft_s is record.time_per_token_s is None


TEXT = chunk(event("text", {"text": "118"}))
REFUSAL = json.dumps({"success": False, "error": {"code": "overloaded"}}).encode()
BAD = {
    "an error in the stream": (says(STREAM_HEAD, TEXT, chunk(event("error", ERROR)) + b"0\r\n\r\n"), "deadline_exceeded"),
    "a stream that ends early": (says(STREAM_HEAD, TEXT, b"0\r\n\r\n"), "cut"),
    "a connection that ends early": (says(STREAM_HEAD, TEXT), "cut"),
    "a done that is cut": (says(STREAM_HEAD, TEXT, chunk(event("done", DONE)[:-9]) + b"0\r\n\r\n"), "cut"),
    "data that is no JSON": (says(STREAM_HEAD, chunk(b"event: text\ndata: {\n\n") + b"0\r\n\r\n"), "bad_answer"),
    "a done without usage": (says(STREAM_HEAD, chunk(event("done", {"success": True})) + b"0\r\n\r\n"), "bad_answer"),
    "a page": (says(head(kind="text/html", content_length="2") + b"ok"), "bad_answer"),
    "a refusal": (says(head("429 Too Many", "application/json", content_length=str(len(REFUSAL))) + REFUSAL), "overloaded"),
    "a proxy's refusal": (says(head("502 Bad Gateway", "text/html", content_length="3") + b"<p>"), "http_502"),
    "nothing": (says(), "connection_failed"),
    "no HTTP": (says(b"220 mail ready\r\n"), "connection_failed"),
}


@pytest.mark.parametrize("what", BAD)
async def test_what_is_no_complete_answer_is_counted_by_its_code(what: str) -> None:
    answer, code = BAD[what]
    record = await asked(answer)
    assert record.error == code
    assert record.ended_s >= record.sent_s


async def test_an_answer_that_never_ends_is_given_up() -> None:
    record = await asked(says(STREAM_HEAD, TEXT, hangs=True), timeout_s=0.2)
    assert record.error == "client_timeout"
    assert 0.2 <= record.latency_s < 60


async def test_nobody_there_is_a_failed_connection() -> None:
    async with Client(f"http://127.0.0.1:{free_port()}") as client:
        assert (await client.ask({"prompt": "Hi"}, time.monotonic())).error == "connection_failed"
        with pytest.raises(aiohttp.ClientError):
            await client.health()


BUSY = says(head("429 Too Many", "application/json", content_length=str(len(REFUSAL)), retry_after="1") + REFUSAL)
GOOD = says(STREAM_HEAD, TEXT, chunk(event("done", DONE)) + b"0\r\n\r\n")


async def test_retry_after_is_honoured_only_when_asked_for() -> None:
    refused = await asked(BUSY, GOOD)
    assert (refused.error, refused.num_refused) == ("overloaded", 0)
    retried = await asked(BUSY, GOOD, retry=True)
    assert (retried.error, retried.num_refused) == (None, 1)
    assert retried.latency_s >= 1  # the wait is part of it


async def test_retrying_ends_with_the_time_that_an_answer_may_take() -> None:
    record = await asked(BUSY, retry=True, timeout_s=1.5)
    assert record.num_refused <= 1  # none where the first refusal took more than half a second to come
    assert record.error == "overloaded"
