"""Holds the store's door: packed once and found afterwards, the source where it can't be, and the reason in words each time."""

import errno
import importlib.metadata
import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import tensors_of
from zopilot_gpu import __version__
from zopilot_gpu.errors import ModelUnavailable, ShuttingDown
from zopilot_gpu.store import build as build_module
from zopilot_gpu.store import files
from zopilot_gpu.store.ensure import Prepared, Wanted, ensure
from zopilot_gpu.store.load import load
from zopilot_gpu.store.manifest import Damaged, check_hashes
from zopilot_gpu.store.published import leftovers
from zopilot_gpu.store.verdicts import Verdicts


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("the store opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def no_pack(*_: object) -> Any:
    pytest.fail("it was packed again")


@pytest.fixture
def wanted(tiny: Path, tmp_path: Path) -> Wanted:
    return Wanted(str(tiny), roots=[tmp_path / "volume", tmp_path / "absent"])


@pytest.fixture(autouse=True)
def volume(tmp_path: Path) -> Path:
    (tmp_path / "volume").mkdir()
    return tmp_path / "volume"


def packed(prepared: Prepared) -> Path:
    assert prepared.manifest
    assert prepared.is_packed
    check_hashes(prepared.located.directory, prepared.manifest, prepared.manifest.files)
    return prepared.located.directory


def test_it_is_packed_once_and_then_found(wanted: Wanted, volume: Path) -> None:
    first = ensure(wanted)
    again = ensure(replace(wanted, pack=no_pack))
    assert packed(first) == packed(again) == volume / "packed" / packed(first).name
    assert packed(first).name.startswith("acme-tiny@")
    assert packed(first).name.endswith("-1")
    assert (first.why, again.why) == ("it was packed now", "the packed form is there")
    assert [path.name for path in (volume / "packed").iterdir()] == [packed(first).name]


def test_it_is_packed_where_the_project_is_not_installed(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.Distribution.from_name

    def as_in_an_image(name: str) -> importlib.metadata.Distribution:
        if name == "zopilot-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", as_in_an_image)
    prepared = ensure(wanted)
    packed(prepared)
    assert prepared.manifest
    assert prepared.manifest.made_by["zopilot-gpu"] == __version__


def test_what_is_loaded_is_what_is_on_the_disk(wanted: Wanted) -> None:
    found = ensure(wanted)
    assert found.manifest
    told: list[tuple[str, int, int]] = []
    tensors = load(found.located.directory, found.manifest, progress=lambda *step: told.append(step))
    expected = tensors_of(found.located.directory)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert told[-1][1] < told[-1][2] == sum(found.manifest.files[name].size for name in found.manifest.weights)


def test_a_service_can_ask_without_building(wanted: Wanted, tiny: Path) -> None:
    found = ensure(replace(wanted, build=False, pack=no_pack))
    assert (found.located.directory, found.is_packed, found.why) == (tiny, False, "it has not been packed yet")
    ensure(wanted)
    assert ensure(replace(wanted, build=False, pack=no_pack)).is_packed


def test_the_source_may_go_once_it_is_packed(tiny: Path, volume: Path) -> None:
    commit = "c" * 40
    snapshot = volume / "huggingface/hub/models--Acme--Tiny/snapshots" / commit
    shutil.copytree(tiny, snapshot)
    wanted = Wanted("Acme/Tiny", roots=[volume])
    first = ensure(wanted)
    assert first.located.revision == commit
    shutil.rmtree(volume / "huggingface")
    for revision in (None, commit):
        assert packed(ensure(replace(wanted, pack=no_pack, revision=revision))) == packed(first)
    with pytest.raises(ModelUnavailable, match="at revision"):
        ensure(replace(wanted, revision="d" * 40))


def test_another_source_is_another_packed_form(wanted: Wanted, tiny: Path, tmp_path: Path) -> None:
    first = packed(ensure(wanted))
    tuned = tmp_path / "tuned" / tiny.name
    shutil.copytree(tiny, tuned)
    shard = tuned / "model-00002-of-00003.safetensors"
    content = bytearray(shard.read_bytes())
    content[5000:] = bytes(byte ^ 1 for byte in content[5000:])
    shard.write_bytes(content)
    assert packed(ensure(replace(wanted, model=str(tuned)))) != first


def test_a_packed_directory_can_be_named_itself(wanted: Wanted) -> None:
    directory = packed(ensure(wanted))
    assert packed(ensure(Wanted(str(directory)))) == directory
    (directory / "config.json").write_text("{}")
    with pytest.raises(Damaged, match=r"config\.json"):
        ensure(Wanted(str(directory)))


@pytest.mark.parametrize("name", ["layer-001.safetensors", "manifest.json", "READY", "tokenizer.json"])
def test_a_damaged_form_is_set_aside_and_made_anew(wanted: Wanted, volume: Path, name: str) -> None:
    directory = packed(ensure(wanted))
    (directory / name).unlink()
    assert not ensure(replace(wanted, build=False)).is_packed
    assert packed(ensure(wanted)) == directory
    left = list(leftovers([volume]))
    assert [path.name.partition(".")[2].partition("-")[0] for path in left] == ["damaged"]


def test_a_flipped_bit_is_found_by_the_first_load_of_a_machine_and_repaired(wanted: Wanted, tmp_path: Path) -> None:
    found = ensure(wanted)
    assert found.manifest
    path = found.located.directory / "layer-000.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)
    assert ensure(replace(wanted, pack=no_pack)).is_packed  # its sizes are right
    with pytest.raises(Damaged, match=r"layer-000\.safetensors is damaged: its content has changed"):
        load(found.located.directory, found.manifest)
    assert packed(ensure(wanted)) == found.located.directory


def test_a_copy_in_another_place_is_refused_and_left_where_it_is(wanted: Wanted, tmp_path: Path) -> None:
    found = ensure(wanted)
    assert found.manifest
    copy = tmp_path / "copy"
    shutil.copytree(found.located.directory, copy)
    (copy / "layer-000.safetensors").write_bytes(bytes((copy / "layer-000.safetensors").stat().st_size))
    with pytest.raises(Damaged, match=r"copy/layer-000\.safetensors"):
        load(copy, found.manifest)
    assert copy.is_dir()


def test_a_machine_hashes_what_it_loads_once(wanted: Wanted, monkeypatch: pytest.MonkeyPatch) -> None:
    found = ensure(wanted)
    assert found.manifest
    directory, made = found.located.directory, found.manifest
    assert Verdicts(directory, made).unseen() == made.weights
    load(directory, made)
    assert Verdicts(directory, made).unseen() == []
    (directory / "layer-001.safetensors").touch()
    assert Verdicts(directory, made).unseen() == ["layer-001.safetensors"]
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    load(directory, made)  # nowhere to note it
    assert Verdicts(directory, made).unseen() == made.weights


def test_a_read_only_volume_serves_what_is_packed(
    wanted: Wanted, tiny: Path, monkeypatch: pytest.MonkeyPatch, volume: Path
) -> None:
    def refuse(path: Path) -> int:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    directory = packed(ensure(wanted))
    with monkeypatch.context() as patch:
        patch.setattr(files, "create", refuse)
        assert packed(ensure(wanted)) == directory
        shutil.rmtree(directory)
        found = ensure(wanted)
    assert (found.located.directory, found.is_packed) == (tiny, False)
    assert f"user {os.geteuid()} can't write to {volume}" in found.why


def test_no_room_is_said_before_anything_is_written(wanted: Wanted, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 100_000)
    found = ensure(replace(wanted, pack=no_pack))
    assert (found.located.directory, found.is_packed) == (tiny, False)
    assert "0.0 GB are needed" in found.why
    assert "ZOPILOT_GPU_VOLUME" in found.why


def test_a_build_can_be_stopped_and_goes_on_later(wanted: Wanted, volume: Path) -> None:
    told: list[str] = []
    with pytest.raises(ShuttingDown):
        ensure(wanted, lambda step, *_: told.append(step), lambda: len(told) > 25)
    (staging,) = (volume / "packed").glob(".building-*")
    inode = (staging / "layer-000.safetensors").stat().st_ino
    assert (packed(ensure(wanted)) / "layer-000.safetensors").stat().st_ino == inode
    assert not list((volume / "packed").glob(".*"))


def test_who_comes_second_takes_what_the_first_has_published(wanted: Wanted, volume: Path) -> None:
    def pack_late(*arguments: Any) -> Any:
        from zopilot_gpu.store.pack import pack

        made = pack(*arguments)
        for lease in (volume / "packed").glob(".lease-*"):
            lease.unlink()  # as when this process had slept for long
        moved = [path.rename(path.with_name("elsewhere")) for path in (volume / "packed").glob(".building-*")]
        assert ensure(wanted).why == "it was packed now"
        for path in moved:
            path.rename(arguments[1])
        return made

    assert packed(ensure(replace(wanted, pack=pack_late)))
    assert len(list((volume / "packed").iterdir())) == 1


def test_each_form_of_absmax_is_a_packed_form_of_its_own(wanted: Wanted, volume: Path) -> None:
    exact = packed(ensure(replace(wanted, absmax="bfloat16")))
    assert exact.name.endswith("-1-bfloat16")
    assert packed(ensure(replace(wanted, pack=no_pack))) == exact  # any will do
    double = packed(ensure(replace(wanted, absmax="double")))
    assert double != exact
    assert packed(ensure(replace(wanted, pack=no_pack))) == double
    assert packed(ensure(Wanted(wanted.model, roots=[volume], absmax="bfloat16", pack=no_pack))) == exact


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"sliding_window": 4096}, "sliding-window"), ({"intermediate_size": 3, "hidden_size": 8}, "blocks of 64")],
)
def test_a_mixtral_that_has_no_packed_form_is_served_from_its_source(
    tiny: Path, tmp_path: Path, wanted: Wanted, changes: dict[str, int], said: str
) -> None:
    shutil.copytree(tiny, tmp_path / "odd")
    config = json.loads((tiny / "config.json").read_bytes())
    (tmp_path / "odd" / "config.json").write_text(json.dumps(config | changes))
    found = ensure(replace(wanted, model=str(tmp_path / "odd"), pack=no_pack))
    assert (found.located.directory, found.is_packed) == (tmp_path / "odd", False)
    assert said in found.why


