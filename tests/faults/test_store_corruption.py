"""A packed model damaged in each way, in each kind of file: refused by the file's name or repaired, never loaded wrong.

Twelve kinds of damage times six kinds of file. Each case goes the way of a start on a node that has not seen the files.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_tiny
from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.load import load
from zopilot_gpu.store.manifest import Damaged
from zopilot_gpu.store.verdicts import Verdicts

Tensors = dict[str, torch.Tensor]
KINDS = ["layer-001.safetensors", "globals.safetensors", "manifest.json", "READY", "config.json", "tokenizer.json"]


def flip(path: Path, share: float) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * share), len(content) - 1)] ^= 0x10
    path.write_bytes(content)


def zero(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(len(content[middle : middle + 4096]))
    path.write_bytes(content)


def move(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[1:] + content[:1])


def into_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def into_link_to_nothing(path: Path) -> None:
    path.unlink()
    path.symlink_to("nothing")


def into_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "last byte gone": lambda path: os.truncate(path, path.stat().st_size - 1),
    "half gone": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit at the beginning": lambda path: flip(path, 0),
    "a bit in the middle": lambda path: flip(path, 0.5),
    "a bit at the end": lambda path: flip(path, 1),
    "a page of zeros": zero,
    "moved by a byte": move,
    "a link to nothing": into_link_to_nothing,
    "a pipe": into_pipe,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("source") / "acme-tiny")


@pytest.fixture(scope="module")
def sound(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensors]:
    """A volume with a sound packed form, and the tensors in it."""
    volume = tmp_path_factory.mktemp("volume")
    prepared = ensure(Wanted(str(source), roots=[volume]))
    assert prepared.manifest
    directory, manifest = prepared.located.directory, prepared.manifest
    verdicts = Verdicts(directory, manifest, tmp_path_factory.mktemp("cache"))
    return volume, load(directory, manifest, verdicts=verdicts)


def started(wanted: Wanted) -> tuple[Tensors, list[str]]:
    """What a start loads, and what was wrong on the way: as a service does it, building where it has to."""
    problems: list[str] = []
    for _ in range(2):
        prepared = ensure(wanted)
        assert prepared.manifest, prepared.why
        try:
            return load(prepared.located.directory, prepared.manifest), problems
        except Damaged as problem:
            problems.append(str(problem.detail))
    pytest.fail(str(problems))


def load_copy(wanted: Wanted, copy: Path) -> None:
    """Loads a copy, so that what is set aside is not the one that the test goes on with."""
    prepared = ensure(wanted)
    assert prepared.manifest
    shutil.copytree(prepared.located.directory, copy)
    load(copy, prepared.manifest)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_never_loaded(
    source: Path, sound: tuple[Path, Tensors], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, damage: str
) -> None:
    volume, expected = sound
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(volume, tmp_path / "volume")
    (directory,) = (tmp_path / "volume" / "packed").iterdir()
    before = (directory / kind).read_bytes()
    DAMAGE[damage](directory / kind)
    path = directory / kind
    if path.is_file() and path.read_bytes() == before:
        flip(path, 0.5)  # zeros over zeros
    with pytest.raises(Damaged) as refused:  # without its source it is refused, by the name of the file
        load_copy(Wanted(source.name, roots=[tmp_path / "volume"]), tmp_path / "copy")
    assert kind in str(refused.value.detail)
    tensors, _ = started(Wanted(str(source), roots=[tmp_path / "volume"]))
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_there_are_72_cases() -> None:
    assert len(KINDS) * len(DAMAGE) == 72
