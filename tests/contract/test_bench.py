"""`zopilot-gpu bench serve` as a person runs it, against a served demo model."""

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEY, ROOT, Server, free_port

NUM_REQUESTS = 12


def bench(url: str, *options: str, key: str = KEY) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("zopilot-gpu")), "bench", "serve", "--url", url, *options]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ZOPILOT_GPU_API_KEY": key, "COLUMNS": "100"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


def report(run: "subprocess.CompletedProcess[str]") -> dict[str, Any]:
    """The last line of standard output."""
    return dict(json.loads(run.stdout.splitlines()[-1]))


SHORT = ("--prompt-words", "5:20", "--max-tokens", "4:8", "--warm-up", "2")


def test_a_closed_loop_ends_with_a_table_a_plot_and_a_line_of_json(demo: Server, tmp_path: Path) -> None:
    shared = ("--shared-prefix-words", "40", "--callers", "4", "--requests", str(NUM_REQUESTS))
    run = bench(demo.url, *SHORT, *shared, "--plot", str(tmp_path / "run.svg"))
    assert run.returncode == 0, run.stderr
    assert f"{NUM_REQUESTS} answered of {NUM_REQUESTS}" in run.stdout
    assert all(row in run.stdout for row in ("time to first token", "time per output token", "whole answer", "p50", "p99"))
    found = report(run)
    assert found["versions"]["zopilot_gpu"] == found["service"]["version"]
    assert found["service"]["model"]["model"] == "demo"
    assert found["arguments"]["num_callers"] == 4
    assert KEY not in run.stdout
    figures = found["figures"]
    assert (figures["num_succeeded"], figures["errors"]) == (NUM_REQUESTS, {})
    assert 4 * NUM_REQUESTS <= figures["tokens"]["completion"] <= 8 * NUM_REQUESTS
    assert figures["tokens"]["cached"] > figures["tokens"]["prompt"] / 2  # the warm-up left the prefix there
    for name in ("ttft_s", "time_per_token_s", "latency_s"):
        assert 0 < figures[name]["p50"] <= figures[name]["p95"] <= figures[name]["p99"]
    assert ET.parse(tmp_path / "run.svg").getroot().tag.endswith("svg")  # noqa: S314  (our own file)


def test_an_open_loop_sends_at_its_rate(demo: Server) -> None:
    run = bench(demo.url, *SHORT, "--rate", "40", "--requests", str(NUM_REQUESTS), "--seed", "3")
    assert run.returncode == 0, run.stderr
    found = report(run)
    assert (found["arguments"]["rate"], found["arguments"]["num_callers"]) == (40, None)
    assert found["figures"]["num_succeeded"] == NUM_REQUESTS


def test_errors_are_counted_by_code_and_none_answered_is_status_1(demo: Server) -> None:
    run = bench(demo.url, *SHORT, "--requests", "3", key="wrong")
    assert run.returncode == 1
    assert report(run)["figures"]["errors"] == {"api_key_invalid": 3}
    assert "api_key_invalid" in run.stdout


def test_a_schema_is_sent(demo: Server, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"a": {"type": "string"}}}')
    found = report(bench(demo.url, *SHORT, "--requests", "2", "--schema", str(tmp_path / "schema.json")))
    assert found["arguments"]["json_schema"]["type"] == "object"
    assert found["figures"]["num_requests"] == 2


@pytest.mark.parametrize(
    ("options", "sentence", "status"),
    [
        (("--callers", "2", "--rate", "2"), "choose one", 2),
        (("--prompt-words", "9:2"), "--prompt-words: '9:2' is neither LOW:HIGH", 2),
        (("--plot", "nowhere/x.svg"), "there is no directory nowhere", 1),
        ((), "No answer from", 1),
    ],
)
def test_what_can_not_be_run_is_one_sentence(options: tuple[str, ...], sentence: str, status: int) -> None:
    run = bench(f"http://127.0.0.1:{free_port()}", *options)
    assert run.returncode == status
    assert sentence in " ".join(run.stderr.replace("│", " ").split())
    assert "Traceback" not in run.stderr
