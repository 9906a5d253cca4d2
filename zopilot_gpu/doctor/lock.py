"""What is installed, against the lock that it should have come from. Knows lock files; refuses to install."""

import importlib.metadata
import re
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

# In the tree, and in a bento, whose source is beside the environment's own copy.
_PLACES = ("requirements/runtime.lock.txt", "requirements/blackwell.lock.txt", "../env/python/requirements.txt")
_ENTRY = re.compile(r"^[A-Za-z0-9._-]+(\[[^\]]*\])?==")


@dataclass(frozen=True, slots=True)
class Packages:
    """`lock` is the file compared with, and empty where there is none; `missing` and `different` are words for people."""

    lock: str
    num_locked: int = 0
    missing: tuple[str, ...] = ()
    different: tuple[str, ...] = ()


def compare(root: Path, torch: str) -> Packages:
    """The packages of this environment against the lock below `root` that holds this version of torch.

    NOTE: each image has a lock of its own; by torch's version they are told apart. With none for it, the first one is compared
    with, and says so.
    """
    locks = {path: _entries(path) for path in (root / place for place in _PLACES) if path.is_file()}
    if not locks:
        return Packages("")
    version = torch.partition("+")[0]
    path = next((path for path, entries in locks.items() if entries.get("torch") == version), next(iter(locks)))
    missing, different = [], []
    for name, wanted in locks[path].items():
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(f"{name} {wanted}")
            continue
        if found.partition("+")[0] != wanted.partition("+")[0]:
            different.append(f"{name} {found} (locked: {wanted})")
    return Packages(path.name, len(locks[path]), tuple(missing), tuple(different))


def _entries(path: Path) -> dict[str, str]:
    """Name and version of what the lock has for this machine."""
    found = {}
    for line in path.read_text().splitlines():
        if not _ENTRY.match(line):
            continue
        try:
            entry = Requirement(line.rstrip(" \\"))
        except InvalidRequirement:
            continue
        if entry.marker is None or entry.marker.evaluate():
            found[entry.name] = next(iter(entry.specifier)).version
    return found
