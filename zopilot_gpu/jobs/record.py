"""A job as it is kept, and as its owner sees it. Plain values; knows no database."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Record:
    """One job. `seq` orders all jobs; times are Unix seconds; `attempt` counts how often it was begun.

    `request` is its body as JSON, gone once it has ended; `result` is the JSON body that `/prompt` would have answered with.
    """

    seq: int
    job_id: str
    batch_id: str | None
    owner: bytes
    state: State
    attempt: int
    request: str | None
    result: str | None
    callback_url: str | None
    created_at: float
    started_at: float | None
    ended_at: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended: `body` is the JSON body that `/prompt` would have answered with."""

    state: Literal["done", "failed"]
    body: str


@dataclass(frozen=True, slots=True)
class NotNow:
    """The runner did not take the job; it waits for another turn, `retry_s` seconds from now."""

    retry_s: float


def view(record: Record) -> dict[str, Any]:
    """The job as its owner sees it, without its result."""
    return {
        "id": record.job_id,
        "state": record.state,
        "batch": record.batch_id,
        "attempt": record.attempt,
        "created_at": _iso(record.created_at),
        "started_at": _iso(record.started_at),
        "ended_at": _iso(record.ended_at),
    }


def whole_view(record: Record) -> dict[str, Any]:
    """The job as its owner sees it, with its result."""
    return view(record) | {"result": None if record.result is None else json.loads(record.result)}


def _iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
