"""`zopilot-gpu doctor` on this machine: the demo model passes, what is missing fails, wrong settings are status 2."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT, free_port

SECRET = "a-secret-of-the-tests-0123456789"


def doctor(home: Path, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
    """A process of its own, with only the environment that a test names."""
    given = {"PATH": os.environ["PATH"], "HOME": str(home), "PORT": str(free_port())} | env
    command = [sys.executable, "-m", "zopilot_gpu.cli", "doctor", *arguments]
    return subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, timeout=200)


def test_right_after_the_setup_the_demo_model_passes(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "--demo", "--json", ZOPILOT_GPU_API_KEY=SECRET, HF_TOKEN=SECRET)
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert [check for check in told["checks"] if check["verdict"] == "fail"] == []
    assert len(told["checks"]) > 10
    assert SECRET not in ended.stdout + ended.stderr


def test_what_is_missing_fails_and_the_table_says_what_to_do(tmp_path: Path) -> None:
    ended = doctor(tmp_path, "--quick", ZOPILOT_GPU_MODEL="nobody/nothing", COLUMNS="200", ZOPILOT_GPU_DEVICE="cpu")
    assert ended.returncode == 1, ended.stderr
    assert "Set ZOPILOT_GPU_API_KEY" in ended.stdout
    assert "It will not work like this." in ended.stdout
    assert ended.stderr == ""


def test_wrong_settings_are_said_in_a_sentence(tmp_path: Path) -> None:
    ended = doctor(tmp_path, ZOPILOT_GPU_API_KEY=SECRET, ZOPILOT_GPU_DEVICE="tpu")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("zopilot-gpu: ZOPILOT_GPU_DEVICE: ")
