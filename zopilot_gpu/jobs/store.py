"""The jobs and the callbacks that are due, in SQLite. Knows tables and transactions; decides nothing.

Every state changes in one transaction, and only from the state that the caller has seen: whatever dies in between, a job ends
once, and its callback is due exactly when it has ended. The log is synced at each commit: an answered 202 outlives the machine.
"""

import asyncio
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import aiosqlite

from zopilot_gpu.jobs import volume
from zopilot_gpu.jobs.record import Record, State

_T = TypeVar("_T")
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL UNIQUE, batch_id TEXT, owner BLOB NOT NULL, state TEXT NOT NULL,
    attempt INTEGER NOT NULL, request TEXT, result TEXT, callback_url TEXT,
    created_at REAL NOT NULL, started_at REAL, ended_at REAL, idempotency_key TEXT, digest BLOB
);
CREATE INDEX IF NOT EXISTS jobs_in_line ON jobs (state, owner, seq);
CREATE INDEX IF NOT EXISTS jobs_of_owner ON jobs (owner, seq);
CREATE INDEX IF NOT EXISTS jobs_by_key ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX IF NOT EXISTS jobs_ended ON jobs (ended_at) WHERE ended_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS outbox (
    delivery_id TEXT PRIMARY KEY, url TEXT NOT NULL, body TEXT NOT NULL, num_tries INTEGER NOT NULL, due_at REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS outbox_due ON outbox (due_at);
"""
_COLUMNS = "seq, job_id, batch_id, owner, state, attempt, request, result, callback_url, created_at, started_at, ended_at"


class Store:
    """The open database. Made by `open_store`; belongs to one event loop."""

    def __init__(self, database: aiosqlite.Connection, held: int) -> None:
        self._database, self._held = database, held
        self._turn = asyncio.Lock()

    async def close(self) -> None:
        """Waits for the transaction in progress, and closes."""
        async with self._turn:
            await self._database.close()
        volume.release(self._held)

    async def read(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        """The rows of a query."""
        return list(await self._database.execute_fetchall(query, tuple(values)))

    async def write(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        """Does `work` in a transaction of its own. NOTE: shielded: a caller that is cancelled must not leave half of one."""
        return await asyncio.shield(asyncio.ensure_future(self._transaction(work)))

    async def _transaction(self, work: Callable[[aiosqlite.Connection], Awaitable[_T]]) -> _T:
        async with self._turn:
            await self._database.execute("BEGIN IMMEDIATE")
            try:
                result = await work(self._database)
                await self._database.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    await self._database.execute("ROLLBACK")
                raise
            return result

    async def records(self, where: str, values: Sequence[Any], rest: str = "ORDER BY seq") -> list[Record]:
        """The jobs that a condition picks. `where` and `rest` are ours, never a caller's."""
        rows = await self.read(f"SELECT {_COLUMNS} FROM jobs WHERE {where} {rest}", values)  # noqa: S608
        return [Record(*row) for row in rows]

    async def get(self, owner: bytes, job_id: str) -> Record | None:
        """The job, if it is this owner's."""
        found = await self.records("job_id = ? AND owner = ?", (job_id, owner))
        return found[0] if found else None

    async def submission(self, owner: bytes, idempotency_key: str) -> tuple[bytes, list[Record]] | None:
        """What was submitted under this key: the digest of its body, and its jobs."""
        values = (owner, idempotency_key)
        digests = await self.read("SELECT digest FROM jobs WHERE owner = ? AND idempotency_key = ? LIMIT 1", values)
        return (digests[0][0], await self.records("owner = ? AND idempotency_key = ?", values)) if digests else None

    async def add(self, new: Sequence[Record], idempotency_key: str | None, digest: bytes) -> bool:
        """Adds all of these jobs, or none where this owner has used the key before."""
        rows = [
            (one.job_id, one.batch_id, one.owner, one.request, one.callback_url, one.created_at, idempotency_key, digest)
            for one in new
        ]

        async def work(database: aiosqlite.Connection) -> bool:
            if idempotency_key is not None:
                query = "SELECT 1 FROM jobs WHERE owner = ? AND idempotency_key = ? LIMIT 1"
                if list(await database.execute_fetchall(query, (new[0].owner, idempotency_key))):
                    return False
            await database.executemany(
                "INSERT INTO jobs (job_id, batch_id, owner, state, attempt, request, callback_url, created_at,"
                " idempotency_key, digest)"
                " VALUES (?, ?, ?, 'queued', 0, ?, ?, ?, ?, ?)",
                rows,
            )
            return True

        return await self.write(work)

    async def start(self, job_id: str, now: float) -> Record | None:
        """Begins a queued job; None where it is not queued any more."""

        async def work(database: aiosqlite.Connection) -> int:
            return (
                await database.execute(
                    "UPDATE jobs SET state = 'running', attempt = attempt + 1, started_at = ?"
                    " WHERE job_id = ? AND state = 'queued'",
                    (now, job_id),
                )
            ).rowcount

        if not await self.write(work):
            return None
        (record,) = await self.records("job_id = ?", (job_id,))
        return record

    async def end(self, record: Record, state: State, result: str | None, now: float, letter: tuple[str, str] | None) -> bool:
        """Ends a job that is as `record` says, and puts its callback (delivery id, body) into the outbox.

        False where it has ended, or begun again, since.
        """

        async def work(database: aiosqlite.Connection) -> bool:
            changed = await database.execute(
                "UPDATE jobs SET state = ?, result = ?, request = NULL, ended_at = ?"
                " WHERE job_id = ? AND state = ? AND attempt = ?",
                (state, result, now, record.job_id, record.state, record.attempt),
            )
            if changed.rowcount and letter and record.callback_url:
                await database.execute(
                    "INSERT INTO outbox VALUES (?, ?, ?, 0, ?)", (letter[0], record.callback_url, letter[1], now)
                )
            return bool(changed.rowcount)

        return await self.write(work)

    async def requeue(self, job_id: str | None = None) -> int:
        """Puts running jobs (or one) back into the line, as if this attempt had not been made."""
        where, values = ("", ()) if job_id is None else (" AND job_id = ?", (job_id,))

        async def work(database: aiosqlite.Connection) -> int:
            query = "UPDATE jobs SET state = 'queued', attempt = attempt - 1 WHERE state = 'running'" + where  # noqa: S608
            return (await database.execute(query, values)).rowcount

        return await self.write(work)

    async def change(self, query: str, values: Sequence[Any] = ()) -> int:
        """One statement in its own transaction; how many rows it touched."""

        async def work(database: aiosqlite.Connection) -> int:
            return (await database.execute(query, tuple(values))).rowcount

        return await self.write(work)

    async def num_bytes(self) -> int:
        """What the database holds, free pages not counted."""
        (pages,), (free,), (size,) = [
            (await self.read(f"PRAGMA {name}"))[0] for name in ("page_count", "freelist_count", "page_size")
        ]
        return int((pages - free) * size)


async def open_store(path: Path) -> Store:
    """Opens or makes the database at `path`.

    Raises:
        volume.VolumeError: it can't be kept there; with the remedy.
    """
    held = await asyncio.to_thread(volume.hold, path)
    try:
        await asyncio.to_thread(lambda: os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600)))  # prompts are in it
        database = await aiosqlite.connect(path, isolation_level=None)
    except (OSError, sqlite3.Error) as error:
        volume.release(held)
        raise volume.VolumeError(f"{path} can't be opened ({error}).") from None
    try:
        await _prepare(database, path)
    except BaseException as error:
        await database.close()
        volume.release(held)
        if isinstance(error, sqlite3.Error):
            raise volume.VolumeError(f"{path} is no database of jobs, or damaged ({error}). Move it away.") from None
        raise
    return Store(database, held)


async def _prepare(database: aiosqlite.Connection, path: Path) -> None:
    (mode,) = (await (await database.execute("PRAGMA journal_mode = WAL")).fetchone()) or ("?",)
    if mode != "wal":
        raise volume.VolumeError(f"The volume of {path} can't share memory, which SQLite's log needs. Use a local disk.")
    await database.execute("PRAGMA synchronous = FULL")
    (version,) = (await (await database.execute("PRAGMA user_version")).fetchone()) or (0,)
    if version > _VERSION:
        raise volume.VolumeError(f"{path} was written by a newer version of this service. Move it away, or update.")
    await database.executescript(_SCHEMA)
    await database.execute(f"PRAGMA user_version = {_VERSION}")
