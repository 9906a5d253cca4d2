"""Who was there when it began, and who came since."""

import asyncio

from starlette.types import Message, Receive, Scope, Send

from zopilot_gpu.api.exchanges import Counted, Exchanges


async def test_only_those_before_the_mark_are_waited_for() -> None:
    exchanges, gates = Exchanges(), [asyncio.Event(), asyncio.Event()]

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await gates[scope["number"]].wait()
        if scope["number"] == 0:
            raise RuntimeError("it ends with an error, but it ends")

    async def nothing(*_: Message) -> Message:
        return {}

    def begin(number: int) -> "asyncio.Task[None]":
        counted = Counted(app, exchanges)
        return asyncio.create_task(counted({"type": "http", "number": number}, nothing, nothing))  # type: ignore[arg-type]

    first = begin(0)
    await asyncio.sleep(0)
    mark = exchanges.num_begun
    second = begin(1)
    await asyncio.sleep(0)
    assert (mark, exchanges.num_begun, exchanges.num_open(mark)) == (1, 2, 1)
    assert not await exchanges.ended(mark, 0.01)
    gates[0].set()
    assert await exchanges.ended(mark, 60)
    assert exchanges.num_open(exchanges.num_begun) == 1
    gates[1].set()
    await second
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], RuntimeError)
