"""Callers who know the right answer and keep asking: what each request came to, when it began, and nothing else.

right      200, whole, and the expected text
refused    an error of ours that says when to come again
cut        the connection ended before the answer did
wrong      anything else: other text, a success that is none, an error without a way out
"""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.conftest import Server

FIELDS = {"vendor": "Acme", "invoice_number": "INV-1042", "total": "118.40", "due_date": "2026-12-01"}
QUESTIONS: list[dict[str, Any]] = [
    {"prompt": prompt, "context": FIELDS, "temperature": 0, "max_tokens": 120, "stream": stream}
    for prompt in ("Return all fields as JSON.", "What is the total?", "Who is the vendor?")
    for stream in (False, True)
]
_PAUSE_S = 1.0  # of a caller that was not answered


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a request came to; `what` is its text or its error's code."""

    kind: str
    what: str
    began_s: float
    ended_s: float


@dataclass
class Callers:
    """16 of them by default, each with its own connection."""

    server: Server
    expected: dict[str, str]
    outcomes: list[Outcome] = field(default_factory=list)
    open: dict[int, float] = field(default_factory=dict)  # who waits for an answer now, and since when

    def counts(self) -> Counter[str]:
        """How many of each kind."""
        return Counter(one.kind for one in self.outcomes)

    def assert_none_wrong(self) -> None:
        assert not [one for one in self.outcomes if one.kind == "wrong"]

    async def ask(self, number: int) -> None:
        """Asks again and again."""
        async with httpx.AsyncClient(base_url=self.server.url, headers=self.server.headers, timeout=120) as client:
            while True:
                body = QUESTIONS[number % len(QUESTIONS)]
                number += 1
                began_s = self.open[number] = time.monotonic()
                try:
                    kind, what = await self._one(client, body)
                except httpx.TransportError as error:
                    kind, what = "cut", type(error).__name__
                finally:
                    del self.open[number]
                self.outcomes.append(Outcome(kind, what, began_s, time.monotonic()))
                if kind != "right":
                    await asyncio.sleep(_PAUSE_S)

    async def _one(self, client: httpx.AsyncClient, body: dict[str, Any]) -> tuple[str, str]:
        expected = self.expected[body["prompt"]]
        answer = await client.post("/prompt", json=body)
        if answer.status_code == 503 and "retry-after" in answer.headers:
            return "refused", answer.json()["error"]["code"]
        if answer.status_code != 200:
            return "wrong", answer.text[:300]
        if not body["stream"]:
            told = answer.json()
            return ("right" if told["success"] and told["output"] == expected else "wrong"), answer.text[:300]
        pieces, name, last = read_events(answer.text)
        if not expected.startswith("".join(pieces)):
            return "wrong", answer.text[-300:]
        if name == "error" and last["error"]["code"] in {"engine_failed", "shutting_down"}:
            return "refused", last["error"]["code"]
        whole = name == "done" and last["output"] == "".join(pieces) == expected
        return ("right" if whole else "wrong"), answer.text[-300:]


def read_events(text: str) -> tuple[list[str], str, dict[str, Any]]:
    """The pieces of a stream of `/prompt`, the name of its last event, and that event's data."""
    pieces, name, data = [], "", {}
    for event in text.replace("\r\n", "\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in event.splitlines() if not line.startswith(":"))
        if lines:
            name, data = lines["event"], json.loads(lines["data"])
            if name == "text":
                pieces.append(data["text"])
    return pieces, name, data


def right_answers(server: Server) -> dict[str, str]:
    """What the questions have for an answer."""
    with server.client() as client:
        return {one["prompt"]: client.post("/prompt", json=one | {"stream": False}).json()["output"] for one in QUESTIONS}


@asynccontextmanager
async def calling(server: Server, expected: dict[str, str], num_callers: int = 16) -> AsyncIterator[Callers]:
    """Callers that ask as long as the block runs."""
    callers = Callers(server, expected)
    tasks = [asyncio.create_task(callers.ask(1000 * number)) for number in range(num_callers)]
    try:
        yield callers
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
