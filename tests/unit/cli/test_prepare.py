"""Holds what a person types: `prepare` and `store`, against real files, with the status that a job looks at."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.checkpoints import make_tiny
from zopilot_gpu.cli import app
from zopilot_gpu.store.published import directories, open_published

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    (tmp_path / "volume").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOPILOT_GPU_VOLUME", str(tmp_path / "volume"))
    monkeypatch.delenv("ZOPILOT_GPU_API_KEY", raising=False)
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("source") / "acme-tiny")


def test_prepare_packs_and_says_where(run: Run, tiny: Path, tmp_path: Path) -> None:
    done = run("prepare", "--model", tiny, "--verify", "--absmax", "bfloat16")
    assert done.exit_code == 0, done.output
    (directory,) = directories([tmp_path / "volume"])
    assert str(directory) in done.output
    assert re.search(r"packing: .* GB/s", done.output)
    assert open_published(directory).manifest.absmax == "bfloat16"


def test_prepare_exports_what_it_packed(run: Run, tiny: Path, tmp_path: Path) -> None:
    done = run("prepare", "--model", tiny, "--export", tmp_path / "exported")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "exported" / "model.safetensors.index.json").is_file()
    again = run("prepare", "--model", tiny, "--export", tmp_path / "exported")
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_verify_makes_anew_what_has_changed(run: Run, tiny: Path, tmp_path: Path) -> None:
    run("prepare", "--model", tiny)
    (directory,) = directories([tmp_path / "volume"])
    path = directory / "layer-001.safetensors"
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert run("store", "verify").exit_code == 1
    done = run("prepare", "--model", tiny, "--verify")
    assert (done.exit_code, "made anew" in done.output) == (0, True)
    assert path.read_bytes() == sound
    assert run("store", "verify").exit_code == 0


def test_verify_refuses_a_source_that_changed_since_its_download(run: Run, tiny: Path, tmp_path: Path) -> None:
    from zopilot_gpu.store.fingerprint import hash_file

    repository = tmp_path / "volume" / "hub" / "models--acme--tiny"
    snapshot = repository / "snapshots" / ("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in tiny.iterdir():
        blob = repository / "blobs" / hash_file(path)
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(blob)
    blob = (snapshot / "model-00002-of-00003.safetensors").resolve()
    sound = blob.read_bytes()
    blob.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    done = run("prepare", "--model", "acme/tiny", "--verify")
    assert done.exit_code == 1
    assert "model-00002-of-00003.safetensors (1 in all) changed since the download" in done.output.replace("\n", " ")
    blob.write_bytes(sound)
    assert run("prepare", "--model", "acme/tiny", "--verify").exit_code == 0


def test_made_up_models_are_listed_and_can_be_removed(run: Run, tmp_path: Path) -> None:
    assert run("prepare", "--synthetic", "demo-size").exit_code == 0
    assert run("prepare", "--synthetic", "demo-size").exit_code == 0  # there already
    (directory,) = directories([tmp_path / "volume"])
    listed = run("store", "ls")
    assert "synthetic-demo-size" in listed.output
    (directory / "READY").unlink()
    assert "damaged" in run("store", "ls").output
    directory.rename(directory.with_name(f".damaged-{directory.name}"))
    assert "1 leftovers" in run("store", "ls").output
    assert "Removed 1 of 1" in run("store", "gc").output
    assert list((tmp_path / "volume" / "packed").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "acme/unknown"], "is not in the mounted cache"),
        (["--synthetic", "huge"], "no made-up model 'huge'"),
        (["--synthetic", "demo-size", "--absmax", "int8"], "--absmax is 'int8'"),
    ],
)
def test_what_can_not_be_done_is_a_sentence_and_status_1(run: Run, arguments: list[str], said: str) -> None:
    done = run("prepare", *arguments)
    assert done.exit_code == 1
    assert said in done.output
