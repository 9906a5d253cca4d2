"""The playground in a real browser, against the served demo model. Run it with `make browser`; CI has no browser."""

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Page, browsing
from tests.conftest import KEY, Serve, Server

IDLE = "!document.getElementById('run').disabled"
MANY = json.dumps({f"field_{number}": f"value {number}" for number in range(12)})


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[Server]:
    with serve(ZOPILOT_GPU_MODEL="demo") as server:
        yield server


async def run(page: Page, prompt: str, context: str = "", schema: str = "") -> None:
    await page.fill("prompt", prompt)
    await page.fill("context", context)
    await page.js("document.getElementById('schema-part').open = true")
    await page.fill("schema", schema)
    await page.press("Enter", ctrl=True)


async def test_it_asks_streams_shows_and_stops(server: Server) -> None:
    async with browsing(f"{server.url}/playground") as page:
        await page.until("document.getElementById('state').dataset.status === 'ok'")
        assert "demo on CPU" in await page.text("state-text")
        await page.fill("key", KEY)

        await run(page, "What is the total?", '{"vendor": "Acme", "total": "118.40"}')
        await page.until("document.getElementById('finish').textContent === 'stop'")
        assert await page.text("output") == "118.40"
        for figure in ("ttft", "speed", "took", "prompt-tokens", "answer-tokens"):
            assert any(letter.isdigit() for letter in await page.text(figure)), figure

        await page.js(
            "window.seen = new Set(); const output = document.getElementById('output');"
            "new MutationObserver(() => seen.add(output.textContent.length)).observe(output, {childList: true})"
        )
        await run(page, "Return all fields as JSON.", MANY)
        await page.until("document.getElementById('output').textContent.length > 20")
        await page.press("Escape")
        await page.until(IDLE)
        assert await page.text("finish") == "stopped by you"
        assert await page.js("seen.size") > 3
        await asyncio.to_thread(server.wait_for, lambda health: health["queue"]["num_running"] == 0, 3)

        schema = '{"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}'
        await run(page, "What is the total?", '{"total": "118.40"}', schema)
        await page.until("document.getElementById('finish').textContent === 'stop'")
        assert isinstance(json.loads(await page.text("output"))["total"], int | float)

        assert await page.js("document.querySelectorAll('#history button').length") == 3
        await page.js("document.querySelectorAll('#history button')[2].click()")
        assert await page.js("document.getElementById('context').value") == '{"vendor": "Acme", "total": "118.40"}'
        assert KEY not in await page.text("code")
        await page.click("tab-python")
        assert "httpx.stream" in await page.text("code")
        compile(await page.text("code"), "python", "exec")
        assert page.complaints == []
        assert {url.partition("/playground")[0].rpartition("/")[0] or url for url in page.urls} <= {server.url, "http:/"}
        assert all(url.startswith(server.url) and KEY not in url for url in page.urls)


async def test_what_is_wrong_is_said_in_a_sentence(server: Server) -> None:
    async with browsing(f"{server.url}/playground") as page:
        for context, said in [("[1]", "JSON object"), ('{"a": 1,\n oops', "line 2"), ('{"a"', "not JSON yet")]:
            await page.fill("context", context)
            assert said in await page.text("context-problem")
        await page.press("Enter", ctrl=True)
        assert await page.js("document.activeElement.id") == "context"
        await page.fill("key", "wrong-key")
        await run(page, "Hello!")
        await page.until("!document.getElementById('error').hidden")
        assert await page.text("error-text") == "This key is not valid."
        await page.fill("key", KEY)
        await run(page, "Hello!", "", '{"type": "object", "properties": {"a": {"not": {}}}}')
        await page.until("document.getElementById('error-text').textContent.startsWith('json_schema')")
        await page.js("location.reload()")
        await page.until("document.readyState === 'complete' && document.getElementById('key')?.value === " + json.dumps(KEY))
        assert [one for one in page.complaints if "Failed to load resource" not in one] == []


@pytest.mark.parametrize("width", [320, 390, 1280])
async def test_nothing_is_wider_than_the_screen(server: Server, width: int) -> None:
    async with browsing(f"{server.url}/playground") as page:
        await page.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        await page.js("for (const part of document.querySelectorAll('details')) part.open = true")
        assert await page.js("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(server: Server, scheme: str) -> None:
    """With AXE=/path/to/axe.min.js (npm's axe-core); without it this looks at names and roles as Chromium computes them."""
    async with browsing(f"{server.url}/playground") as page:
        await page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await page.js("for (const part of document.querySelectorAll('details')) part.open = true")
        if axe := os.environ.get("AXE"):
            await page.js(await asyncio.to_thread(Path(axe).read_text) + ";0")
            assert await page.js("axe.run().then((found) => found.violations.map((one) => one.id))") == []
        await page.send("Accessibility.enable")
        nodes = (await page.send("Accessibility.getFullAXTree"))["nodes"]
        controls = [node for node in nodes if node.get("role", {}).get("value") in {"button", "textbox", "spinbutton", "tab"}]
        assert len(controls) > 15
        assert [node for node in controls if not node.get("name", {}).get("value")] == []
