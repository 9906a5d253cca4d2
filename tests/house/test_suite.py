"""Holds `make test`: what fails beside others runs once more alone and is named; what fails twice fails."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.suite import MOST_AGAIN

ROOT = Path(__file__).parents[2]
GOOD = "def test_good(): pass\n"
BAD = "def test_bad(): assert not 'good'\n"
ONCE = """
from pathlib import Path
def test_once():
    seen = Path(__file__).with_suffix(".seen")
    if not seen.exists():
        seen.touch()
        {fails}
"""
FLAKY = ONCE.format(fails="raise ValueError")
CRASHES = "def test_before(): pass\n" + ONCE.format(fails="import os; os._exit(1)") + "def test_after(): pass\n"
ENDS = "import os\ndef test_ends(): os._exit(0)\n"


def suite(directory: Path, **files: str) -> tuple[int, str]:
    """The exit status and what was said, over a project of these files."""
    (directory / "pytest.ini").write_text("[pytest]\n")
    for name, content in files.items():
        (directory / f"test_{name}.py").write_text(content)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env |= {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": "xdist.plugin"}
    command = [sys.executable, "-m", "tests.suite"]
    run = subprocess.run(command, cwd=directory, env=env, capture_output=True, text=True, timeout=120)
    return run.returncode, run.stdout


def test_what_passes_alone_passes_and_is_named(tmp_path: Path) -> None:
    status, said = suite(tmp_path, good=GOOD, flaky=FLAKY, crashes=CRASHES)
    assert status == 0, said
    assert "passed  test_flaky.py::test_once" in said
    assert "passed  test_crashes.py::test_once" in said
    assert "2 failed, 3 passed" in said  # what stood behind the crash ran too
    assert "2 passed" in said


def test_what_fails_again_fails(tmp_path: Path) -> None:
    status, said = suite(tmp_path, good=GOOD, flaky=FLAKY, bad=BAD)
    assert status == 1, said
    assert "passed  test_flaky.py::test_once" in said
    assert "failed  test_bad.py::test_bad" in said


@pytest.mark.parametrize(
    ("content", "expected", "words"),
    [
        ("", 5, "test session starts"),
        ("import nothing_of_this_name\n", 2, "failed  test_it.py"),
        (ENDS, 1, "failed  test_it.py::test_ends"),
        ("\n".join(BAD.replace("bad", f"bad_{n}") for n in range(MOST_AGAIN + 1)), 1, "too many"),
    ],
    ids=["nothing to run", "no import", "ended with status 0", "too many"],
)
def test_nothing_else_passes(tmp_path: Path, content: str, expected: int, words: str) -> None:
    status, said = suite(tmp_path, it=content)
    assert status == expected, said
    assert words in said
