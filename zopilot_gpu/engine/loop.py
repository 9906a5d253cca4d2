"""The engine's thread: takes sequences in, steps, hands tokens out. Knows an event loop to speak to; no text and no HTTP.

event loop                                thread "engine"
  submit(sequence) ──▶ inbox ──▶ add ┐
  abort(sequence)  ──▶ inbox ──▶ remove ├──▶ step ──▶ deliver, once a step ──▶ mailbox of each sequence
                                 expire ┘

Whatever goes wrong in a turn ends the sequences that are in flight, each with an error in its mailbox, and the thread goes on
with an empty engine. A turn that hangs shows: `stalled_s` grows. After an error that the device does not get over, `fatal` says
which, everything is refused as retryable, and nothing is tried again: only a new process can go on.
"""

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from torch import OutOfMemoryError

from zopilot_gpu import log
from zopilot_gpu.engine.engine import Drawn, Engine
from zopilot_gpu.engine.grammar import unfollowable
from zopilot_gpu.engine.scheduler import TooLong
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import DeadlineExceeded, EngineFailed, InternalError, OutOfMemory, ServiceError, ShuttingDown

_log = log.get(__name__)
_IDLE_S = 0.5  # the longest time between two heartbeats while nothing runs
_RETRY_S = 5
_NEWLINE = "\n"  # after it come torch's hints
_SIGNS_OF_A_LOST_DEVICE = ("CUDA error", "cudaError", "CUBLAS_STATUS_EXECUTION_FAILED", "Triton Error [CUDA]")


@dataclass(slots=True, eq=False)
class Mailbox:
    """Where a sequence's tokens arrive, on the event loop; an error ends it."""

    sequence: Sequence
    arrived: asyncio.Queue[Drawn | ServiceError] = field(default_factory=asyncio.Queue)


