"""The plain runner: any causal LM that transformers knows, one generation at a time.

Knows text, files and the loaded model, and how to carry tokens from its one thread to the event loop. It is the slow
twin of faster runners and the fallback for architectures that have none. torch is imported by its thread, not by this file.

    event loop:  generate ── ids ──▶ waiting line ──▶ queue of events ──▶ caller
    thread:                              └──▶ CausalLM.continue_ids ──▶ text ──┘
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runners.base import RunnerState
from runners.line import WaitingLine
from zopilot_gpu import log
from zopilot_gpu.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    OutOfMemory,
    ServiceError,
    ShuttingDown,
)
from zopilot_gpu.events import GREEDY, Done, Event, FinishReason, Job, Text, Usage
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.fetch import fetch
from zopilot_gpu.store.locate import Located, locate, search_roots
from zopilot_gpu.text.detokenize import Detokenizer, StopStrings
from zopilot_gpu.text.template import Template, template_for
from zopilot_gpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runners.causal_lm import CausalLM

_log = log.get(__name__)
_RETRY_LOADING_S = 5
# NOTE: read when torch is imported; why is in docs/decisions/003-before-torch.md.
BEFORE_TORCH = {"OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}


@dataclass(frozen=True, slots=True)
class _Loaded:
    lm: "CausalLM"
    tokenizer: Tokenizer
    template: Template
    window: int  # tokens of prompt and answer together


class PlainRunner:
    """Implements `runners.base.Runner`. Make it inside the event loop that will call it; loading starts at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line = WaitingLine(settings.max_waiting)
        self._loaded: _Loaded | None = None
        self._stopping = threading.Event()
        self._state = RunnerState("loading", "starting", 0.0, settings.model, "unknown", 0, 0, settings.max_waiting)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plain-runner")
        # NOTE: a daemon, because a download or a read from a dead volume can't be interrupted, and must not hold up the exit.
        threading.Thread(target=self._load, name="plain-loader", daemon=True).start()

    def state(self) -> RunnerState:
        """See `Runner.state`."""
        return replace(self._state, num_running=self._line.num_running, num_waiting=self._line.num_waiting)

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """See `Runner.generate`."""
        loaded = self._ready()
        self._line.refuse_when_full()  # before the tokenizer's work is spent on it
        ids = await asyncio.to_thread(loaded.template.encode, job.prompt, job.context)
        room = loaded.window - len(ids)
        if room < 1:
            sentence = f"The prompt has {len(ids)} tokens; this model takes at most {loaded.window - 1}."
            raise InvalidRequest(422, "context_length_exceeded", sentence)
        await self._line.acquire(job.deadline_s)
        generation = _Generation(loaded, job, ids, min(job.max_tokens, room), self._stopping)
        self._start(generation)
        try:
            async for event in generation.events():
                yield event
        finally:
            generation.cancel()

    async def close(self) -> None:
        """See `Runner.close`."""
        self._stopping.set()
        self._state = replace(self._state, phase="closed")
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)
        self._loaded = None

    def _ready(self) -> _Loaded:
        if self._stopping.is_set():
            raise ShuttingDown(retry_after_s=_RETRY_LOADING_S)
        if self._state.phase == "loading":
            raise ModelLoading(retry_after_s=_RETRY_LOADING_S)
        if self._loaded is None or self._state.phase != "ready":
            raise ModelUnavailable
        return self._loaded

    def _start(self, generation: "_Generation") -> None:
        """Hands the slot to the thread; it comes back when the thread is done, not when the caller has left."""
        loop = asyncio.get_running_loop()
        try:
            future = self._thread.submit(self._run, generation)
        except RuntimeError:  # shut down since the line let us in
            self._line.release()
            raise ShuttingDown(retry_after_s=_RETRY_LOADING_S) from None

        def free_the_slot(_: Future[None]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._line.release)

        future.add_done_callback(free_the_slot)

    # The rest runs on threads: loading on one, generation on the other.

    def _run(self, generation: "_Generation") -> None:
        generation.run()
        try:
            self._note_memory()
        except RuntimeError as error:  # torch: after one failed call on the GPU, all fail
            self._fail(f"The GPU does not answer any more ({type(error).__name__}). Restart the service.")

    def _note_memory(self) -> None:
        if self._loaded:
            name, used, total = self._loaded.lm.memory_bytes()
            self._state = replace(self._state, gpu_name=name, memory_used_bytes=used, memory_total_bytes=total)

    def _load(self) -> None:
        began_s = time.monotonic()
        try:
            located = self._find()
            self._state = replace(self._state, model=located.name)
            self._progress("importing torch and transformers", 0.05)
            for name, value in BEFORE_TORCH.items():
                os.environ.setdefault(name, value)
            from runners.causal_lm import CausalLM, choose_device  # noqa: PLC0415  (torch: seconds, and not at build time)

            device = choose_device(self._settings.device)
            self._state = replace(self._state, device=device.name)
            tokenizer = Tokenizer(located.directory)
            self._progress("weights", 0.1)
            lm = CausalLM(located, device, lambda step, share: self._progress(step, 0.1 + 0.85 * share))
            self._progress("warming up", 0.95)
            lm.continue_ids(tokenizer.encode("warm-up"), 1, GREEDY, lambda _: None, lambda: False)
            window = min(lm.max_context_tokens, self._settings.max_context_tokens)
            self._loaded = _Loaded(lm, tokenizer, template_for(located.model_type, tokenizer), window)
        except ShuttingDown:
            _log.info("loading_stopped")
        except ServiceError as problem:
            self._fail(problem.detail or problem.message)
        except Exception as error:  # noqa: BLE001  (a border: whatever fails here, the process goes on to say so)
            _log.error("load_failed", exc_info=error)
            self._fail(f"Loading failed: {type(error).__name__}: {error}")
        else:
            load_s = round(time.monotonic() - began_s, 2)
            self._note_memory()
            self._state = replace(self._state, phase="ready", step="ready", progress=1.0, load_s=load_s)
            _log.info("model_ready", model=self._state.model, device=device.name, why=device.reason, load_s=load_s)

    def _find(self) -> Located:
        self._progress("looking for the model", 0.0)
        wanted = self._settings
        roots = search_roots(wanted.volume, wanted.hf_home)
        try:
            return locate(wanted.model, wanted.revision, roots)
        except ModelUnavailable:
            if not wanted.allow_download:
                raise
        self._progress("downloading", 0.01)
        root = next(root for root in roots if root.is_dir() or root == roots[-1])
        token = wanted.hf_token.get_secret_value() if wanted.hf_token else None
        cache = root / ("hub" if root == roots[-1] else "huggingface/hub")
        fetch(wanted.model, wanted.revision, cache, token)
        return locate(wanted.model, wanted.revision, roots)

    def _progress(self, step: str, share: float) -> None:
        if self._stopping.is_set():
            raise ShuttingDown
        self._state = replace(self._state, step=step, progress=round(share, 3))
        _log.info("loading", step=step, progress=round(share, 3))

    def _fail(self, problem: str) -> None:
        self._state = replace(self._state, phase="failed", step="failed", problem=problem)
        _log.error("model_unavailable", problem=problem)


