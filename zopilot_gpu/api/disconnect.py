"""A caller that leaves takes its work along. Knows ASGI's `http.disconnect`; refuses to run an answer for nobody.

uvicorn goes on running a handler whose client is gone. Here the handler is a task of its own, and the disconnect
cancels it: for one JSON answer as for a stream. The cancellation reaches the runner as a closed event stream.
"""

import asyncio
import contextlib

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Disconnect:
    """Cancels the app below when the client disconnects."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request whose body has been read by the time of the second `receive`."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await receive()
        gone = asyncio.Event()
        handler = asyncio.ensure_future(self.app(scope, _receive_from(body, gone), send))
        watcher = asyncio.create_task(_watch(receive, gone))
        try:
            await asyncio.wait({handler, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if not handler.done():
                handler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await handler
        finally:
            handler.cancel()
            watcher.cancel()


async def _watch(receive: Receive, gone: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    gone.set()


def _receive_from(body: Message, gone: asyncio.Event) -> Receive:
    messages = [body]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    return receive
