"""What the tests of the gate share: a client over an app, and one raw exchange where a client would tidy up too much."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass
class Sent:
    """What an app sent on one raw exchange."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int | None:
        return self.messages[0]["status"] if self.messages else None

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


Client = Callable[[ASGIApp], httpx.AsyncClient]
Raw = Callable[..., Awaitable[Sent]]


def http_scope(path: str = "/", method: str = "GET", headers: Iterable[tuple[bytes, bytes]] = ()) -> dict[str, Any]:
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
    }
    return scope | {"scheme": "http", "headers": list(headers), "server": ("test", 80), "client": ("test", 1)}


async def _raw(app: ASGIApp, receive: Receive | None = None, **scope: Any) -> Sent:
    sent = Sent()

    async def empty() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.messages.append(message)

    await app(http_scope(**scope), receive or empty, send)
    return sent


@pytest.fixture
def client() -> Client:
    """What makes an HTTP client over an app, in this process."""
    return lambda app: httpx.AsyncClient(transport=httpx.ASGITransport(app, raise_app_exceptions=True), base_url="http://test")


@pytest.fixture
def raw() -> Raw:
    """What runs one exchange; keywords are those of `http_scope`."""
    return _raw


@pytest.fixture
def echo() -> ASGIApp:
    """Answers with the body it was given."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})

    return app
