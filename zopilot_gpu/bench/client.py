"""One request, and what became of it: a `Record`. Knows the service's API from outside; refuses to judge.

aiohttp, because the generator shares the machine with what it measures: a streamed answer of 20 events costs it 0.5 ms of
CPU, and httpx 6 ms (2 cores, 32 callers).

    error                 the answer was not complete because
    connection_failed     there was no answer, or no whole status line
    client_timeout        it took longer than the client waits
    cut                   the stream ended with neither `done` nor `error`
    bad_answer            it is not what docs/api.md describes
    http_STATUS           the status is not 200 and the body has no code
    anything else         the service's own code
"""

import asyncio
import json
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from zopilot_gpu.bench.sse import EventParser, ServerSentEvent
from zopilot_gpu.bench.workload import Body

_KEEP_ALIVE_S = 4  # uvicorn closes an idle connection after 5: one that is used again must not be about to close


@dataclass(slots=True)
class Record:
    """One request. Times are readings of `time.monotonic()`; the client fills it in while the answer arrives.

    `num_refused` counts the refusals that were retried. `first_text_s` is 0 until there is text, and for an answer that was
    not streamed.
    """

    scheduled_s: float  # when it was due
    sent_s: float
    ended_s: float = 0.0
    first_text_s: float = 0.0
    last_text_s: float = 0.0
    num_texts: int = 0
    num_refused: int = 0
    error: str | None = "connection_failed"
    output: Any = None
    processing_s: float = 0.0  # by the service's clock
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @property
    def latency_s(self) -> float:
        """From when it was due to the end of the answer."""
        return self.ended_s - self.scheduled_s

    @property
    def send_lag_s(self) -> float:
        """How late the client sent it."""
        return self.sent_s - self.scheduled_s

    @property
    def ttft_s(self) -> float | None:
        """From when it was due to the first text; None where there was none."""
        return self.first_text_s - self.scheduled_s if self.num_texts else None

    @property
    def time_per_token_s(self) -> float | None:
        """(last text - first text) / (tokens - 1), since a token may be no text; None where there are not two of both."""
        if self.num_texts < 2 or self.completion_tokens < 2:
            return None
        return (self.last_text_s - self.first_text_s) / (self.completion_tokens - 1)


class Client:
    """Asks one service, over as many connections as are needed. Use it as an async context manager.

    Args:
        url: where the service is, without a path.
        key: an API key, or nothing.
        retry: wait out the `Retry-After` of a 429 or 503 and ask again, until `timeout_s` is over.
        timeout_s: the longest time that an answer may take.
    """

    def __init__(self, url: str, key: str = "", *, retry: bool = False, timeout_s: float = 600) -> None:
        self._url = url.rstrip("/")
        self._headers = {"X-API-Key": key} if key else {}
        self._retry = retry
        self._timeout_s = timeout_s

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            headers=self._headers,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def health(self) -> dict[str, Any]:
        """What `/health` says; nothing where it does not say it to us.

        Raises:
            aiohttp.ClientError, TimeoutError: nobody answers there.
        """
        async with self._session.get(f"{self._url}/health") as response:
            try:
                said = json.loads(await response.read())
            except ValueError:
                return {}
        return said if isinstance(said, dict) and response.ok else {}

    async def ask(self, body: Body, scheduled_s: float) -> Record:
        """Sends `body` now and reads the answer to its end, streamed or whole."""
        record = Record(scheduled_s, time.monotonic())
        try:
            while (wait_s := await self._attempt(body, record)) is not None:
                record.num_refused += 1
                await asyncio.sleep(wait_s)
        except TimeoutError:
            record.error = record.error and "client_timeout"
        except aiohttp.ClientError:
            pass  # the record says already how far it came
        except (KeyError, TypeError, ValueError):
            record.error = "bad_answer"
        record.ended_s = record.ended_s or time.monotonic()
        return record

    async def _attempt(self, body: Body, record: Record) -> float | None:
        """Seconds after which to ask again, or None when there is nothing more to ask."""
        async with self._session.post(f"{self._url}/prompt", json=body, allow_redirects=False) as response:
            if response.status != 200:
                record.error = _code_of(response.status, await response.read())
                return self._wait_s(response, record)
            record.error = "cut"
            if response.content_type == "text/event-stream":
                await _read_stream(response, record)
            else:
                _finish(json.loads(await response.read()), record, time.monotonic())
            return None

    def _wait_s(self, response: aiohttp.ClientResponse, record: Record) -> float | None:
        after = response.headers.get("Retry-After", "")
        if not (self._retry and response.status in {429, 503} and after.isdecimal()):
            return None
        wait_s = max(float(after), 0.1)
        return wait_s if time.monotonic() + wait_s < record.sent_s + self._timeout_s else None


async def _read_stream(response: aiohttp.ClientResponse, record: Record) -> None:
    parser = EventParser()
    async for piece in response.content.iter_any():
        now_s = time.monotonic()
        for event in parser.feed(piece):
            _take(event, record, now_s)


def _take(event: ServerSentEvent, record: Record, now_s: float) -> None:
    data = json.loads(event.data)
    if event.name == "text":
        record.first_text_s = record.first_text_s or now_s
        record.last_text_s = now_s
        record.num_texts += 1
    elif event.name == "error":
        record.error = str(data["error"]["code"])
        record.ended_s = now_s
    elif event.name == "done":
        _finish(data, record, now_s)


def _finish(answer: dict[str, Any], record: Record, now_s: float) -> None:
    metadata = answer["metadata"]
    usage = metadata["usage"]
    record.output = answer["output"]
    record.processing_s = float(metadata["processing_time_seconds"])
    record.prompt_tokens = int(usage["prompt_tokens"])
    record.cached_tokens = int(usage["cached_tokens"])
    record.completion_tokens = int(usage["completion_tokens"])
    record.error = None
    record.ended_s = now_s


def _code_of(status: int, body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (KeyError, TypeError, ValueError):
        return f"http_{status}"
