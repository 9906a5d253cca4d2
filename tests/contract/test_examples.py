"""Every file in examples/ runs as it is against the served demo model, and says what went wrong in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import KEY, ROOT, Server

EXPECTED = {
    "bentoml_client.py": "118.40\n",
    "httpx_stream.py": '{"vendor": "Acme", "total": "118.40"}\n',
    "json_schema.py": "Acme is owed 118.40\n",
    "openai_client.py": "118.40\nbook_invoice ['total', 'vendor']\n",
}


def run(name: str, url: str, key: str = KEY) -> "subprocess.CompletedProcess[str]":
    env = {"PATH": os.environ["PATH"], "ZOPILOT_GPU_API_KEY": key, "BENTOML_DO_NOT_TRACK": "True"}
    command = [sys.executable, str(ROOT / "examples" / name), url]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, check=False)


@pytest.mark.parametrize("name", EXPECTED)
def test_an_example_prints_the_answer(demo: Server, name: str) -> None:
    said = run(name, demo.url)
    assert said.returncode == 0, said.stderr
    assert said.stdout.startswith(EXPECTED[name])


@pytest.mark.parametrize("name", ["httpx_stream.py", "json_schema.py", "openai_client.py"])
def test_a_wrong_key_is_one_sentence(demo: Server, name: str) -> None:
    said = run(name, demo.url, "wrong")
    assert (said.returncode, said.stderr) == (1, "This key is not valid.\n")


def test_every_example_is_run() -> None:
    assert {path.name for path in Path(ROOT / "examples").glob("*.py")} == set(EXPECTED)
