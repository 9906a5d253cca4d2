"""The engine's thread: takes sequences in, steps, hands tokens out. Knows an event loop to speak to; no text and no HTTP.

event loop                                thread "engine"
  submit(sequence) ──▶ inbox ──▶ add ┐
  abort(sequence)  ──▶ inbox ──▶ remove ├──▶ step ──▶ deliver, once a step ──▶ mailbox of each sequence
                                 expire ┘
"""

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field

from zopilot_gpu import log
from zopilot_gpu.engine.engine import Drawn, Engine
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import DeadlineExceeded, InternalError, ServiceError, ShuttingDown

_log = log.get(__name__)
_IDLE_S = 0.5  # the longest time between two heartbeats while nothing runs


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
        self.heartbeat_s = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, sequence: Sequence) -> Mailbox:
        """Puts a sequence in line and gives the mailbox of its tokens."""
        mailbox = Mailbox(sequence)
        self._send("add", mailbox)
        return mailbox

    def abort(self, mailbox: Mailbox) -> None:
        """Ends a sequence before the next step but one; nothing more arrives. For one that has ended it does nothing."""
        self._send("remove", mailbox)

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
        while not self._closing:
            self.heartbeat_s = time.monotonic()
            self._take_inbox()
            self._expire()
            if self._mail:
                self._step()
            else:
                self._engine.scheduler.check()
                self._work.wait(_IDLE_S)
                self._work.clear()
        self._take_inbox()
        self._fail(list(self._mail.values()), ShuttingDown())

    def _take_inbox(self) -> None:
        while self._inbox:
            what, mailbox = self._inbox.popleft()
            if what == "add":
                self._mail[id(mailbox.sequence)] = mailbox
                self._engine.scheduler.add(mailbox.sequence)
            elif self._mail.pop(id(mailbox.sequence), None):
                self._engine.scheduler.remove(mailbox.sequence)

    def _expire(self) -> None:
        late = [mailbox for mailbox in self._mail.values() if self.heartbeat_s > mailbox.sequence.deadline_s]
        self._fail(late, DeadlineExceeded())

    def _step(self) -> None:
        try:
            drawn = self._engine.step()
        except Exception as error:  # noqa: BLE001  (a border: a broken step ends what is in flight, not the engine)
            _log.error("step_failed", exc_info=error, num_in_flight=len(self._mail))
            self._fail(list(self._mail.values()), InternalError())
            return
        letters: list[tuple[Mailbox, Drawn | ServiceError]] = []
        for one in drawn:
            mailbox = self._mail[id(one.sequence)]
            letters.append((mailbox, InternalError() if one.finish == "broken" else one))
            if one.finish:
                del self._mail[id(one.sequence)]
        self._deliver(letters)

    def _fail(self, mailboxes: list[Mailbox], error: ServiceError) -> None:
        for mailbox in mailboxes:
            self._engine.scheduler.remove(mailbox.sequence)
            del self._mail[id(mailbox.sequence)]
        self._deliver([(mailbox, error) for mailbox in mailboxes])

    def _deliver(self, letters: list[tuple[Mailbox, Drawn | ServiceError]]) -> None:
        if letters and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(_put, letters)


def _put(letters: list[tuple[Mailbox, Drawn | ServiceError]]) -> None:
    for mailbox, letter in letters:
        mailbox.arrived.put_nowait(letter)
