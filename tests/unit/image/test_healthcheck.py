"""What the image's health check says of each answer of the service."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from tests.conftest import free_port

SCRIPT = Path(__file__).parents[3] / "image" / "healthcheck.py"


def check(port: int, **env: str) -> int:
    command = [sys.executable, "-I", str(SCRIPT)]
    return subprocess.run(command, env={"PORT": str(port)} | env, capture_output=True, timeout=60).returncode


@pytest.mark.parametrize(("status", "unhealthy"), [(200, 0), (204, 0), (503, 1), (404, 1)])
def test_loading_is_healthy_and_failed_is_not(status: int, unhealthy: int) -> None:
    asked = []

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  (http.server's name)
            """Quiet."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        assert check(server.server_port) == unhealthy
        thread.join()
    assert asked == ["/ping"]


def test_where_nothing_listens_it_is_unhealthy_but_for_a_queues_worker() -> None:
    port = free_port()
    assert check(port) == 1
    assert check(port, ZOPILOT_GPU_FACE="runpod-queue") == 0
