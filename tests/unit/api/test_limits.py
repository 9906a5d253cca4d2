"""Holds the bounds of a request: bytes declared and counted, seconds, headers, content type; what is refused reaches no app."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zopilot_gpu.api.failures import Failures
from zopilot_gpu.api.limits import Limits

MAX_BODY = 1024
JSON = {"Content-Type": "application/json"}


def limited(app: ASGIApp, *, body_timeout_s: float = 5, max_headers: int = 20, max_header_bytes: int = 10_000) -> ASGIApp:
    limits = Limits(
        app, max_body_bytes=MAX_BODY, body_timeout_s=body_timeout_s, max_headers=max_headers, max_header_bytes=max_header_bytes
    )
    return Failures(limits)


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    pytest.fail("the app was called")


def saying(*messages: Message) -> Receive:
    """A connection that says `messages` and then nothing more."""
    left = list(messages)

    async def receive() -> Message:
        if not left:
            await asyncio.Event().wait()
        return left.pop(0)

    return receive


def part(body: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


async def chunks(size: int, number: int) -> AsyncIterator[bytes]:
    for _ in range(number):
        yield b"x" * size


@pytest.mark.parametrize("size", [0, 1, MAX_BODY])
async def test_a_body_up_to_the_bound_arrives_whole(client: Any, echo: ASGIApp, size: int) -> None:
    async with client(limited(echo)) as http:
        declared = await http.post("/", content=b"x" * size, headers=JSON)
        chunked = await http.post("/", content=chunks(1, size), headers=JSON)
    assert (declared.status_code, declared.content) == (chunked.status_code, chunked.content) == (200, b"x" * size)


@pytest.mark.parametrize("size", [MAX_BODY + 1, 10 * MAX_BODY])
async def test_a_body_beyond_the_bound_is_413_declared_or_chunked(client: Any, size: int) -> None:
    async with client(limited(unreachable)) as http:
        declared = await http.post("/", content=b"x" * size, headers=JSON)
        chunked = await http.post("/", content=chunks(64, size // 64 + 1), headers=JSON)
    for response in (declared, chunked):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert response.headers["connection"] == "close"
        assert str(MAX_BODY) in response.json()["error"]["message"]


@pytest.mark.parametrize("declared", [b"1", b"1024", b"-1", b"x", b"", "\u0661".encode(), b"\xb2"])
async def test_bytes_are_counted_whatever_was_declared(raw: Any, declared: bytes) -> None:
    receive = saying(part(b"x" * 1000, more=True), part(b"x" * 1000, more=False))
    headers = [(b"content-length", declared), (b"content-type", b"application/json")]
    sent = await raw(limited(unreachable, body_timeout_s=0.05), receive, method="POST", headers=headers)
    assert sent.status == 413


@pytest.mark.parametrize("declared", [b"1025", b"9" * 30, b"9" * 5000])
async def test_a_declared_length_beyond_the_bound_is_413_however_long_the_number(raw: Any, declared: bytes) -> None:
    sent = await raw(
        limited(unreachable), saying(part(b"", more=False)), method="POST", headers=[(b"content-length", declared)]
    )
    assert sent.status == 413


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON ;charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonp", 415),
        ("application/json, text/plain", 415),
        ("application/vnd.api+json", 415),
        ("text/plain; application/json", 415),
        ("", 415),
    ],
)
async def test_a_body_is_json_by_its_content_type(client: Any, echo: ASGIApp, content_type: str, status: int) -> None:
    async with client(limited(echo)) as http:
        response = await http.post("/", content=b"{}", headers={"Content-Type": content_type})
    assert response.status_code == status


async def test_a_body_without_a_content_type_is_415_and_no_body_needs_none(client: Any, echo: ASGIApp) -> None:
    async with client(limited(echo)) as http:
        assert (await http.post("/", content=b"{}")).status_code == 415
        assert (await http.post("/")).status_code == 200
        assert (await http.get("/")).status_code == 200


@pytest.mark.parametrize("first", [[], [part(b"{", more=True)]], ids=["nothing", "half"])
async def test_a_slow_body_is_408(raw: Any, first: list[Message]) -> None:
    sent = await asyncio.wait_for(raw(limited(unreachable, body_timeout_s=0.05), saying(*first), method="POST"), 60)
    assert sent.status == 408
    assert b"body_timeout" in sent.body
    assert (b"connection", b"close") in sent.messages[0]["headers"]


async def test_a_client_that_leaves_before_its_body_is_complete_reaches_no_route(raw: Any) -> None:
    receive = saying(part(b"{", more=True), {"type": "http.disconnect"})
    await asyncio.wait_for(raw(limited(unreachable), receive, method="POST"), 60)


def header_lines(number: int, size: int) -> list[tuple[bytes, bytes]]:
    """`number` lines that weigh `size` bytes together."""
    last = size - 4 * (number - 1) - 2
    return [*[(b"ab", b"cd")] * (number - 1), (b"ab", b"c" * last)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (header_lines(20, 100), 200),
        (header_lines(21, 100), 400),
        (header_lines(2, 10_000), 200),
        (header_lines(2, 10_001), 400),
        (header_lines(5000, 30_000), 400),
    ],
    ids=["most lines", "one line more", "most bytes", "one byte more", "both"],
)
async def test_header_lines_and_bytes_are_bounded(
    raw: Any, echo: ASGIApp, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    sent = await raw(limited(echo), headers=headers)
    assert sent.status == status
    assert (b"headers_too_large" in sent.body) == (status == 400)


async def test_the_app_gets_the_body_in_one_piece_and_then_the_connection(raw: Any) -> None:
    seen: list[Message] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive()])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    receive = saying(part(b"{", more=True), part(b"}", more=False), {"type": "http.disconnect"})
    await raw(limited(app), receive, method="POST", headers=[(b"content-type", b"application/json")])
    assert seen == [part(b"{}", more=False), {"type": "http.disconnect"}]
