"""Every read and write of the store, through one module, so that tests can make any of them fail.

Knows system calls; refuses to know what is in the files. NOTE: no other file of what builds and loads a packed form may call
`os` or `pathlib` for I/O.
"""

import errno
import os
import shutil
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PIECE_BYTES = 8 << 20  # per call: enough for a network volume's read-ahead, small enough for progress
_MAX_TEXT_BYTES = 64 << 20
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF}  # file systems without it


def create(path: Path) -> int:
    """A descriptor of a new file, readable by all.

    Raises:
        FileExistsError: it is there already.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)


def write_all(fd: int, data: memoryview | bytes) -> None:
    """Writes all of `data`, however many calls it takes."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view[:PIECE_BYTES]) :]


def write_new(path: Path, parts: Sequence[memoryview | bytes]) -> None:
    """A new file that holds `parts`, on the disk when this returns."""
    fd = create(path)
    try:
        for part in parts:
            write_all(fd, part)
        os.fsync(fd)
    finally:
        os.close(fd)


def open_to_read(path: Path) -> int:
    """A descriptor of a regular file; a symbolic link is followed, anything else is refused.

    Raises:
        OSError: it can't be opened, or is no regular file.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def read_into(fd: int, view: memoryview, offset: int) -> None:
    """Fills `view` from `offset` on.

    Raises:
        EOFError: the file ends before.
        OSError: from the system.
    """
    while view:
        count = os.preadv(fd, [view[:PIECE_BYTES]], offset)
        if count == 0:
            raise EOFError(f"ends at byte {offset}")
        view, offset = view[count:], offset + count


def read(path: Path, most_bytes: int = _MAX_TEXT_BYTES) -> bytes:
    """A small file's content.

    Raises:
        OSError: from the system, or the file is larger than `most_bytes`; it names the file.
    """
    fd = open_to_read(path)
    try:
        content = bytearray(min(os.fstat(fd).st_size, most_bytes + 1))
        read_into(fd, memoryview(content), 0)
    except EOFError as error:
        raise OSError(errno.EIO, str(error), str(path)) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error  # a descriptor has no name
    finally:
        os.close(fd)
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, "too large for what it should be", str(path))
    return bytes(content)


def close(fd: int) -> None:
    """Gives a descriptor back."""
    os.close(fd)


def status(path: Path) -> os.stat_result:
    """What the system says of a file; a symbolic link is followed."""
    return os.stat(path)  # noqa: PTH116  (this module is the one that calls os)


def size_of(fd: int) -> int:
    """Bytes of an open file."""
    return os.fstat(fd).st_size


def names_in(directory: Path) -> list[str]:
    """Sorted names in a directory."""
    return sorted(os.listdir(directory))  # noqa: PTH208


def make_directory(path: Path, *, parents: bool = False) -> None:
    """A new directory; with `parents`, those above it where missing, and one that is there already is fine."""
    if parents:
        os.makedirs(path, exist_ok=True)  # noqa: PTH103
    else:
        os.mkdir(path)  # noqa: PTH102


def move(source: Path, target: Path) -> None:
    """Renames, atomically. A directory that is there already and not empty is no target: OSError."""
    os.rename(source, target)  # noqa: PTH104


def link(source: Path, target: Path) -> None:
    """A second name for a file. FileExistsError where the name is taken."""
    os.link(source, target)


def sync_directory(path: Path) -> None:
    """Brings the names in a directory to the disk, where the file system can."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Removes a file. One that is gone already is fine."""
    with suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108


def remove_tree(path: Path) -> None:
    """Removes a directory as far as possible. What can't be removed is left for `store gc`."""
    shutil.rmtree(path, ignore_errors=True)


def is_writable(directory: Path) -> bool:
    """Whether a file can be made there: asked of the file system itself, because mount flags and owners are only half of it."""
    probe = directory / f".probe-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        os.close(create(probe))
        remove(probe)
    except OSError:
        return False
    return True


def free_bytes(directory: Path) -> int:
    """What an ordinary user may still write below `directory`."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def set_time(path: Path, count: int) -> None:
    """Gives a file a new time of change, different for each `count` even where clocks are coarse."""
    now_ns = time.time_ns()
    os.utime(path, ns=(now_ns, now_ns // 1_000_000_000 * 1_000_000_000 + count % 1_000_000 * 1000))
