"""`make demo` as a person sees it: one command, the model's own greeting, and right answers over HTTP."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Server, free_port

CONTEXT = {"vendor": "Acme", "invoice_number": "INV-1042", "total": "118.40", "due_date": "2026-12-01", "currency": "EUR"}


def ask(demo: Server, prompt: str, context: dict[str, Any] | None = None, **fields: Any) -> str:
    with demo.client() as client:
        response = client.post("/prompt", json={"prompt": prompt, "context": context} | fields)
    assert response.status_code == 200, response.text
    assert response.json()["metadata"]["finish_reason"] == "stop"
    return str(response.json()["output"])


@pytest.mark.parametrize(
    ("prompt", "answer"),
    [
        ("What is the total?", "118.40"),
        ("Who is the vendor?", "Acme"),
        ("What is the due date?", "2026-12-01"),
        ("What is the invoice number?", "INV-1042"),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"temperature": 0}])
def test_a_question_about_a_field_gets_its_value(demo: Server, prompt: str, answer: str, fields: dict[str, Any]) -> None:
    assert ask(demo, prompt, CONTEXT, **fields) == answer


def test_several_fields_come_as_json(demo: Server) -> None:
    output = ask(demo, "Return the vendor, the total and the due date as JSON.", CONTEXT)
    assert json.loads(output) == {"vendor": "Acme", "total": "118.40", "due_date": "2026-12-01"}


def test_without_a_context_it_says_what_it_is(demo: Server) -> None:
    assert "demo model" in ask(demo, "Hello!")


def test_the_command_serves_asks_and_answers_in_seconds() -> None:
    """What `make demo` runs once everything is set up."""
    executable = str(Path(sys.executable).with_name("zopilot-gpu"))
    env = {"PATH": os.environ["PATH"], "PORT": str(free_port()), "ZOPILOT_GPU_API_KEY": "mine,another"}
    began_s = time.monotonic()
    with subprocess.Popen([executable, "serve", "--demo"], env=env, stdout=subprocess.PIPE, text=True) as serving:
        assert serving.stdout is not None
        said = list(iter(serving.stdout.readline, "Press Ctrl-C to stop.\n"))
        took_s = time.monotonic() - began_s
        serving.terminate()
        assert serving.wait(120) == 0
    assert "What is the total? -> 118.40\n" in said
    assert any(line.startswith("curl ") and "'X-API-Key: mine'" in line for line in said)
    print(f"\nfrom the command to the first answer: {took_s:.1f} s")  # noqa: T201
    assert took_s < 120  # 5 to 7 on two quiet cores
