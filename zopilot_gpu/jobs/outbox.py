"""Callbacks without jobs: for the queue worker, whose jobs RunPod keeps. Knows the same outbox, courier and list."""

import asyncio
import json
import sqlite3
import time
import uuid
from typing import Any

import aiosqlite

from zopilot_gpu import log
from zopilot_gpu.jobs.courier import Courier
from zopilot_gpu.jobs.store import open_store
from zopilot_gpu.jobs.volume import VolumeError
from zopilot_gpu.settings import Settings

_log = log.get(__name__)


class Outbox:
    """Takes results and delivers them in the background. Opens its database at the first one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._courier = Courier(settings)
        self._letters: asyncio.Queue[tuple[str, str, str]] = asyncio.Queue(settings.jobs_max)
        self._task: asyncio.Task[None] | None = None

    def check(self, url: str) -> None:
        """Raises `InvalidRequest` where no callback may go to `url`."""
        self._courier.policy.check(url)

    def post(self, url: str, job_id: str, result: dict[str, Any]) -> None:
        """Has the result of a job delivered. Never waits and never fails."""
        state = "done" if result["success"] else "failed"
        body = json.dumps({"type": f"job.{state}", "job": {"id": job_id, "state": state, "result": result}})
        try:
            self._letters.put_nowait((uuid.uuid4().hex, url, body))
        except asyncio.QueueFull:
            _log.warning("callback_dropped", job_id=job_id)
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while True:
            try:
                store = await open_store(self._settings.jobs_file())
                break
            except VolumeError as error:
                _log.error("outbox_unavailable", problem=str(error))
                await asyncio.sleep(5)
        self._courier.start(store)
        while True:
            letter = await self._letters.get()

            async def work(database: aiosqlite.Connection, row: tuple[Any, ...] = (*letter, 0, time.time())) -> None:
                await database.execute("INSERT INTO outbox VALUES (?, ?, ?, ?, ?)", row)

            try:
                await store.write(work)
                self._courier.wake()
            except sqlite3.Error as error:
                _log.error("callback_dropped", exc_info=error)
