"""Holds that a build machine, with no torch, GPU, model or settings, can import the service and read what BentoML needs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BLOCKED = ["torch", "transformers", "bitsandbytes", "accelerate", "tokenizers", "sentencepiece", "safetensors"]
SCRIPT = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

BLOCKED = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, Blocked())
try:
    import torch
except ImportError:
    pass
else:
    raise SystemExit("the block does not hold")

import threading
import service
made = service.ZopilotGPU
print(json.dumps({
    "name": made.name,
    "routes": {name: method.route for name, method in made.apis.items()},
    "resources": made.config["resources"],
    "workers": made.config["workers"],
    "runners_made": len(service._made),
    "threads": threading.active_count(),
    "input": sorted(made.apis["prompt"].input_spec.model_json_schema()["properties"]),
}))
"""


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path_factory.mktemp("home")),
        "PYTHONPATH": str(ROOT),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps(BLOCKED)]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=120)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def test_the_service_has_its_name_route_and_gpu(imported: dict[str, Any]) -> None:
    assert imported["name"] == "zopilot_gpu"
    assert imported["routes"] == {"prompt": "/prompt"}
    assert imported["resources"] == {"gpu": 1}
    assert imported["workers"] == 1


def test_the_route_documents_its_fields(imported: dict[str, Any]) -> None:
    assert {"prompt", "context", "max_tokens", "temperature", "stop", "stream"} <= set(imported["input"])


def test_nothing_happens_on_import(imported: dict[str, Any]) -> None:
    assert imported["runners_made"] == 0
    assert imported["threads"] == 1
