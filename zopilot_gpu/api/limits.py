"""Bounds on what a request may weigh, checked before anything reads it. Knows bytes, counts and seconds; no JSON.

The body is read here, whole, under its own deadline and outside any slot, so that a slow sender holds nothing but its
own connection. The app below receives it in one piece.
"""

import asyncio
import contextlib

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zopilot_gpu.api.failures import ErrorResponse
from zopilot_gpu.errors import InvalidRequest

_MOST_DIGITS = 18
_ONCE = (b"authorization", b"content-length", b"content-type", b"host", b"x-api-key")
_MOST_DISCARDED_BYTES = 64 * 1024 * 1024


class ClientGone(Exception):
    """The caller left before its request was complete."""


class Limits:
    """Refuses headers, bodies and content types beyond the bounds: 400, 408, 413, 415."""

    def __init__(
        self, app: ASGIApp, *, max_body_bytes: int, body_timeout_s: float, max_headers: int, max_header_bytes: int
    ) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._max_headers = max_headers
        self._max_header_bytes = max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request with its body already read, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            self._check_headers(scope)
            body = await self._read(receive)
            _check_content_type(scope, body)
        except InvalidRequest as refusal:
            if refusal.status == 413 and "expect" not in Headers(scope=scope):
                await self._discard(receive)
            await ErrorResponse(refusal)(scope, receive, send)
        except ClientGone:
            pass
        else:
            await self.app(scope, replay_body(body, receive), send)

    def _check_headers(self, scope: Scope) -> None:
        headers = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > self._max_headers or size > self._max_header_bytes:
            limit = f"at most {self._max_headers} header lines and {self._max_header_bytes} bytes of headers"
            raise InvalidRequest(400, "headers_too_large", f"This service takes {limit}.")
        names = [name for name, _ in headers]
        if repeated := [name for name in _ONCE if names.count(name) > 1]:
            raise InvalidRequest(400, "repeated_header", f"Send {repeated[0].decode()} once.")
        if b"transfer-encoding" in names and b"content-length" in names:
            raise InvalidRequest(400, "ambiguous_length", "Send either Content-Length or Transfer-Encoding.")
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and (len(declared) > _MOST_DIGITS or int(declared) > self._max_body_bytes):
            raise self._too_large()

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    body += message.get("body", b"")
                    if len(body) > self._max_body_bytes:
                        raise self._too_large()
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            sentence = f"The body did not arrive within {self._body_timeout_s:g} seconds."
            raise InvalidRequest(408, "body_timeout", sentence) from None

    async def _discard(self, receive: Receive) -> None:
        """Reads on for a while: a client that is still sending when the connection closes never sees its 413."""
        discarded = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._body_timeout_s):
                more = True
                while more and discarded < _MOST_DISCARDED_BYTES:
                    message = await receive()
                    discarded += len(message.get("body", b""))
                    more = message.get("more_body", False)

    def _too_large(self) -> InvalidRequest:
        return InvalidRequest(413, "body_too_large", f"The body may have at most {self._max_body_bytes} bytes.")


def _check_content_type(scope: Scope, body: bytes) -> None:
    if not body:
        return
    headers = Headers(scope=scope)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise InvalidRequest(415, "unsupported_media_type", "Send the body as 'Content-Type: application/json'.")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest(415, "unsupported_encoding", "Send the body without a Content-Encoding.")


def replay_body(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives `body` in one piece, and then what `receive` gives."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
