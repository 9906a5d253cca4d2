"""Holds the log: one JSON object a line for every logger of the process, the request id on it, and no text of an exception.

The lines come from a process of their own: `configure` takes the whole process's logging.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

SCRIPT = """
import logging
early = logging.getLogger("uvicorn.error")
early.addHandler(logging.StreamHandler())
early.propagate = False

from zopilot_gpu import log
log.configure("debug")
log.configure("info")
ours, foreign = log.get("zopilot_gpu.tests"), logging.getLogger("uvicorn.error")

ours.info("fields", count=3, text="two\\nlines")
ours.debug("below_the_level")
foreign.info("below the level of other libraries")
with log.bound(request_id="rid-1"):
    ours.info("ours_bound")
    foreign.warning("foreign %s", "bound")
ours.info("unbound")

def place_of_the_error():
    raise ValueError("canary-of-the-error")

def chained():
    try:
        place_of_the_error()
    except ValueError as error:
        raise RuntimeError("canary-of-the-chain") from error

for call, event in ((ours.error, "ours_failed"), (foreign.error, "foreign failed")):
    try:
        place_of_the_error()
    except ValueError as error:
        call(event, exc_info=error)
for call, event in ((ours.exception, "ours_chained"), (foreign.exception, "foreign chained")):
    try:
        chained()
    except RuntimeError:
        call(event)
"""


@pytest.fixture(scope="module")
def stderr() -> str:
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=120)
    assert run.stdout == ""
    return run.stderr


@pytest.fixture(scope="module")
def lines(stderr: str) -> dict[str, dict[str, Any]]:
    """The line of each event."""
    parsed = [json.loads(line) for line in stderr.splitlines()]
    by_event = {line["event"]: line for line in parsed}
    assert len(by_event) == len(parsed)  # nothing is written twice
    return by_event


def test_every_line_is_one_json_object_with_event_level_and_time(lines: dict[str, dict[str, Any]]) -> None:
    assert len(lines) == 8
    assert all({"event", "level", "timestamp"} <= set(line) for line in lines.values())
    assert lines["fields"]["count"] == 3
    assert lines["fields"]["text"] == "two\nlines"


def test_lines_below_the_level_are_left_out(stderr: str) -> None:
    assert "below" not in stderr


def test_lines_of_other_libraries_go_through_the_same_formatter(lines: dict[str, dict[str, Any]]) -> None:
    assert set(lines["foreign bound"]) == set(lines["ours_bound"]) == {"event", "level", "timestamp", "request_id"}
    assert lines["foreign bound"]["level"] == "warning"


def test_the_request_id_is_on_every_line_inside_the_block_and_on_none_outside(lines: dict[str, dict[str, Any]]) -> None:
    with_id = {event for event, line in lines.items() if line.get("request_id") == "rid-1"}
    assert with_id == {"ours_bound", "foreign bound"}
    assert [event for event, line in lines.items() if "request_id" in line and event not in with_id] == []


@pytest.mark.parametrize(
    ("event", "kind", "place"),
    [
        ("ours_failed", "ValueError", "place_of_the_error"),
        ("foreign failed", "ValueError", "place_of_the_error"),
        ("ours_chained", "RuntimeError", "chained"),
        ("foreign chained", "RuntimeError", "chained"),
    ],
)
def test_an_exception_is_logged_by_type_and_place(lines: dict[str, dict[str, Any]], event: str, kind: str, place: str) -> None:
    assert lines[event]["exception"] == kind
    assert lines[event]["at"][-1].endswith(place)


def test_the_text_of_an_exception_is_never_logged(stderr: str) -> None:
    assert "canary" not in stderr