def test_other_models_are_served_from_their_source(tiny: Path, tmp_path: Path, wanted: Wanted) -> None:
    shutil.copytree(tiny, tmp_path / "llama")
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    found = ensure(replace(wanted, model=str(tmp_path / "llama"), pack=no_pack))
    assert (found.is_packed, found.why) == (False, "only a Mixtral is packed, and this is of the type 'llama'")


def test_a_model_that_is_nowhere_is_an_error_with_the_places(wanted: Wanted, volume: Path) -> None:
    with pytest.raises(ModelUnavailable, match=str(volume)):
        ensure(replace(wanted, model="acme/unknown"))


def test_a_truncated_source_is_named(tiny: Path, tmp_path: Path, wanted: Wanted) -> None:
    shutil.copytree(tiny, tmp_path / "cut")
    shard = tmp_path / "cut" / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(ModelUnavailable, match=r"model-00003-of-00003\.safetensors is no sound safetensors file"):
        ensure(replace(wanted, model=str(tmp_path / "cut")))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.ESTALE, errno.EINVAL])
def test_errors_of_the_volume_come_with_a_remedy(number: int, tmp_path: Path) -> None:
    said = build_module.remedy(OSError(number, "said"), tmp_path)
    assert said.startswith(f"{tmp_path}: said; ")
    assert len(said.partition("; ")[2]) > 10
