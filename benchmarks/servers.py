"""Starts the services that are compared, one at a time, each in a process of its own. Knows processes and ports.

All get the two variables that our runner sets for itself (docs/decisions/003-before-torch.md): they help the baseline too.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
KEYS = ("key-one", "key-two")  # two, because what one key asked is not in the other's prefix cache
SYSTEMS = ("mixtral", "plain", "fastapi")
_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
_START_S = 120


@contextmanager
def served(system: str) -> Iterator[str]:
    """The address of one of `SYSTEMS`, ready to answer with the demo model; it ends with the context."""
    port = _free_port()
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | _THREADS
    if system == "fastapi":
        command = [sys.executable, "-m", "benchmarks.fastapi_baseline", "--port", str(port)]
    else:
        command = [sys.executable, "-m", "bentoml", "serve", "service:ZopilotGPU", "--host", "127.0.0.1", "--port", str(port)]
        env |= {
            "ZOPILOT_GPU_MODEL": "demo",
            "ZOPILOT_GPU_DEVICE": "cpu",
            "ZOPILOT_GPU_RUNNER": system,
            "ZOPILOT_GPU_API_KEY": ",".join(KEYS),
            "ZOPILOT_GPU_MAX_WAITING": "1000",
            "ZOPILOT_GPU_REQUEST_TIMEOUT_S": "3600",
            "BENTOML_DO_NOT_TRACK": "True",
        }
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log) as process:
        url = f"http://127.0.0.1:{port}"
        try:
            if not _is_ready(url, process):
                log.seek(0)
                raise RuntimeError(f"{system} did not start:\n{log.read().decode(errors='replace')[-4000:]}")
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _is_ready(url: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline_s = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            if httpx.get(f"{url}/health", timeout=5).json()["status"] == "ok":
                return True
        except (httpx.TransportError, ValueError):
            pass
        time.sleep(0.1)
    return False


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