class EngineLoop:
    """Steps an engine for one event loop, from when it is made."""

    def __init__(self, engine: Engine, event_loop: asyncio.AbstractEventLoop) -> None:
        self._engine = engine
        self._event_loop = event_loop
        self._inbox: deque[tuple[str, Mailbox]] = deque()
        self._mail: dict[int, Mailbox] = {}  # by id(sequence); the thread's own
        self._work = threading.Event()
        self._closing = False
        self._heartbeat_s = time.monotonic()
        self.num_aborts = 0
        self.num_failures = 0
        self.fatal: str | None = None  # why this process can compute no more; for whom it is to end and start anew
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def stalled_s(self) -> float:
        """Seconds since the thread last showed that it lives; below one second, and a step's time, while all is well."""
        return time.monotonic() - self._heartbeat_s

    def submit(self, sequence: Sequence) -> Mailbox:
        """Puts a sequence in line and gives the mailbox of its tokens."""
        mailbox = Mailbox(sequence)
        if self._closing:  # the thread may have looked into its inbox for the last time
            mailbox.arrived.put_nowait(ShuttingDown(retry_after_s=_RETRY_S))
            return mailbox
        self._send("add", mailbox)
        return mailbox

    def abort(self, mailbox: Mailbox) -> None:
        """Ends a sequence before the next step but one; nothing more arrives. For one that has ended it does nothing."""
        self._send("remove", mailbox)

    def abandon(self, error: ServiceError) -> None:
        """Puts `error` into every mailbox from the event loop, because the thread hangs or has given up."""
        arriving = [mailbox for what, mailbox in list(self._inbox) if what == "add"]
        _put([(mailbox, error) for mailbox in [*list(self._mail.values()), *arriving]])

    async def close(self) -> None:
        """Ends the thread after the step in progress; what is left fails as `ShuttingDown`."""
        self._closing = True
        self._work.set()
        await asyncio.to_thread(self._thread.join)

    def _send(self, what: str, mailbox: Mailbox) -> None:
        self._inbox.append((what, mailbox))
        self._work.set()

    # The rest runs on the thread.

    def _run(self) -> None:
        self._engine.claim_device()
        while not self._closing:
            self._heartbeat_s = time.monotonic()
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001  (a border: a broken turn ends what is in flight, not the engine)
                self._recover(error)
        self._take_inbox()
        self._fail(list(self._mail.values()), ShuttingDown(retry_after_s=_RETRY_S))

    def _turn(self) -> None:
        self._take_inbox()
        self._expire()
        if self.fatal:
            self._fail(list(self._mail.values()), EngineFailed(retry_after_s=_RETRY_S))
            self._wait()
        elif self._mail:
            self._step()
        else:
            self._engine.scheduler.check()
            if not self._engine.rest():
                self._wait()

    def _wait(self) -> None:
        self._work.wait(_IDLE_S)
        self._work.clear()

    def _take_inbox(self) -> None:
        while self._inbox:
            what, mailbox = self._inbox.popleft()
            if what == "add":
                self._mail[id(mailbox.sequence)] = mailbox
                try:
                    self._engine.scheduler.add(mailbox.sequence)
                except TooLong:
                    self._fail([mailbox], InternalError())
            elif self._mail.pop(id(mailbox.sequence), None):
                self.num_aborts += 1
                self._engine.scheduler.remove(mailbox.sequence)

    def _expire(self) -> None:
        late = [mailbox for mailbox in self._mail.values() if self._heartbeat_s > mailbox.sequence.deadline_s]
        self._fail(late, DeadlineExceeded())

    def _step(self) -> None:
        letters: list[tuple[Mailbox, Drawn | ServiceError]] = []
        for one in self._engine.step():
            mailbox = self._mail[id(one.sequence)]
            letters.append((mailbox, _failure(one.sequence) if one.finish == "broken" else one))
            if one.finish:
                del self._mail[id(one.sequence)]
        self._deliver(letters)

    def _recover(self, error: Exception) -> None:
        _log.error("step_failed", exc_info=error, num_in_flight=len(self._mail))
        self.num_failures += 1
        left, self._mail = list(self._mail.values()), {}
        self.fatal = fatal_reason(error)
        try:
            self._engine.reset()
        except RuntimeError as lost:  # from waiting for the device
            self.fatal = fatal_reason(lost) or f"{type(lost).__name__} while the engine was emptied"
        if self.fatal:
            _log.error("device_lost", reason=self.fatal)
        self._deliver([(mailbox, self._answer(error)) for mailbox in left])

    def _answer(self, error: Exception) -> ServiceError:
        if self.fatal:
            return EngineFailed(retry_after_s=_RETRY_S)
        return OutOfMemory(retry_after_s=_RETRY_S) if is_out_of_memory(error) else InternalError()

    def _fail(self, mailboxes: list[Mailbox], error: ServiceError) -> None:
        for mailbox in mailboxes:
            self._engine.scheduler.remove(mailbox.sequence)
            del self._mail[id(mailbox.sequence)]
        self._deliver([(mailbox, error) for mailbox in mailboxes])

    def _deliver(self, letters: list[tuple[Mailbox, Drawn | ServiceError]]) -> None:
        if letters and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(_put, letters)


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device had too little memory, as torch says it or as CUDA does."""
    return isinstance(error, OutOfMemoryError) or (isinstance(error, RuntimeError) and "out of memory" in str(error))


def fatal_reason(error: Exception) -> str | None:
    """One line on an error after which every call of this process to its GPU fails; None for any other.

    An illegal access or a failed assertion stays with the process; too little memory does not. What CUDA says of it comes
    through torch (`AcceleratorError` from 2.8 on, before that a RuntimeError), cuBLAS or Triton.
    """
    text = str(error)
    if not isinstance(error, RuntimeError) or is_out_of_memory(error):
        return None
    known = type(error).__name__ == "AcceleratorError" or any(sign in text for sign in _SIGNS_OF_A_LOST_DEVICE)
    return f"{type(error).__name__}: {text.partition(_NEWLINE)[0][:200]}" if known else None


def _failure(sequence: Sequence) -> ServiceError:
    return unfollowable() if sequence.grammar and sequence.grammar.failed else InternalError()


def _put(letters: list[tuple[Mailbox, Drawn | ServiceError]]) -> None:
    for mailbox, letter in letters:
        mailbox.arrived.put_nowait(letter)
