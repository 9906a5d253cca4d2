"""The worker's end: told to stop it drains; beyond help it says so to its callers and ends with a status of its own.

    SIGTERM ──▶ drain: no more jobs ─▶ what is in flight ends, or is cut at the deadline ─▶ BentoML's own stop
    watchdog (a thread) ──▶ fatal error, hung step ─▶ one retryable error to all in flight ─▶ exit 70, 71
                        ──▶ launcher gone ─▶ SIGTERM to this process

The watchdog needs neither the engine's thread nor the event loop; what holds the interpreter lock is ended by `faulthandler`'s
timer, which needs nothing of Python, with status 1 and every thread's stack on standard error.
Knows a runner by four methods, and exchanges by count; no models and no contents.
"""

import asyncio
import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Protocol

from runners.base import Pulse
from zopilot_gpu import log
from zopilot_gpu.api.exchanges import Exchanges
from zopilot_gpu.errors import EngineFailed, ServiceError
from zopilot_gpu.process.exits import SUPERVISED, Exit
from zopilot_gpu.settings import Settings

LAST_WORDS_S = 10.0  # for answers and errors to reach their callers, once nothing more is computed
_LOOK_S = 1.0
_LOOK_WHILE_LOADING_S = 0.1  # so that the lock is watched from an engine's first step on
_LOADING_S = 600.0  # that a library may hold the interpreter lock while a model is loaded
_NUM_STALLED = 3  # looks in a row: a process that was frozen looks stalled when it wakes
_RETRY_S = 5
_log = log.get(__name__)


class Watched(Protocol):
    """What is needed of the runner."""

    def pulse(self) -> Pulse | None:
        """Whether it lives, once it has loaded; asked from a thread."""
        ...

    def abandon(self, error: ServiceError) -> None:
        """Ends all in flight with `error`."""
        ...

    def drain(self) -> None:
        """Takes no more jobs."""
        ...

    async def close(self) -> None:
        """Ends all in flight as `ShuttingDown`."""
        ...


def look_after(runner: Watched, close_jobs: Callable[[], Awaitable[None]], exchanges: Exchanges, settings: Settings) -> None:
    """Starts the watchdog of this process and takes over its SIGTERM. Call it inside the event loop, on the main thread."""
    Drain(runner, close_jobs, exchanges, settings.drain_s).take_over()
    Watchdog(runner, exchanges, settings.hung_step_s).start()


class Drain:
    """What SIGTERM does first."""

    def __init__(
        self, runner: Watched, close_jobs: Callable[[], Awaitable[None]], exchanges: Exchanges, deadline_s: float
    ) -> None:
        self._runner, self._close_jobs, self._exchanges, self._deadline_s = runner, close_jobs, exchanges, deadline_s
        self._loop = asyncio.get_running_loop()
        self._then = signal.getsignal(signal.SIGTERM)
        self._task: asyncio.Task[None] | None = None

    def take_over(self) -> None:
        """Puts itself before whoever handles SIGTERM so far."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        _end_after(self._deadline_s + LAST_WORDS_S)
        mark = self._exchanges.num_begun
        _log.warning("draining", num_in_flight=self._exchanges.num_open(mark), deadline_s=self._deadline_s)
        self._runner.drain()
        await self._close_jobs()
        if not await self._exchanges.ended(mark, self._deadline_s):
            _log.warning("drain_cut", num_in_flight=self._exchanges.num_open(mark))
            await self._runner.close()
            await self._exchanges.ended(mark, LAST_WORDS_S)
        if callable(self._then):
            self._then(signal.SIGTERM, None)


def _end_after(seconds: float) -> None:
    """Ends the process then, with status 0, whatever still holds it: a reader who does not read, a step that hangs."""
    timer = threading.Timer(seconds, os._exit, [0])
    timer.daemon = True
    timer.start()


class Watchdog(threading.Thread):
    """Ends the process when its engine is beyond help, and asks it to stop when its launcher is gone."""

    def __init__(self, runner: Watched, exchanges: Exchanges, hung_step_s: float) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._runner, self._exchanges, self._hung_step_s = runner, exchanges, hung_step_s
        self._loop = asyncio.get_running_loop()
        self._num_stalled = 0
        self._launcher = int(os.environ.get(SUPERVISED, "0"))
        self._wakes = threading.Event()

    def run(self) -> None:
        """Looks once a second, for as long as the process lives."""
        look_s = _LOOK_WHILE_LOADING_S
        while not self._wakes.wait(look_s):
            if self._launcher and os.getppid() != self._launcher:
                self._launcher = 0
                _log.error("launcher_gone")
                os.kill(os.getpid(), signal.SIGTERM)
            pulse = self._runner.pulse()
            held_s = _LOADING_S if pulse is None else 2 * self._hung_step_s
            faulthandler.dump_traceback_later(held_s, exit=True, file=sys.__stderr__ or sys.stderr)
            look_s = _LOOK_WHILE_LOADING_S if pulse is None else _LOOK_S
            if pulse is None:  # it loads, or is closed
                continue
            self._num_stalled = self._num_stalled + 1 if pulse.stalled_s > self._hung_step_s else 0
            if pulse.fatal:
                self._end(Exit.CUDA_ERROR, pulse.fatal)
            elif self._num_stalled >= _NUM_STALLED:
                self._end(Exit.HUNG_STEP, f"A step has not ended for {pulse.stalled_s:.0f} s.")

    def _end(self, status: Exit, problem: str) -> None:
        _log.error("worker_ends", exit_status=int(status), problem=problem)
        try:
            asyncio.run_coroutine_threadsafe(self._tell(), self._loop).result(LAST_WORDS_S)
        finally:  # the loop may hang too, or have ended
            os._exit(status)

    async def _tell(self) -> None:
        mark, in_time = self._exchanges.num_begun, False
        while not in_time:  # again, for those who were still on their way to the engine
            self._runner.abandon(EngineFailed(retry_after_s=_RETRY_S))
            in_time = await self._exchanges.ended(mark, _LOOK_S)
