"""The line of the jobs: takes them in, feeds them to the runner a few at a time, and ends each once.

    submit ─▶ queued ─▶ running ─▶ done | failed          cancel: queued or running ─▶ cancelled
                 ▲─────────╯ the process died, is stopped, or the runner was full

The line stands behind interactive requests: a job begins only while nobody waits for the runner. Between keys turns are taken:
next is the oldest job of the key with the fewest running, and of those the one whose last turn is longest ago.
"""

import asyncio
import json
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace

from runners.base import Runner
from zopilot_gpu import log
from zopilot_gpu.errors import JobsFull, JobsUnavailable
from zopilot_gpu.jobs.board import Board, Live
from zopilot_gpu.jobs.courier import Courier
from zopilot_gpu.jobs.record import ENDED, STATES, NotNow, Outcome, Record, State, whole_view
from zopilot_gpu.jobs.store import Store, open_store
from zopilot_gpu.jobs.volume import VolumeError
from zopilot_gpu.settings import Settings

Work = Callable[[Record], AsyncGenerator[str | Outcome | NotNow, None]]

_TOO_MANY = (
    "DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs WHERE ended_at IS NOT NULL ORDER BY ended_at DESC LIMIT -1 OFFSET ?)"
)
_log = log.get(__name__)
_REOPEN_S = 2.0
_LOOK_S = 0.2  # how often the line looks whether the runner has room
_PURGE_S = 60.0
_MAX_ATTEMPTS = 5  # a job that has ended the process so often is not begun again
_RETRY_S = 5
_CRASHED = {"code": "internal_error", "message": "The service ended several times while it did this job."}


