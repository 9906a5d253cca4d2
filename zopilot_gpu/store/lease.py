"""Who builds: one file that only one process can create, and a heartbeat that shows that it lives. No torch.

`flock` does nothing on some network file systems, so it is not used. The lease saves work and is no lock that anything relies
on: two builders at once publish one result, because each has a directory of its own and renames it into place.

    free ── create (O_EXCL) ──▶ held ── beat every few seconds ──▶ released
                                  └─ no beat for `stale_s`, by the watcher's own clock ──▶ moved away by a watcher, then free
"""

import os
import secrets
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from zopilot_gpu.store import files

BEAT_S = 5.0
STALE_S = 30.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the holder beats, and after how long without a beat it counts as dead."""

    beat_s: float = BEAT_S
    stale_s: float = STALE_S


class Lease:
    """A held lease; made by `acquire`. `lost` is set when another process has taken it."""

    def __init__(self, path: Path, token: str, pace: Pace) -> None:
        self._path, self._token, self._pace = path, token, pace
        self._ended = threading.Event()
        self.lost = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        try:
            if owner_of(self._path) == self._token:
                files.remove(self._path)
        except OSError:  # it goes stale, then
            return

    def _beat(self) -> None:
        num_beats = 0
        while not self._ended.wait(self._pace.beat_s):
            num_beats += 1
            try:
                owner = owner_of(self._path)
                if owner is None:
                    _create(self._path, self._token)
                elif owner != self._token:
                    self.lost.set()
                    return
                else:
                    files.set_time(self._path, num_beats)
            except OSError:  # somebody was faster, which the next beat sees, or the volume stumbles, which the build sees
                continue


def acquire(path: Path, pace: Pace) -> Lease | None:
    """The lease, or None where somebody holds it.

    Raises:
        OSError: the directory can't be written.
    """
    token = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}"
    try:
        _create(path, token)
    except FileExistsError:
        return None
    return Lease(path, token, pace)


def _create(path: Path, token: str) -> None:
    # NOTE: content and name appear together, so that nobody reads a lease without an owner.
    fresh = path.with_name(f".lease-new-{secrets.token_hex(8)}")
    files.write_new(fresh, [token.encode()])
    try:
        files.link(fresh, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        files.close(files.create(path))
        files.move(fresh, path)
    finally:
        files.remove(fresh)


def owner_of(path: Path) -> str | None:
    """The token in a lease; None where there is none."""
    try:
        return files.read(path, 4096).decode(errors="replace")
    except FileNotFoundError:
        return None


class Watch:
    """Watches a lease that somebody else holds, and takes it away from a dead holder."""

    def __init__(self, path: Path, pace: Pace) -> None:
        self._path, self._pace = path, pace
        self._seen: tuple[str, int] | None = None
        self._since_s = time.monotonic()

    def is_free(self) -> bool:
        """Whether the lease is free now, perhaps because this call has removed a stale one.

        Raises:
            OSError: it can't be looked at or removed.
        """
        try:
            now = (files.read(self._path, 4096).decode(errors="replace"), files.status(self._path).st_mtime_ns)
        except FileNotFoundError:
            return True
        if now != self._seen:
            self._seen, self._since_s = now, time.monotonic()
            return False
        if time.monotonic() - self._since_s < self._pace.stale_s:
            return False
        return self._take_away(now[0])

    def _take_away(self, token: str) -> bool:
        aside = self._path.with_name(f".lease-stale-{secrets.token_hex(8)}")
        try:
            files.move(self._path, aside)
        except FileNotFoundError:
            return True
        try:
            if owner_of(aside) == token:
                return True
            files.link(aside, self._path)  # somebody was faster, and this is the new holder's: put it back
        except OSError:
            return True
        finally:
            files.remove(aside)
        return False
