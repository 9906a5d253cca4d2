"""Every read and write of the store fails once, or from then on: nothing half is published, and what was there still loads.

`zopilot_gpu.store.files` is the only module that calls the system; here its `os` fails at call number n, for each n.
`ZOPILOT_GPU_IO_ERRORS=1 python -m pytest tests/faults/test_store_io_errors.py -s` takes each call; otherwise some eighty.
"""

import errno
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoints import make_tiny
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.load import load
from zopilot_gpu.store.manifest import check_hashes
from zopilot_gpu.store.published import directories, open_published

EVERY = os.environ.get("ZOPILOT_GPU_IO_ERRORS") == "1"
ERRORS = [errno.ENOSPC, errno.EIO, errno.EROFS, errno.ESTALE]
NEVER_FAIL = {"close", "getpid", "urandom", "fspath"}


class FailingOs:
    """`os`, but for the calls that fail. Counts those that could."""

    def __init__(self, number: int = 0, fail_at: int = 0, *, for_ever: bool = False) -> None:
        self.count = 0
        self._number, self._fail_at, self._for_ever = number, fail_at, for_ever
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        found = getattr(os, name)
        if not callable(found) or name in NEVER_FAIL:
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                self.count += 1
                fails = self.count == self._fail_at or (self._for_ever and self.count > self._fail_at > 0)
            if fails:
                raise OSError(self._number, os.strerror(self._number))
            return found(*arguments, **options)

        return call


@contextmanager
def failing(failing_os: FailingOs) -> Iterator[FailingOs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "os", failing_os)
        yield failing_os


def cases(calls: int) -> list[tuple[int, int, bool]]:
    """(error, number of the call, whether all later ones fail too)."""
    every = list(itertools.product(ERRORS, range(1, calls + 1), (False, True)))
    return every if EVERY else every[:: max(1, len(every) // 80)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("source") / "acme-tiny")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with the packed form of another model."""
    volume = tmp_path_factory.mktemp("older")
    assert ensure(Wanted("demo", roots=[volume])).is_packed
    return volume


def loaded(directory: Path) -> dict[str, torch.Tensor]:
    return load(directory, open_published(directory).manifest)


@pytest.mark.timeout(3600)
def test_an_error_at_any_call_of_a_build_publishes_nothing_half(
    source: Path, older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(older, tmp_path / "alone")
    with failing(FailingOs()) as counting:
        reference = ensure(Wanted(str(source), roots=[tmp_path / "alone"]))
    assert reference.manifest
    outcomes = {"packed": 0, "source": 0, "refused": 0, "without a word": 0}
    tried = cases(counting.count)
    for number, fail_at, for_ever in tried:
        volume = tmp_path / "volume"
        shutil.copytree(older, volume)
        with failing(FailingOs(number, fail_at, for_ever=for_ever)):
            try:
                prepared = ensure(Wanted(str(source), roots=[volume]))
            except ModelUnavailable as refusal:
                outcomes["refused" if refusal.detail else "without a word"] += 1
            else:
                outcomes["packed" if prepared.is_packed else "source"] += 1
        for directory in directories([volume]):  # whatever has a published name is whole
            found = open_published(directory)
            check_hashes(directory, found.manifest, found.manifest.files)
        assert sum(path.name.startswith("demo@") for path in directories([volume])) == 1
        for lease in (volume / "packed").glob(".lease-*"):
            lease.unlink()  # what a volume that failed did not let go: stale after 30 s
        after = ensure(Wanted(str(source), roots=[volume]))
        assert after.manifest, (number, fail_at, for_ever, after.why)
        assert after.manifest.files == reference.manifest.files
        shutil.rmtree(volume)
    print(f"\n{len(tried)} errors over {counting.count} calls: {outcomes}")  # noqa: T201
    assert outcomes["source"] > len(tried) / 5  # the volume's errors while writing
    assert outcomes["refused"] > len(tried) / 5  # and while reading the source, which is on it too
    assert outcomes["without a word"] == 0


@pytest.mark.timeout(1200)
def test_an_error_at_any_call_of_a_load_leaves_the_form_where_it_is(
    older: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory,) = directories([older])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    with failing(FailingOs()) as counting:
        expected = loaded(directory)
    tried = cases(counting.count)
    refused: list[str] = []
    for index, (number, fail_at, for_ever) in enumerate(tried):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(index)))
        with failing(FailingOs(number, fail_at, for_ever=for_ever)):
            try:
                found = loaded(directory)
            except ModelUnavailable as refusal:
                refused.append(str(refusal.detail))
                found = {}
        assert all(torch.equal(found[name], expected[name]) for name in found)
        assert list(directories([older])) == [directory]
    assert loaded(directory).keys() == expected.keys()
    print(f"\n{len(tried)} errors over {counting.count} calls: {len(refused)} refused")  # noqa: T201
    assert len(refused) > len(tried) / 3
    assert all("can not be read" in said for said in refused)
