"""One build: a directory of its own, filled, vouched for, renamed into place. Refuses to know who else builds.

A build that is killed leaves its directory; the next holder of the lease takes it over by renaming it, and goes on behind the
files that are finished. Whoever comes second with the rename uses what the first has published.
"""

import secrets
from collections.abc import Callable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from zopilot_gpu import __version__
from zopilot_gpu.store import files
from zopilot_gpu.store.fingerprint import texts
from zopilot_gpu.store.layout import Absmax
from zopilot_gpu.store.locate import Located
from zopilot_gpu.store.manifest import MANIFEST, READY, Damaged, Manifest, Stored, ready_for
from zopilot_gpu.store.published import BUILDING, open_published, set_aside

# Fills a directory with packed files: (source, directory, form of absmax, device, told, stopped) -> what is in it.
Pack = Callable[[Path, Path, Absmax, str, Callable[[int], None], Callable[[], bool]], dict[str, Stored]]


class Interrupted(Exception):
    """Somebody asked the build to stop, or somebody else builds."""


def staging_for(folder: Path, key: str) -> Path:
    """A directory to build `key` in, of nobody else's: one that a dead build has left, or a new one. Call it with the lease.

    Raises:
        OSError: the volume does not let us.
    """
    ours = folder / f"{BUILDING}{key}.{secrets.token_hex(8)}"
    left = [folder / name for name in files.names_in(folder) if name.startswith(f"{BUILDING}{key}.")]
    for directory in left:
        try:
            files.move(directory, ours)
            break
        except FileNotFoundError:
            continue
    else:
        files.make_directory(ours)
    for directory in left:
        files.remove_tree(directory)
    return ours


def publish(staging: Path, target: Path, manifest: Manifest) -> None:
    """Vouches for what lies in `staging` and gives it its name; the small files of the manifest must be there already.

    Raises:
        OSError: the volume does not let us.
    """
    content = manifest.encode()
    for name in files.names_in(staging):
        if name not in manifest.files:
            files.remove(staging / name)
    files.write_new(staging / MANIFEST, [content])
    files.write_new(staging / READY, [ready_for(content)])
    files.sync_directory(staging)
    try:
        files.move(staging, target)
    except OSError:
        try:
            open_published(target)
        except Damaged:
            if not target.is_dir():
                raise
            set_aside(target)
            files.move(staging, target)
        else:
            files.remove_tree(staging)
    files.sync_directory(target.parent)


def add_texts(staging: Path, source: Path) -> dict[str, Stored]:
    """Copies the small files that go with the weights.

    Raises:
        OSError: the volume does not let us.
    """
    return {name: write_text(staging / name, content) for name, content in texts(source)}


def write_text(path: Path, content: bytes) -> Stored:
    """A small file of a packed directory, in place of one that an earlier try has left."""
    files.remove(path)
    files.write_new(path, [content])
    return Stored(len(content), sha256(content).hexdigest())


def manifest_of(located: Located, fingerprint: str, absmax: str, stored: dict[str, Stored]) -> Manifest:
    """The manifest of a finished build."""
    # NOTE: an image holds the code but no installed project, so there is no metadata to ask for our own version.
    made_by = {"zopilot-gpu": __version__} | {name: version(name) for name in ("bitsandbytes", "torch")}
    num_layers = sum(name.startswith("layer-") for name in stored)
    return Manifest(located.name, located.revision, fingerprint, absmax, num_layers, stored, made_by)
