"""`bentoml build` needs no GPU, no settings and no heavy imports, and what it builds serves."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, Serve

_BUILD = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "transformers", "bitsandbytes", "accelerate"}:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocked())
from bentoml_cli.cli import cli
cli(["build", "--output", "tag"])
"""


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built bento's directory."""
    home = tmp_path_factory.mktemp("bentoml-home")
    env = {"PATH": os.environ["PATH"], "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    built = subprocess.run([sys.executable, "-c", _BUILD], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    (latest,) = (home / "bentos" / "zopilot_gpu").glob("*/bento.yaml")
    return latest.parent


def test_the_bento_holds_the_code_the_lock_and_the_demo_model_and_nothing_else(bento: Path) -> None:
    files = {path.relative_to(bento / "src").as_posix() for path in (bento / "src").rglob("*") if path.is_file()}
    assert {"service.py", "runners/plain.py", "zopilot_gpu/api/gate.py", "zopilot_gpu/demo/model/model.safetensors"} <= files
    assert not [name for name in files if name.startswith(("tests", "docs", ".")) or "__pycache__" in name]
    assert sum(path.stat().st_size for path in bento.rglob("*") if path.is_file()) < 12e6


def test_the_bento_pins_torch_with_hashes(bento: Path) -> None:
    lock = (bento / "env" / "python" / "requirements.txt").read_text()
    assert "\ntorch==2.6.0 " in lock
    ours = (ROOT / "requirements" / "runtime.lock.txt").read_text()
    assert set(re.findall(r"--hash=\S+", lock)) == set(re.findall(r"--hash=\S+", ours))
    assert set(re.findall(r"^[\w.-]+==[\w.+-]+", lock, re.MULTILINE)) == set(
        re.findall(r"^[\w.-]+==[\w.+-]+", ours, re.MULTILINE)
    )
    assert re.search(r"\n +resources:\n +gpu: 1\n", (bento / "bento.yaml").read_text())


def test_the_bento_serves_from_its_own_directory(bento: Path, serve: Serve) -> None:
    init = bento / "src" / "zopilot_gpu" / "__init__.py"
    init.write_text(init.read_text().replace('__version__ = "', '__version__ = "bento-'))  # proves which files run
    with serve(working_dir=bento / "src", ZOPILOT_GPU_MODEL="demo") as server:
        assert server.health()["version"].startswith("bento-")
        with server.client() as client:
            context = {"vendor": "Acme", "total": "118.40"}
            answer = client.post("/prompt", json={"prompt": "What is the total?", "context": context})
    assert answer.json()["output"] == "118.40"
