"""May a database live here? Holds the one lock that says whose the jobs are; refuses a volume on which locks do nothing.

Some network file systems take every lock and keep none: two services would then do the same jobs and break the database. Linux'
open-file locks conflict even between two handles of one process, so that can be tried out without a second process.
"""

import fcntl
import os
import struct
from pathlib import Path

_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


class VolumeError(Exception):
    """The jobs can't be kept here; the text is for the operator, with the remedy."""


def hold(path: Path) -> int:
    """Makes the directory of the database `path` and holds it for this process: a handle that `release` gives back.

    Raises:
        VolumeError: it can't be written to, its locks do nothing, or another service holds it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = _open(path)
    except OSError as error:
        raise VolumeError(f"{path} can't be written ({error.strerror}). Set ZOPILOT_GPU_JOBS_PATH to a local disk.") from None
    if not _lock(held):
        os.close(held)
        raise VolumeError(f"{path} belongs to another service that runs. Give each service its own ZOPILOT_GPU_JOBS_PATH.")
    second = _open(path)
    try:
        if _lock(second):
            os.close(held)
            raise VolumeError(f"The volume of {path} keeps no locks. Set ZOPILOT_GPU_JOBS_PATH to a local disk.")
    finally:
        os.close(second)
    return held


def release(held: int) -> None:
    """Gives the lock back; the end of the process does too."""
    os.close(held)


def _open(path: Path) -> int:
    return os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _lock(handle: int) -> bool:
    """Whether this handle got the lock. A file system that knows no locks at all (ENOLCK, ENOTSUP) gives it to everybody."""
    try:
        fcntl.fcntl(handle, fcntl.F_OFD_SETLK, _WHOLE_FILE)
    except BlockingIOError:
        return False
    except PermissionError:  # EACCES is the other way in which POSIX says "held"
        return False
    except OSError:
        return True
    return True