class JobQueue:
    """All jobs of this service. Make it inside the event loop; it opens its database in the background."""

    def __init__(self, settings: Settings, runner: Runner, work: Work) -> None:
        self._settings, self._runner, self._work = settings, runner, work
        self._store: Store | None = None
        self._board = Board()
        self._running: dict[str, asyncio.Task[None]] = {}
        self._owners: Counter[bytes] = Counter()
        self._turns: dict[bytes, int] = {}  # when each key had its last turn
        self._wake = asyncio.Event()
        self._not_before_s = 0.0
        self._stopping = False
        self.problem: str | None = None  # the operator's sentence while the database can't be used
        self.courier = Courier(settings)
        self._main = asyncio.create_task(self._run())

    @property
    def store(self) -> Store:
        """The open database; raises `JobsUnavailable`."""
        if self._store is None or self._stopping:
            raise JobsUnavailable(detail=self.problem, retry_after_s=_RETRY_S)
        return self._store

    async def submit(self, new: Sequence[Record], idempotency_key: str | None, digest: bytes) -> bool:
        """Takes jobs in, all or none: none where the key was used before.

        Raises:
            JobsFull: with these there would be more jobs, or bytes, than are kept.
        """
        store = self.store
        ((num_open,),) = await store.read("SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running')")
        size = await store.num_bytes() + sum(len(one.request or "") for one in new)
        if num_open + len(new) > self._settings.jobs_max or size > self._settings.jobs_max_bytes:
            raise JobsFull(retry_after_s=_RETRY_S)
        added = await store.add(new, idempotency_key, digest)
        self._wake.set()
        return added

    async def cancel(self, owner: bytes, job_id: str) -> Record | None:
        """Ends the job unless it has ended; the job as it is then, or None where this owner has none of that id."""
        while (record := await self.store.get(owner, job_id)) and record.state not in ENDED:
            if await self._end(record, "cancelled", None) and (task := self._running.get(job_id)):
                task.cancel()
        return record

    async def follow(
        self, record: Record, attempt: int = 0, offset: int = 0
    ) -> AsyncGenerator[Record | tuple[int, int, str], None]:
        """The job's records as they change, and its text from `offset` of `attempt` on: (attempt, end of the piece, piece)."""
        live, seen = self._board.of(record.job_id), -1
        while True:
            changed = live.changed
            if live.num_changes != seen:
                seen = live.num_changes
                now = await self.store.get(record.owner, record.job_id)
                if now is None:
                    return
                record = now
                if record.attempt != attempt:
                    attempt, offset = record.attempt, 0
                if record.state not in ENDED:
                    yield record
            text = live.text if live.attempt == record.attempt else ""
            text = text or _text_of(record)
            if len(text) > offset:
                yield attempt, len(text), text[offset:]
                offset = len(text)
            if record.state in ENDED:
                yield record
                return
            if live.num_changes == seen:
                await changed.wait()

    async def counts(self) -> dict[str, int]:
        """How many jobs are in each state; nothing while they can't be counted."""
        try:
            found = dict(await self.store.read("SELECT state, COUNT(*) FROM jobs GROUP BY state"))
        except (JobsUnavailable, sqlite3.Error):
            return {}
        return {state: found.get(state, 0) for state in STATES}

    async def close(self) -> None:
        """Puts what runs back into the line, for the next start, and closes the database. Safe to call again."""
        if self._stopping:
            return
        self._stopping = True
        self._board.wake_all()  # whoever follows a job is told that it can't be followed now
        tasks = [self._main, *self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.courier.close()
        if self._store:
            with suppress(sqlite3.Error):
                await self._store.requeue()
            await self._store.close()

    async def _run(self) -> None:
        store = await self._open()
        await self._recover(store)
        self._store = store
        self.courier.start(store)
        purged_s = 0.0
        while True:
            self._wake.clear()
            try:
                await self._begin_what_may(store)
                if time.monotonic() - purged_s > min(_PURGE_S, self._settings.jobs_retention_s):
                    purged_s = time.monotonic()
                    await self._purge(store)
            except sqlite3.Error as error:
                _log.error("jobs_failed", exc_info=error)
                await asyncio.sleep(_REOPEN_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):  # NOTE: wait_for of 3.11 can swallow the cancellation that ends us
                    await self._wake.wait()

    async def _open(self) -> Store:
        while True:
            try:
                store = await open_store(self._settings.jobs_file())
            except VolumeError as error:
                if str(error) != self.problem:
                    _log.warning("jobs_unavailable", problem=str(error))
                self.problem = str(error)
                await asyncio.sleep(_REOPEN_S)
            else:
                self.problem = None
                return store

    async def _recover(self, store: Store) -> None:
        """What was running when the process died goes back into the line, unless it dies of it."""
        for record in await store.records("state = 'running' AND attempt >= ?", (_MAX_ATTEMPTS,)):
            error = {"success": False, "error": _CRASHED | {"request_id": record.job_id}}
            await self._end(record, "failed", json.dumps(error), store)
        if num := await store.change("UPDATE jobs SET state = 'queued' WHERE state = 'running'"):
            _log.warning("jobs_run_again", num_jobs=num)

    async def _begin_what_may(self, store: Store) -> None:
        while self._may_begin():
            firsts = await store.read("SELECT owner, MIN(seq) FROM jobs WHERE state = 'queued' GROUP BY owner")
            if not firsts:
                return
            _, seq = min(firsts, key=lambda row: (self._owners[row[0]], self._turns.get(row[0], 0), row[1]))
            (found,) = await store.records("seq = ?", (seq,))
            record = await store.start(found.job_id, time.time())
            if record:
                live = self._board.of(record.job_id)
                live.begin(record.attempt)
                self._owners[record.owner] += 1
                self._turns[record.owner] = max(self._turns.values(), default=0) + 1
                self._running[record.job_id] = asyncio.create_task(self._perform(record, live))
                await asyncio.sleep(0.005)  # the runner counts it before the next is looked at

    def _may_begin(self) -> bool:
        state = self._runner.state()
        room = min(self._settings.jobs_running, state.max_running) - len(self._running)
        return room > 0 and state.phase == "ready" and not state.num_waiting and time.monotonic() >= self._not_before_s

    async def _perform(self, record: Record, live: Live) -> None:
        try:
            async with aclosing(self._work(record)) as telling:
                async for told in telling:
                    match told:
                        case str():
                            live.add(told)
                        case Outcome():
                            await self._end(record, told.state, told.body)
                        case NotNow():
                            self._not_before_s = time.monotonic() + told.retry_s
                            await self.store.requeue(record.job_id)
                            live.record_changed()
        finally:
            self._owners[record.owner] -= 1
            del self._running[record.job_id]
            self._wake.set()

    async def _end(self, record: Record, state: State, result: str | None, store: Store | None = None) -> bool:
        """Ends a job that is as `record` says; goes on trying while the disk is full."""
        now, delivery_id = time.time(), uuid.uuid4().hex
        ended = replace(record, state=state, request=None, result=result, ended_at=now)
        letter = None
        if record.callback_url:
            letter = (delivery_id, json.dumps({"type": f"job.{state}", "job": whole_view(ended)}))
        while True:
            try:
                changed = await (store or self.store).end(record, state, result, now, letter)
                break
            except sqlite3.Error as error:
                _log.error("job_not_saved", job_id=record.job_id, exc_info=error)
                await asyncio.sleep(_REOPEN_S)
        if changed:
            _log.info("job_ended", job_id=record.job_id, state=state, attempt=record.attempt)
            self._board.of(record.job_id).record_changed()
            self.courier.wake()
        return changed

    async def _purge(self, store: Store) -> None:
        """Forgets what ended long ago, and the oldest of too many."""
        oldest = time.time() - self._settings.jobs_retention_s
        await store.change("DELETE FROM jobs WHERE ended_at < ?", (oldest,))
        await store.change(
            _TOO_MANY,
            (self._settings.jobs_max,),
        )


def _text_of(record: Record) -> str:
    """The text of an answer whose telling nobody remembers; nothing where it is a value."""
    output = json.loads(record.result).get("output") if record.state == "done" and record.result else None
    return output if isinstance(output, str) else ""
