"""`zopilot-gpu chat` against a served demo model: from a pipe, and in a terminal of its own."""

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.conftest import KEY, ROOT, Server

COMMAND = [sys.executable, "-c", "from zopilot_gpu.cli import app; app()", "chat", "--temperature", "0"]
INVOICE = 'Context: {"vendor": "Acme", "total": "118.40"}'


@pytest.fixture(scope="module")
def server(demo: Server) -> Server:
    return demo


def environment(url: str, key: str = KEY) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "ZOPILOT_GPU_URL": url,
        "ZOPILOT_GPU_API_KEY": key,
        "PYTHONPATH": str(ROOT),
        "TERM": "xterm",
    }


def pipe(url: str, *lines: str, key: str = KEY, options: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    said = "".join(f"{line}\n" for line in lines)
    command = [*COMMAND, *options]
    return subprocess.run(
        command, input=said, capture_output=True, text=True, timeout=120, env=environment(url, key), check=False
    )


def prompt_tokens(server: Server) -> float:
    with server.client() as http:
        series = http.get("/metrics").text
    return float(series.split('zopilot_gpu_tokens_total{kind="prompt"} ')[1].split()[0])


def test_from_a_pipe_each_line_is_a_question_and_answers_are_all_that_is_printed(server: Server) -> None:
    answer = pipe(server.url, f"What is the total? {INVOICE}", "", "/undo", f"Who is the vendor? {INVOICE}")
    assert (answer.returncode, answer.stderr) == (0, "")
    total, vendor = answer.stdout.splitlines()
    assert "118.40" in total
    assert "Acme" in vendor


def test_the_conversation_and_its_instructions_are_sent_along(server: Server) -> None:
    def spent(*lines: str, options: tuple[str, ...] = ()) -> float:
        before = prompt_tokens(server)
        assert pipe(server.url, *lines, options=options).returncode == 0
        return prompt_tokens(server) - before

    once = spent("Hello")
    assert spent("Hello", "/clear", "Hello") == spent("Hello", "/undo", "Hello") == 2 * once
    assert spent("Hello", "Hello") > 2 * once
    assert spent("/system Be brief.", "Hello") == spent("Hello", options=("--system", "Be brief.")) > once


@pytest.mark.parametrize(
    ("url", "key", "said"),
    [
        (None, "wrong", "This key is not valid."),
        ("http://127.0.0.1:9", KEY, "No answer from http://127.0.0.1:9"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(server: Server, url: str | None, key: str, said: str) -> None:
    answer = pipe(url or server.url, "Hello", key=key)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


class Terminal:
    """The command in a terminal of its own, typed at and read from."""

    def __init__(self, url: str, *options: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*COMMAND, *options], stdin=theirs, stdout=theirs, stderr=theirs, env=environment(url), start_new_session=True
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str, timeout_s: float = 120) -> None:
        """Reads on until `text` has come; what was shown before it is dropped."""
        deadline_s = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline_s, self.shown
            if select.select([self._ours], [], [], 0.2)[0]:
                self.shown += os.read(self._ours, 4096).decode(errors="replace")
        self.shown = self.shown.partition(text)[2]

    def wait_until_it_reads(self) -> None:
        """Until it sleeps. NOTE: a signal just before the read is noted by Python, and the read waits all the same."""
        looks = 0
        process = psutil.Process(self.process.pid)
        while looks < 10:
            looks = looks + 1 if process.status() == psutil.STATUS_SLEEPING else 0
            time.sleep(0.05)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(server: Server, request: Any) -> Iterator[Terminal]:
    terminal = Terminal(server.url, "--max-tokens", "1500")
    yield terminal
    terminal.close()


def test_in_a_terminal_it_greets_answers_helps_and_leaves(server: Server, terminal: Terminal) -> None:
    terminal.wait_for("demo")
    terminal.wait_for("> ")
    terminal.type(f"What is the total? {INVOICE}\n")
    terminal.wait_for('118.40"}')  # the terminal's echo
    terminal.wait_for("118.40")
    terminal.wait_for("> ")
    terminal.type("/what\n")
    terminal.wait_for("/clear begins")
    terminal.type(f"{'word ' * 700}\n")
    terminal.wait_for("this model takes at most")  # and the conversation goes on
    terminal.wait_for("> ")
    terminal.type("/exit\n")
    assert terminal.process.wait(120) == 0


def test_ctrl_c_stops_waiting_for_a_question_too(terminal: Terminal) -> None:
    terminal.wait_for("> ")
    terminal.wait_until_it_reads()
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(120) == 0
