"""Many processes start at once on an empty volume, and the one that builds is killed: one form is published, and it is whole.

`flock` does nothing here: any use of it fails the process. The children are forked from a process that has imported torch, so
that many fit on a small machine. For the long run:
`ZOPILOT_GPU_HERD=32 ZOPILOT_GPU_HERD_KILLS=20 python -m pytest tests/faults/test_store_herd.py -s`.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoints import environment, make_tiny

NUM_PROCESSES = int(os.environ.get("ZOPILOT_GPU_HERD", "6"))
NUM_KILLS = int(os.environ.get("ZOPILOT_GPU_HERD_KILLS", "3"))
TAKEOVER_S = 200  # 60 on cores that have nothing else to do

# One round: `num` children call `ensure`; the first that gets the lease is killed at its call number `kill_at` of the system.
HERD = """
import fcntl, hashlib, json, os, signal, sys, time
from pathlib import Path
import bitsandbytes.functional, torch
from zopilot_gpu import log
from zopilot_gpu.store import build, files, lease
from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.load import load
from zopilot_gpu.store import pack

source, scratch, num, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
log.configure("error")

class Counted:
    def __init__(self):
        self.count = None
    def __getattr__(self, name):
        found = getattr(os, name)
        if not callable(found):
            return found
        def call(*arguments, **options):
            if self.count is not None:
                self.count += 1
                if self.count == kill_at and not (scratch / "killed").exists():
                    (scratch / "killed").write_text(str(time.monotonic()))
                    os.kill(os.getpid(), signal.SIGKILL)
            return found(*arguments, **options)
        return call

def refuse(*_):
    raise SystemError("flock")

def child(number):
    fcntl.flock = fcntl.lockf = refuse
    counted = files.os = Counted()
    original = build.acquire
    def acquire(*arguments):
        held = original(*arguments)
        if held:
            counted.count = 0
        return held
    build.acquire = acquire
    pace = lease.Pace(beat_s=0.2, stale_s=2.0 if kill_at else 10.0)
    prepared = ensure(Wanted(str(source), roots=[scratch / "volume"], pace=pace))
    digest = hashlib.sha256()
    if prepared.manifest:
        os.environ["XDG_CACHE_HOME"] = str(scratch / f"cache-{number}")
        for name, tensor in sorted(load(prepared.located.directory, prepared.manifest).items()):
            digest.update(name.encode() + tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    outcome = {"why": prepared.why, "digest": digest.hexdigest(), "calls": counted.count, "at_s": time.monotonic()}
    (scratch / f"outcome-{number}").write_text(json.dumps(outcome))

children = {}
for number in range(num):
    pid = os.fork()
    if pid == 0:
        try:
            child(number)
        except BaseException as error:
            (scratch / f"error-{number}").write_text(repr(error))
            os._exit(1)
        os._exit(0)
    children[pid] = number
ended = {children[pid]: os.waitpid(pid, 0)[1] for pid in children}
print(json.dumps(ended))
"""


def herd(source: Path, scratch: Path, num: int, kill_at: int) -> tuple[list[int], list[dict[str, Any]]]:
    """How each child ended, and what those that lived found."""
    (scratch / "volume").mkdir(parents=True)
    command = [sys.executable, "-c", HERD, str(source), str(scratch), str(num), str(kill_at)]
    run = subprocess.run(command, env=environment(scratch), capture_output=True, text=True, check=False, timeout=240)
    assert run.returncode == 0, run.stderr
    errors = [path.read_text() for path in scratch.glob("error-*")]
    assert errors == []
    ended: dict[str, int] = json.loads(run.stdout.splitlines()[-1])
    return list(ended.values()), [json.loads(path.read_text()) for path in scratch.glob("outcome-*")]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("source") / "acme-tiny")


@pytest.fixture(scope="module")
def alone(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a single process finds, with the number of its calls."""
    _, (outcome,) = herd(source, tmp_path_factory.mktemp("alone") / "s", 1, 0)
    assert outcome["why"] == "it was packed now"
    assert outcome["calls"] > 50
    return outcome


def test_a_herd_publishes_one_form(source: Path, alone: dict[str, Any], tmp_path: Path) -> None:
    ended, outcomes = herd(source, tmp_path / "s", NUM_PROCESSES, 0)
    assert ended == [0] * NUM_PROCESSES
    assert {outcome["digest"] for outcome in outcomes} == {alone["digest"]}
    assert sum(outcome["why"] == "it was packed now" for outcome in outcomes) == 1
    assert len(list((tmp_path / "s" / "volume" / "packed").iterdir())) == 1


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("share", [(number + 0.5) / NUM_KILLS for number in range(NUM_KILLS)])
def test_a_builder_that_is_killed_is_followed_by_another(
    source: Path, alone: dict[str, Any], tmp_path: Path, share: float
) -> None:
    kill_at = max(1, int(alone["calls"] * share))
    ended, outcomes = herd(source, tmp_path / "s", NUM_PROCESSES, kill_at)
    assert sorted(ended) == [0] * (NUM_PROCESSES - 1) + [9]
    assert {outcome["digest"] for outcome in outcomes} == {alone["digest"]}
    published = [path for path in (tmp_path / "s" / "volume" / "packed").iterdir() if not path.name.startswith(".")]
    killed_s = float((tmp_path / "s" / "killed").read_text())
    takeover_s = max(outcome["at_s"] for outcome in outcomes) - killed_s
    print(f"\nkilled at call {kill_at} of {alone['calls']}: all {len(outcomes)} loaded {takeover_s:.1f} s later")  # noqa: T201
    assert takeover_s < TAKEOVER_S
    assert len(published) == 1
