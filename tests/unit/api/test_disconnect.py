"""Holds what happens when a caller leaves: the handler ends, tidied up, and no task stays behind; without it nothing is cut."""

import asyncio
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from zopilot_gpu.api.disconnect import Disconnect

BODY: Message = {"type": "http.request", "body": b"{}", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


class Connection:
    """A client that sent its body and leaves when `leave` is called."""

    def __init__(self) -> None:
        self._messages: asyncio.Queue[Message] = asyncio.Queue()
        self._messages.put_nowait(BODY)

    def leave(self) -> None:
        self._messages.put_nowait(GONE)

    async def receive(self) -> Message:
        return await self._messages.get()


@pytest.fixture
def connection() -> Connection:
    return Connection()


@pytest.fixture(autouse=True)
async def _no_task_left() -> Any:
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    assert asyncio.all_tasks() <= before | {asyncio.current_task()}


async def test_a_handler_is_cancelled_when_its_client_leaves(raw: Any, connection: Connection) -> None:
    steps: list[str] = []

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        steps.append("started")
        connection.leave()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.01)
            steps.append("tidied up")

    sent = await asyncio.wait_for(raw(Disconnect(handler), connection.receive), 60)
    assert steps == ["started", "tidied up"]
    assert sent.messages == []


async def test_a_stream_is_cancelled_between_two_pieces(raw: Any, connection: Connection) -> None:
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(1000):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            if number == 2:
                connection.leave()
            await asyncio.sleep(0.001)

    sent = await asyncio.wait_for(raw(Disconnect(handler), connection.receive), 60)
    assert 3 <= len(sent.body) < 10


async def test_a_response_is_complete_when_the_client_stays(raw: Any, connection: Connection) -> None:
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        assert await receive() == BODY
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await asyncio.sleep(0.001)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"end"})

    sent = await asyncio.wait_for(raw(Disconnect(handler), connection.receive), 60)
    assert sent.body == b"x" * 20 + b"end"


async def test_a_handler_that_listens_is_never_given_the_body_twice(raw: Any, connection: Connection) -> None:
    heard: list[Message] = []

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        heard.append(await receive())
        connection.leave()
        heard.append(await receive())
        await asyncio.sleep(60)

    await asyncio.wait_for(raw(Disconnect(handler), connection.receive), 60)
    assert heard in ([BODY], [BODY, GONE])  # cancelled where it listens, or just after


async def test_an_error_of_the_handler_passes(raw: Any, connection: Connection) -> None:
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("of the handler")

    with pytest.raises(LookupError, match="of the handler"):
        await asyncio.wait_for(raw(Disconnect(handler), connection.receive), 60)


async def test_an_error_while_tidying_up_passes(raw: Any, connection: Connection) -> None:
    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        connection.leave()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise LookupError("while tidying up") from None

    with pytest.raises(LookupError, match="while tidying up"):
        await asyncio.wait_for(raw(Disconnect(handler), connection.receive), 60)


async def test_a_cancelled_exchange_cancels_its_handler(raw: Any, connection: Connection) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    exchange = asyncio.create_task(raw(Disconnect(handler), connection.receive))
    await asyncio.wait_for(began.wait(), 60)
    exchange.cancel()
    with pytest.raises(asyncio.CancelledError):
        await exchange
    await asyncio.wait_for(ended.wait(), 60)


async def test_what_is_not_http_passes() -> None:
    seen: list[str] = []

    async def handler(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        pytest.fail("not for this test")

    await Disconnect(handler)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]
