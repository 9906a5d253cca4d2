"""Where jobs may be kept: the lock is held for life, and a volume on which locks do nothing is refused."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zopilot_gpu.jobs import volume
from zopilot_gpu.jobs.store import open_store


def test_a_place_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    held = volume.hold(tmp_path / "deep" / "jobs.db")
    with pytest.raises(volume.VolumeError, match="belongs to another service"):
        volume.hold(tmp_path / "deep" / "jobs.db")
    volume.release(held)
    volume.release(volume.hold(tmp_path / "deep" / "jobs.db"))


def test_a_process_that_dies_gives_its_place_back(tmp_path: Path) -> None:
    script = "import sys, os, pathlib; from zopilot_gpu.jobs import volume; volume.hold(pathlib.Path(sys.argv[1])); os._exit(9)"
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "jobs.db")], check=False, env=os.environ | {"PYTHONPATH": "."})
    volume.release(volume.hold(tmp_path / "jobs.db"))


@pytest.mark.parametrize("failure", [None, OSError(errno.ENOLCK, "no locks"), OSError(errno.ENOTSUP, "no locks")])
def test_a_volume_that_keeps_no_locks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: OSError | None
) -> None:
    """Some file systems say yes to every lock, some say that they have none."""

    def lock(*_: Any) -> bytes:
        if failure:
            raise failure
        return b""

    monkeypatch.setattr(fcntl, "fcntl", lock)
    with pytest.raises(volume.VolumeError, match="keeps no locks"):
        volume.hold(tmp_path / "jobs.db")


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough to be read as one" * 20, b"SQLite format 3\0" + b"\xff" * 4000]
)
async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(content)
    with pytest.raises(volume.VolumeError, match=r"Move it away|opened"):
        await open_store(path)
    assert path.read_bytes() == content


async def test_a_newer_database_is_refused(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "jobs.db")
    await store.read("PRAGMA user_version = 99")
    await store.close()
    with pytest.raises(volume.VolumeError, match="newer"):
        await open_store(tmp_path / "jobs.db")


async def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    store = await open_store(tmp_path / "jobs.db")
    await store.close()
    assert (tmp_path / "jobs.db").stat().st_mode & 0o777 == 0o600
