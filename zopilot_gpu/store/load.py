"""Packed files to the device, at the speed of the volume. Knows the manifest's tensors; refuses to know what they are for.

A worker takes a file after the other and reads it in large pieces: on the CPU into the memory that the tensors then share, one
allocation a file; on a GPU through two pinned buffers, so that a piece is read while the one before it travels. Whatever this
machine has not hashed yet is hashed on the way, from the pieces. Nothing is mapped: a file that is cut off is an error here.
"""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from zopilot_gpu import log
from zopilot_gpu.errors import ModelUnavailable, ShuttingDown
from zopilot_gpu.store import files
from zopilot_gpu.store.build import Progress, Stopped
from zopilot_gpu.store.manifest import Damaged, Manifest
from zopilot_gpu.store.published import FOLDER, set_aside
from zopilot_gpu.store.source import TYPES
from zopilot_gpu.store.tensors import Contents, plan_file
from zopilot_gpu.store.verdicts import Verdicts

_log = log.get(__name__)
_PIECE_BYTES = 4 << 20  # two of them a worker stay in the cache of the cores
_WORKERS = 4


def load(
    directory: Path,
    manifest: Manifest,
    device: str = "cpu",
    progress: Progress = lambda *_: None,
    stopped: Stopped = lambda: False,
    verdicts: Verdicts | None = None,
) -> dict[str, torch.Tensor]:
    """All tensors of the packed form in `directory`, by name; see `zopilot_gpu.store.layout`.

    A form on a volume that turns out to be damaged is set aside where the volume lets us, so that `ensure` makes it anew.

    Raises:
        Damaged: a file is not what was published, or can't be read.
        ShuttingDown: `stopped` said so.
    """
    seen = verdicts or Verdicts(directory, manifest)
    unseen = set(seen.unseen())
    loader = _Loader(directory, manifest, torch.device(device), unseen, progress, stopped)
    try:
        with ThreadPoolExecutor(_WORKERS, "load") as pool:
            parts = _results([pool.submit(loader.load, name) for name in manifest.weights])
    except Damaged as problem:
        _set_aside(directory, problem)
        raise
    if unseen:
        seen.record()
    return {name: tensor for part in parts for name, tensor in part.items()}


def _results(files_read: list[Future[dict[str, torch.Tensor]]]) -> list[dict[str, torch.Tensor]]:
    """What all of them give, or the cause of their end rather than its consequence: one that fails ends the others."""
    errors = [error for error in (future.exception() for future in files_read) if error]
    for error in sorted(errors, key=lambda error: isinstance(error, ShuttingDown)):
        raise error
    return [future.result() for future in files_read]


def _set_aside(directory: Path, problem: Damaged) -> None:
    moved_to = None
    if problem.is_certain and directory.parent.name == FOLDER:  # another place is somebody's own copy
        try:
            moved_to = str(set_aside(directory))
        except ModelUnavailable as why:
            _log.warning("packed_form_stays", problem=why.detail)
    _log.warning("packed_form_damaged", problem=problem.detail, moved_to=moved_to)


class _Sink(Protocol):
    """Where a file's bytes go."""

    def take(self, begin: int, end: int, read: Callable[[memoryview], None]) -> None:
        """Lets `read` fill the bytes from `begin` to `end` of the file's data."""
        ...

    def finish(self) -> torch.Tensor:
        """The data, all there."""
        ...


class _HostSink:
    """The memory that the tensors will use."""

    def __init__(self, num_bytes: int) -> None:
        self._data = torch.empty(num_bytes, dtype=torch.uint8)
        self._view = memoryview(self._data.numpy().data)

    def take(self, begin: int, end: int, read: Callable[[memoryview], None]) -> None:
        read(self._view[begin:end])

    def finish(self) -> torch.Tensor:
        return self._data


class _GpuSink:
    """Memory of the GPU, behind two pinned buffers and a stream of its own."""

    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._data = torch.empty(num_bytes, dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._pinned = [torch.empty(_PIECE_BYTES, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]

    def take(self, begin: int, end: int, read: Callable[[memoryview], None]) -> None:
        self._pinned.reverse()
        self._copied.reverse()
        self._copied[0].synchronize()
        piece = self._pinned[0][: end - begin]
        read(memoryview(piece.numpy().data))
        with torch.cuda.stream(self._stream):
            self._data[begin:end].copy_(piece, non_blocking=True)
            self._copied[0].record(self._stream)  # type: ignore[no-untyped-call]

    def finish(self) -> torch.Tensor:
        self._stream.synchronize()
        return self._data


class _Loader:
    def __init__(
        self,
        directory: Path,
        manifest: Manifest,
        device: torch.device,
        unseen: set[str],
        progress: Progress,
        stopped: Stopped,
    ) -> None:
        self._directory, self._manifest, self._device, self._unseen = directory, manifest, device, unseen
        self._progress, self._stopped = progress, stopped
        self._total = sum(manifest.files[name].size for name in manifest.weights)
        self._done = 0
        self._failed = threading.Event()
        self._lock = threading.Lock()

    def load(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of one file."""
        path = self._directory / name
        try:
            return self._read(path)
        except EOFError as error:
            self._failed.set()
            raise Damaged(path, str(error)) from error
        except OSError as error:
            self._failed.set()
            raise Damaged(path, error) from error
        except Exception:
            self._failed.set()
            raise

    def _read(self, path: Path) -> dict[str, torch.Tensor]:
        stored = self._manifest.files[path.name]
        head, contents = plan_file(path, stored.tensors)
        if contents.size != stored.size:
            raise Damaged(path, "the manifest says another size than its tensors have")
        digest = hashlib.sha256(head) if path.name in self._unseen else None
        fd = files.open_to_read(path)
        try:
            found = bytearray(len(head))
            files.read_into(fd, memoryview(found), 0)
            if found != head or files.size_of(fd) != stored.size:
                raise Damaged(path, "it does not begin with the tensors that were published, or has another size")
            data = self._fill(fd, contents, len(head), digest)
        finally:
            files.close(fd)
        if digest and digest.hexdigest() != stored.sha256:
            raise Damaged(path, "its content has changed")
        return {
            entry.name: data[entry.begin - len(head) : entry.end - len(head)].view(TYPES[entry.dtype]).view(entry.shape)
            for entry in contents.entries
        }

    def _fill(self, fd: int, contents: Contents, head: int, digest: "hashlib._Hash | None") -> torch.Tensor:
        num_bytes = contents.size - head
        sink: _Sink = _GpuSink(num_bytes, self._device) if self._device.type == "cuda" else _HostSink(num_bytes)
        for begin in range(0, num_bytes, _PIECE_BYTES):
            end = min(begin + _PIECE_BYTES, num_bytes)

            def read(view: memoryview, offset: int = head + begin) -> None:
                files.read_into(fd, view, offset)
                if digest:
                    digest.update(view)

            if self._stopped() or self._failed.is_set():
                raise ShuttingDown
            sink.take(begin, end, read)
            with self._lock:
                self._done += end - begin
                self._progress("reading the weights", self._done, self._total)
        return sink.finish()
