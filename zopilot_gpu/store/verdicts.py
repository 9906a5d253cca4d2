"""Which packed files this machine has hashed already, so that it need not again. No torch.

One small file a model below `~/.cache/zopilot-gpu` (or `XDG_CACHE_HOME`): local, because what one machine has read says nothing
of what another one will. A file counts as seen while its size, time and inode stay as they were. Where nothing can be stored,
everything is hashed at each start.
"""

import hashlib
import json
import os
from pathlib import Path

from zopilot_gpu.store import files
from zopilot_gpu.store.manifest import Manifest


class Verdicts:
    """The verdicts on one packed directory."""

    def __init__(self, directory: Path, manifest: Manifest, cache: Path | None = None) -> None:
        self._directory, self._manifest = directory, manifest
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        name = hashlib.sha256(str(directory.absolute()).encode() + manifest.encode()).hexdigest()[:32]
        self._path = (cache or home / "zopilot-gpu") / f"verified-{name}.json"

    def unseen(self) -> list[str]:
        """Weight files that this machine has not found sound as they are now."""
        try:
            seen = json.loads(files.read(self._path))
            return [name for name in self._manifest.weights if seen.get(name) != self._look(name)]
        except (OSError, ValueError, AttributeError):
            return self._manifest.weights

    def record(self) -> None:
        """All weight files were found sound."""
        try:
            content = json.dumps({name: self._look(name) for name in self._manifest.weights}).encode()
            files.make_directory(self._path.parent, parents=True)
            fresh = self._path.with_suffix(f".{os.getpid()}-{os.urandom(4).hex()}")
            files.write_new(fresh, [content])
            files.move(fresh, self._path)
        except OSError:  # a cache that can't be written is no problem of the model
            return

    def _look(self, name: str) -> list[int]:
        found = files.status(self._directory / name)
        return [found.st_size, found.st_mtime_ns, found.st_ino]