class _Generation:
    """One job on the thread, and its events on the way to the loop."""

    def __init__(self, loaded: _Loaded, job: Job, ids: list[int], max_tokens: int, stopping: threading.Event) -> None:
        self._loaded, self._job, self._ids, self._max_tokens = loaded, job, ids, max_tokens
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Event | ServiceError] = asyncio.Queue()
        self._detokenizer = Detokenizer(loaded.tokenizer.decode)
        self._stops = StopStrings(job.stop)
        self._stopping = stopping
        self._cancelled = threading.Event()
        self._num_tokens = 0
        self._ended = False

    async def events(self) -> AsyncGenerator[Event, None]:
        """What the thread sends, up to and including `Done`."""
        while True:
            event = await self._outbox.get()
            if isinstance(event, ServiceError):
                raise event
            yield event
            if isinstance(event, Done):
                return

    def cancel(self) -> None:
        """Ends the work after the token in progress."""
        self._cancelled.set()

    def run(self) -> None:
        """The whole generation, on the runner's thread."""
        if self._cancelled.is_set():
            return
        try:
            self._loaded.lm.continue_ids(self._ids, self._max_tokens, self._job.sampling, self._on_token, self._should_stop)
            self._finish()
        except ServiceError as error:
            self._send(error)
        except Exception as error:  # noqa: BLE001  (a border: this thread outlives every job)
            self._send(self._failure(error))

    def _on_token(self, token_id: int) -> None:
        self._num_tokens += 1
        if token_id in self._loaded.lm.eos_ids:
            self._ended = True
        elif token_id not in self._loaded.tokenizer.special_ids:
            self._send_text(self._stops.push(self._detokenizer.push(token_id)))

    def _should_stop(self) -> bool:
        if self._stopping.is_set():
            raise ShuttingDown(retry_after_s=_RETRY_LOADING_S)
        if time.monotonic() > self._job.deadline_s:
            raise DeadlineExceeded
        return self._cancelled.is_set() or self._stops.hit

    def _finish(self) -> None:
        self._send_text(self._stops.push(self._detokenizer.flush()))
        self._send_text(self._stops.flush())
        reason: FinishReason = "stop" if self._ended or self._stops.hit else "length"
        self._send(Done(reason, Usage(len(self._ids), 0, self._num_tokens)))

    def _failure(self, error: Exception) -> ServiceError:
        from torch import OutOfMemoryError  # noqa: PLC0415

        if isinstance(error, OutOfMemoryError):
            _log.warning("out_of_memory", num_prompt_tokens=len(self._ids))
            return OutOfMemory(retry_after_s=_RETRY_LOADING_S)
        _log.error("generation_failed", exc_info=error)
        return InternalError()

    def _send_text(self, text: str) -> None:
        if text:
            self._send(Text(text))

    def _send(self, event: Event | ServiceError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, event)
