"""A headless Chromium over its debugging protocol. Knows one page at a time: what it shows, asks for and complains of."""

import asyncio
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --remote-debugging-port=0""".split()  # noqa: SIM905  (as one would type them)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self.urls: list[str] = []
        self.complaints: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            told = json.loads(message.data)
            params = told.get("params", {})
            if told.get("id") in self._answers:
                self._answers.pop(told["id"]).set_result(told)
            elif told.get("method") == "Network.requestWillBeSent":
                self.urls.append(params["request"]["url"])
            elif told.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            elif told.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                self.complaints.append(params["entry"]["text"])
            elif told.get("method") == "Runtime.consoleAPICalled" and params["type"] in {"error", "warning"}:
                self.complaints.append(str(params["args"]))

    async def send(self, method: str, **params: Any) -> Any:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        waiting = self._answers[number]
        await self._socket.send_json({"id": number, "method": method, "params": params})
        told = await asyncio.wait_for(waiting, 30)
        assert "error" not in told, (method, told)
        return told["result"]

    async def open(self, url: str) -> None:
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.send(f"{domain}.enable")
        await self.send("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def js(self, expression: str) -> Any:
        told = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 20) -> None:
        async with asyncio.timeout(timeout_s):
            while not await self.js(expression):  # noqa: ASYNC110
                await asyncio.sleep(0.03)

    async def fill(self, field: str, text: str) -> None:
        """As a person does: focus, select all, type."""
        await self.js(f"document.getElementById({field!r}).focus(); document.getElementById({field!r}).select()")
        if text:
            await self.send("Input.insertText", text=text)
        else:
            await self.press("Delete")

    async def press(self, key: str, *, ctrl: bool = False) -> None:
        codes = {"Enter": 13, "Escape": 27, "Delete": 46}
        for kind in ("rawKeyDown", "keyUp"):
            await self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
                modifiers=2 if ctrl else 0,
            )

    async def text(self, field: str) -> str:
        return str(await self.js(f"document.getElementById({field!r}).textContent"))

    async def click(self, field: str) -> None:
        await self.js(f"document.getElementById({field!r}).click()")


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Page]:
    """A page of a fresh browser, at `url`."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    assert program, "no chromium: install it (Debian: apt-get install chromium) or set CHROMIUM"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            program, *FLAGS, f"--user-data-dir={profile}", "about:blank", stderr=asyncio.subprocess.DEVNULL
        )
        try:
            found = Path(profile) / "DevToolsActivePort"
            async with asyncio.timeout(30):
                while not (found.exists() and found.read_text().count("\n")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            port = found.read_text().split()[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json") as listed:
                    target = next(one for one in await listed.json() if one["type"] == "page")
                async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                    page = Page(socket)
                    await page.open(url)
                    yield page
        finally:
            process.terminate()
            await process.wait()
