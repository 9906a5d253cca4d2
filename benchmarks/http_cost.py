"""What HTTP adds to an answer of the Mixtral backend: one caller, one question, asked again and again for one token.

One token, because a whole answer's generation varies by more than HTTP costs, and HTTP does the same work for an answer of
any length that is not streamed.

Measured in two ways, in turn with each other. The client's time less what the service says that it took: all that happens
before the service's clock starts and after it stops. And the client's time less that of the same generation in this
process, without HTTP, tokenizer or template: all that stands around the engine.
"""

import asyncio
import time
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.servers import KEYS, served
from runners.base import Backend
from runners.environment import set_before_torch
from zopilot_gpu import log
from zopilot_gpu.bench.client import Client
from zopilot_gpu.bench.workload import Body
from zopilot_gpu.events import Done, Job, Sampling
from zopilot_gpu.text.template import Template

_QUESTION = "What is the total?"
_CONTEXT = {"vendor": "Acme", "invoice_number": "INV-1042", "total": "118.40", "due_date": "2026-12-01"}
_BODY: Body = {"prompt": _QUESTION, "context": _CONTEXT, "max_tokens": 1, "temperature": 0}
_SAMPLING = Sampling(temperature=0, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=None)
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class _InProcess:
    """The backend without a service."""

    backend: Backend
    template: Template

    async def ask(self) -> tuple[float, float, int]:
        """Seconds of tokenizing and of generating, and the number of tokens."""
        began_s = time.perf_counter()
        ids = self.template.encode(_QUESTION, _CONTEXT)
        encoded_s = time.perf_counter()
        job = Job("in-process", _QUESTION, _CONTEXT, _BODY["max_tokens"], _SAMPLING, (), deadline_s=float("inf"))
        count = 0
        async for event in self.backend.generate(job, ids, job.max_tokens):
            if isinstance(event, Done):
                count = event.usage.completion_tokens
        return encoded_s - began_s, time.perf_counter() - encoded_s, count


def measure(repeats: int) -> dict[str, Any]:
    """Medians over `repeats` pairs of an answer over HTTP and one in this process."""
    with served("mixtral") as url:
        return asyncio.run(_measure(url, repeats))


async def _measure(url: str, repeats: int) -> dict[str, Any]:
    inside = await asyncio.to_thread(_load, asyncio.get_running_loop())
    client_s, service_s, encode_s, engine_s = [], [], [], []
    async with Client(url, KEYS[0]) as client:
        for number in range(_WARM_UP + repeats):
            record = await client.ask(_BODY, time.monotonic())
            encoding_s, generating_s, count = await inside.ask()
            if record.error or record.completion_tokens != count:
                raise RuntimeError(f"{record.error}: {record.completion_tokens} tokens over HTTP, {count} in this process")
            if number >= _WARM_UP:
                client_s.append(record.latency_s)
                service_s.append(record.processing_s)
                encode_s.append(encoding_s)
                engine_s.append(generating_s)
    await inside.backend.close()
    outside_s = [whole - inner for whole, inner in zip(client_s, service_s, strict=True)]
    added_s = [whole - inner for whole, inner in zip(client_s, engine_s, strict=True)]
    times = {"client": client_s, "service": service_s, "engine": engine_s, "tokenize": encode_s}
    return {
        "repeats": repeats,
        "num_tokens": count,
        **{f"{name}_p50_ms": round(median(values) * 1000, 3) for name, values in times.items()},
        "outside_service_clock_p50_ms": round(median(outside_s) * 1000, 3),
        "added_over_engine_p50_ms": round(median(added_s) * 1000, 3),
    }


def _load(event_loop: asyncio.AbstractEventLoop) -> _InProcess:
    log.configure("warning")
    set_before_torch()
    from runners.device import Device
    from runners.mixtral import MixtralBackend
    from zopilot_gpu.settings import Settings
    from zopilot_gpu.store.ensure import Wanted, ensure
    from zopilot_gpu.text.template import template_for
    from zopilot_gpu.text.tokenizer import Tokenizer

    prepared = ensure(Wanted("demo", build=False))
    tokenizer = Tokenizer(prepared.located.directory)
    settings = Settings(allow_anonymous=True)
    backend = MixtralBackend(prepared, Device("cpu", "measuring"), tokenizer, settings, event_loop, lambda *_: None)
    return _InProcess(backend, template_for(prepared.located.model_type, tokenizer))


def table(found: dict[str, Any]) -> Table:
    """The medians."""
    shown = Table("one caller, p50", "ms")
    rows = {
        "over HTTP, seen by the client": "client_p50_ms",
        "of that by the service's own clock": "service_p50_ms",
        "the engine alone, in process": "engine_p50_ms",
        "tokenizer and template, in process": "tokenize_p50_ms",
        "HTTP: client less service's clock": "outside_service_clock_p50_ms",
        "HTTP and all else: client less engine": "added_over_engine_p50_ms",
    }
    for label, name in rows.items():
        shown.add_row(label, f"{found[name]:.2f}")
    return shown
