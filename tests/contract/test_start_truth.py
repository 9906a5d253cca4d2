"""Starts that can't succeed, one sentence with the remedy, in the log and on /health; the process stays, not ready."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.conftest import Serve
from zopilot_gpu.store.locate import DEMO_DIRECTORY

Environment = dict[str, str]


def copy_of_demo(directory: Path, **changed: object) -> Path:
    """The demo model's files, to be damaged, with another config where it is changed."""
    copy = Path(shutil.copytree(DEMO_DIRECTORY, directory / "model"))
    config = json.loads((copy / "config.json").read_text()) | changed
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def missing(directory: Path) -> Environment:
    return {"ZOPILOT_GPU_MODEL": "nobody/nothing", "HF_HOME": str(directory)}


def cut_off(directory: Path) -> Environment:
    copy = copy_of_demo(directory)
    os.truncate(copy / "model.safetensors", 1_000_000)
    return {"ZOPILOT_GPU_MODEL": str(copy)}


def unknown(directory: Path) -> Environment:
    return {"ZOPILOT_GPU_MODEL": str(copy_of_demo(directory, model_type="unheard-of"))}


def too_large(directory: Path) -> Environment:
    return {"ZOPILOT_GPU_MODEL": str(copy_of_demo(directory, intermediate_size=2**30))}


def no_gpu(directory: Path) -> Environment:
    return {"ZOPILOT_GPU_MODEL": "demo", "ZOPILOT_GPU_DEVICE": "cuda", "CUDA_VISIBLE_DEVICES": ""}


def unwritable(directory: Path) -> Environment:
    # NOTE: not a mode, which means nothing to root: no user makes a file in /sys.
    return {"ZOPILOT_GPU_MODEL": "nobody/nothing", "ZOPILOT_GPU_VOLUME": "/sys", "ZOPILOT_GPU_ALLOW_DOWNLOAD": "true"}


# what is wrong: the parts of the one sentence, and the check of doctor's that fails beside `start`
STARTS: dict[Callable[[Path], Environment], tuple[tuple[str, ...], str]] = {
    missing: (("is not in the mounted cache", "ZOPILOT_GPU_ALLOW_DOWNLOAD=true"), "model"),
    cut_off: (("model.safetensors is no sound safetensors file", "Fetch it anew."), "model"),
    unknown: (("unheard-of", "name another model"), "start"),
    too_large: (("weights do not fit in NF4", "take a device with more memory"), "memory"),
    no_gpu: (("ZOPILOT_GPU_DEVICE=cuda, but torch can use no GPU",), "card"),
    unwritable: (("can't be downloaded: /sys/huggingface/hub", "prepare"), "volume"),
}


@pytest.mark.parametrize("wrong", STARTS, ids=lambda wrong: wrong.__name__)
def test_a_start_that_can_not_succeed_says_why_and_stays(
    serve: Serve, tmp_path: Path, wrong: Callable[[Path], Environment]
) -> None:
    parts, check = STARTS[wrong]
    with serve(ready=False, **wrong(tmp_path)) as server:
        health = server.wait_for(lambda health: health["status"] == "unavailable" and bool(health["doctor"]), timeout_s=120)
        assert [part for part in parts if part not in health["problem"]] == [], health["problem"]
        assert "\n" not in health["problem"]
        failed = {one["name"]: one for one in health["doctor"]["checks"] if one["verdict"] == "fail"}
        assert {"start", check} <= set(failed)
        assert failed["start"]["reason"] == health["problem"]
        public = httpx.get(f"{server.url}/health").json()
        assert not {"problem", "doctor"} & set(public)
        with server.client() as client:
            assert client.get("/readyz").status_code == client.get("/ping").status_code == 503
            refused = client.post("/prompt", json={"prompt": "Hi"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_unavailable")
            assert client.get("/livez").status_code == 200
        assert server.process.poll() is None
    lines = server.log.read_text()
    assert "Traceback" not in lines
    said = [line for line in lines.splitlines() if "model_unavailable" in line and '"problem"' in line]
    assert len(said) == 1
    assert json.loads(said[0])["problem"] == health["problem"]


def test_a_service_that_can_do_without_a_library_says_so(serve: Serve, tmp_path: Path) -> None:
    import bitsandbytes

    ours = Path(bitsandbytes.__file__).parent
    hidden = tmp_path / "bitsandbytes"
    hidden.mkdir()
    for file in ours.iterdir():  # all of it but its native libraries
        if file.suffix != ".so":
            (hidden / file.name).symlink_to(file)
    with serve(ready=False, ZOPILOT_GPU_MODEL="demo", PYTHONPATH=str(tmp_path)) as server:
        health = server.wait_for(lambda health: bool(health["doctor"]), timeout_s=120)
        assert health["status"] == "ok"
        assert health["doctor"]["verdict"] == "warn"
        (warned,) = [one for one in health["doctor"]["checks"] if one["verdict"] == "warn"]
        assert warned["name"] == "bitsandbytes"
        assert "libbitsandbytes_cpu.so is not there" in warned["reason"]
        assert "doctor" not in httpx.get(f"{server.url}/health").json()
    assert "libbitsandbytes_cpu.so is not there" in server.log.read_text()
