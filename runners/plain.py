"""The plain backend: any causal LM that transformers knows, one generation at a time.

Knows the loaded model, and how to carry its tokens from its one thread to the event loop. It is the slow twin of the Mixtral
backend and the fallback for architectures that have none.

    event loop:  generate ──▶ waiting line ──▶ queue of events ──▶ caller
    thread:                       └──▶ CausalLM.continue_ids ──▶ text ──┘
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from torch import OutOfMemoryError

from runners.base import BackendState, Progress, Pulse
from runners.causal_lm import CausalLM, Scores
from runners.device import Device, memory_bytes
from runners.grammars import Grammars
from runners.line import WaitingLine
from zopilot_gpu import log
from zopilot_gpu.engine.grammar import GrammarError, unfollowable
from zopilot_gpu.engine.loop import fatal_reason
from zopilot_gpu.errors import DeadlineExceeded, EngineFailed, InternalError, OutOfMemory, ServiceError, ShuttingDown
from zopilot_gpu.events import GREEDY, Done, Event, Job, Text
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.locate import Located
from zopilot_gpu.text.answer import Answer
from zopilot_gpu.text.tokenizer import Tokenizer

_log = log.get(__name__)
_RETRY_S = 5


class PlainBackend:
    """Implements `runners.base.Backend`. Loads the model where it is made; `event_loop` is where its events go."""

    def __init__(
        self,
        located: Located,
        device: Device,
        tokenizer: Tokenizer,
        settings: Settings,
        event_loop: asyncio.AbstractEventLoop,
        progress: Progress,
    ) -> None:
        self._lm = CausalLM(located, device, progress)
        progress("warming up", 1.0)
        self._lm.continue_ids(tokenizer.encode("warm-up"), 1, GREEDY, lambda _: None, lambda: False)
        self.window = min(self._lm.max_context_tokens, settings.max_context_tokens)
        self.vocab_size = self._lm.vocab_size
        self._device = device
        self._tokenizer = tokenizer
        self._grammars = Grammars(tokenizer, self._lm.vocab_size, self._lm.eos_ids)
        self._event_loop = event_loop
        self._line = WaitingLine(settings.max_waiting)
        self._stopping = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plain")
        self._memory = memory_bytes(device)
        self._problem: str | None = None

    def state(self) -> BackendState:
        """See `Backend.state`."""
        return BackendState(self._line.num_running, self._line.num_waiting, self._problem, *self._memory)

    def pulse(self) -> Pulse:
        """See `Backend.pulse`. A generation that hangs is not told from a long one."""
        return Pulse(self._problem)

    def abandon(self, error: ServiceError) -> None:
        """See `Backend.abandon`: nothing is left in flight here, each generation was told of its own error."""

    def refuse_when_full(self, owner: bytes) -> None:
        """See `Backend.refuse_when_full`."""
        self._line.refuse_when_full(owner)

    async def generate(self, job: Job, ids: list[int], max_tokens: int) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        grammar = await self._grammars.of(job.json_schema)
        await self._line.acquire(job.deadline_s, job.owner)
        answer = Answer(self._tokenizer, self._lm.eos_ids, job.stop)
        scores = None if job.sampling.num_logprobs is None else Scores(job.sampling.num_logprobs)
        work = partial(self._lm.continue_ids, ids, max_tokens, job.sampling, grammar=grammar, scores=scores)
        generation = _Generation(work, answer, job, len(ids), self._stopping, scores)
        self._start(generation)
        try:
            async for event in generation.events():
                yield event
        finally:
            generation.cancel()

    async def close(self) -> None:
        """See `Backend.close`."""
        self._stopping.set()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _start(self, generation: "_Generation") -> None:
        """Hands the slot to the thread; it comes back when the thread is done, not when the caller has left."""
        try:
            future = self._thread.submit(self._run, generation)
        except RuntimeError:  # shut down since the line let us in
            self._line.release()
            raise ShuttingDown(retry_after_s=_RETRY_S) from None

        def free_the_slot(_: Future[None]) -> None:
            if not self._event_loop.is_closed():
                self._event_loop.call_soon_threadsafe(self._line.release)

        future.add_done_callback(free_the_slot)

    def _run(self, generation: "_Generation") -> None:
        """On the thread."""
        generation.run()
        try:
            self._memory = memory_bytes(self._device)
        except RuntimeError as error:
            self._problem = f"The GPU does not answer any more ({type(error).__name__})."
            _log.error("gpu_failed", problem=self._problem)


class _Generation:
    """One job on the thread, and its events on the way to the loop."""

    def __init__(
        self,
        work: Callable[..., None],
        answer: Answer,
        job: Job,
        num_prompt_tokens: int,
        stopping: threading.Event,
        scores: Scores | None,
    ) -> None:
        self._work, self._answer, self._job, self._num_prompt_tokens = work, answer, job, num_prompt_tokens
        self._scores = scores
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[Event | ServiceError] = asyncio.Queue()
        self._stopping = stopping
        self._cancelled = threading.Event()

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
        """The whole generation, on the backend's thread."""
        if self._cancelled.is_set():
            return
        try:
            self._work(on_token=self._on_token, should_stop=self._should_stop)
            self._send_text(self._answer.flush())
            self._send(self._answer.done(self._num_prompt_tokens))
        except ServiceError as error:
            self._send(error)
        except GrammarError:
            self._send(unfollowable())
        except OutOfMemoryError:
            _log.warning("out_of_memory", num_prompt_tokens=self._num_prompt_tokens)
            self._send(OutOfMemory(retry_after_s=_RETRY_S))
        except Exception as error:  # noqa: BLE001  (a border: this thread outlives every job)
            _log.error("generation_failed", exc_info=error)
            self._send(EngineFailed(retry_after_s=_RETRY_S) if fatal_reason(error) else InternalError())

    def _on_token(self, token_id: int) -> None:
        self._send_text(self._answer.push([token_id], [self._scores.of(token_id)] if self._scores else None))

    def _should_stop(self) -> bool:
        if self._stopping.is_set():
            raise ShuttingDown(retry_after_s=_RETRY_S)
        if time.monotonic() > self._job.deadline_s:
            raise DeadlineExceeded
        return self._cancelled.is_set() or self._answer.stopped

    def _send_text(self, text: str) -> None:
        if text:
            self._send(Text(text, self._answer.take_logprobs()))

    def _send(self, event: Event | ServiceError) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._outbox.put_nowait, event)
