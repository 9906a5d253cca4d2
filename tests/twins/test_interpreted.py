"""Runs the kernels' twin tests in Triton's interpreter, on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1260)  # minutes, where others take the cores
def test_kernels_equal_their_twins_in_the_interpreter() -> None:
    """In a process of its own: Triton reads the variable when it is imported, and other tests have imported it by now."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/interpreter", "-q"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
