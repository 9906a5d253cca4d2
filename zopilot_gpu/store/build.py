"""Makes the packed form of one source, or waits for the process that does. Knows the lease, the build's directory and errors.

Whatever happens to a build (killed, no space, an error of the volume, a lease taken by another), nothing that has the published
name is touched, and nothing gets that name but a finished directory. torch is imported by `pack` only.
"""

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zopilot_gpu import log
from zopilot_gpu.errors import ShuttingDown
from zopilot_gpu.store import files
from zopilot_gpu.store.layout import Absmax, packed_bytes, read_config
from zopilot_gpu.store.lease import Lease, Pace, Watch, acquire
from zopilot_gpu.store.locate import Located, weight_files
from zopilot_gpu.store.manifest import Damaged
from zopilot_gpu.store.publish import Interrupted, Pack, add_texts, manifest_of, publish, staging_for
from zopilot_gpu.store.published import BUILDING, LEASE, Published, exists, key_of, open_published, set_aside

_log = log.get(__name__)
_POLL_S = 0.2
_FULL = {errno.ENOSPC, errno.EDQUOT}
Progress = Callable[[str, int, int], None]  # told a step, bytes done and bytes in all (0: not known)
Stopped = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Task:
    """A source, its fingerprint, and where (`folder`) and how its packed form is made."""

    located: Located
    fingerprint: str
    folder: Path
    absmax: Absmax
    device: str
    pace: Pace
    pack: Pack

    @property
    def target(self) -> Path:
        """The published name."""
        return self.folder / key_of(self.located.name, self.fingerprint, self.absmax)


def build_or_wait(task: Task, progress: Progress, stopped: Stopped) -> tuple[Published, str]:
    """The packed form, and how it came to be. A damaged one is set aside first.

    Raises:
        OSError: the volume does not let us.
        ModelUnavailable: the source is at fault, or a damaged form is in the way.
        ShuttingDown: `stopped` said so.
    """
    files.make_directory(task.folder, parents=True)
    path = task.folder / f"{LEASE}{task.target.name}"
    while True:
        if found := _sound(task.target):
            return found, "another process has packed it"
        held = acquire(path, task.pace)
        if held is None:
            _wait(task.target, Watch(path, task.pace), progress, stopped)
            continue
        with held:
            if found := _sound(task.target):
                return found, "another process has packed it"
            try:
                return _build(task, held, progress, stopped), "it was packed now"
            except (Interrupted, OSError):
                if stopped():
                    raise ShuttingDown from None
                if not held.lost.is_set():
                    raise
        _log.warning("packing_lost", model=task.located.name)


def _sound(target: Path) -> Published | None:
    if not exists(target):
        return None
    try:
        return open_published(target)
    except Damaged as problem:
        if not problem.is_certain:
            raise OSError(errno.EIO, str(problem.detail)) from problem
        _log.warning("packed_form_damaged", problem=problem.detail, moved_to=str(set_aside(target)))
        return None


def _wait(target: Path, watch: Watch, progress: Progress, stopped: Stopped) -> None:
    """Until the form is there or the lease is free."""
    while not exists(target) and not watch.is_free():
        if stopped():
            raise ShuttingDown
        progress("waiting for another process that packs", 0, 0)
        time.sleep(_POLL_S)


def _build(task: Task, held: Lease, progress: Progress, stopped: Stopped) -> Published:
    source = task.located.directory
    began_s = time.monotonic()
    _check_space(task)
    staging = staging_for(task.folder, task.target.name)
    total = sum(files.status(source / name).st_size for name in weight_files(source))
    done = 0

    def told(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        progress("packing", min(done, total), total)

    _log.info("packing_started", model=task.located.name, source_bytes=total, directory=str(task.target))
    try:
        stored = task.pack(source, staging, task.absmax, task.device, told, lambda: stopped() or held.lost.is_set())
        stored |= add_texts(staging, source)
        publish(staging, task.target, manifest_of(task.located, task.fingerprint, task.absmax, stored))
    except OSError as error:
        if error.errno in _FULL:  # a full volume hurts others; what else is left, the next try goes on with
            files.remove_tree(staging)
        raise
    found = open_published(task.target)
    seconds = time.monotonic() - began_s
    _log.info("packing_done", model=task.located.name, packed_bytes=found.manifest.num_bytes, seconds=round(seconds, 1))
    return found


def _check_space(task: Task) -> None:
    left = [task.folder / name for name in files.names_in(task.folder) if name.startswith(f"{BUILDING}{task.target.name}.")]
    there = sum(files.status(path / name).st_size for path in left[:1] for name in files.names_in(path))
    needed = packed_bytes(read_config(task.located.directory), task.absmax) - there
    free = files.free_bytes(task.folder)
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free", str(task.folder))


def remedy(error: OSError, folder: Path) -> str:
    """What an operator can do about an error of the volume."""
    said = error.strerror or str(error)
    known = {
        errno.ENOSPC: "make room there, or name another volume in ZOPILOT_GPU_VOLUME",
        errno.EDQUOT: "raise the quota, or name another volume in ZOPILOT_GPU_VOLUME",
        errno.EROFS: "the volume is mounted read-only: run `zopilot-gpu prepare` once where it is writable",
        errno.EACCES: "let this user write there, or run `zopilot-gpu prepare` as one who may",
        errno.EPERM: "let this user write there, or run `zopilot-gpu prepare` as one who may",
        errno.ESTALE: "mount the volume anew",
        errno.EIO: "look at the volume's health",
    }
    return f"{folder}: {said}; {known.get(error.errno or 0, 'look at the volume')}"
