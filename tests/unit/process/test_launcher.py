"""What the supervisor makes of BentoML's watchers. How it restarts them is tests/faults/test_supervision.py's."""

import os
import subprocess
import sys

from tests.conftest import ROOT

SCRIPT = """
import os
from bentoml._internal.utils import circus
from bentoml.serving import create_watcher
from zopilot_gpu.process.launcher import Supervisor, supervise
from zopilot_gpu.settings import Settings

supervise(Settings(allow_anonymous=True))
watcher = create_watcher("service", [], env={"CUDA_VISIBLE_DEVICES": "0"})
arbiter = circus.create_standalone_arbiter([watcher])
launcher = os.environ["ZOPILOT_GPU_LAUNCHER_PID"]
print(isinstance(arbiter, Supervisor), watcher.env.get("CUDA_VISIBLE_DEVICES"), launcher == str(os.getpid()))
"""


def made(**env: str) -> str:
    """What the script prints, in a process of its own: an arbiter takes over its process's signals."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    command = [sys.executable, "-c", SCRIPT]
    return subprocess.run(
        command, cwd=ROOT, env=inherited | env, capture_output=True, text=True, timeout=120, check=True
    ).stdout.strip()


def test_the_launcher_supervises_and_lets_the_worker_see_every_gpu() -> None:
    assert made() == "True None True"


def test_a_choice_of_gpus_that_was_made_stays() -> None:
    assert made(CUDA_VISIBLE_DEVICES="2,3") == "True 0 True"
