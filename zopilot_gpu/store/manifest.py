"""What a packed directory says of itself, and whether that is true. No torch.

    packed/<model>@<source>-<format>/
        layer-000.safetensors ... globals.safetensors       the weights
        config.json, tokenizer.json, ...                    the source's small files, byte for byte
        manifest.json                                       size, SHA-256 and tensors of each of these
        READY                                               the SHA-256 of manifest.json; written last

Sizes and names are checked at each start, hashes where `zopilot_gpu.store.load` reads or `check_hashes` is called.
"""

import errno
import hashlib
import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.fingerprint import TEXTS, hash_file
from zopilot_gpu.store.layout import Tensor

FORMAT = 1
MANIFEST, READY = "manifest.json", "READY"
_WEIGHTS = re.compile(r"(globals|layer-\d{3,})\.safetensors")
_CERTAIN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EINVAL, errno.EFBIG}
_HASH = re.compile(r"[0-9a-f]{64}")


class Damaged(ModelUnavailable):
    """A file of a packed directory is not what it was when it was published.

    `is_certain` is False where it could not be read, which may pass; nothing is set aside for that.
    """

    def __init__(self, path: Path, problem: str | OSError) -> None:
        self.is_certain = not isinstance(problem, OSError) or problem.errno in _CERTAIN
        said = problem.strerror or str(problem) if isinstance(problem, OSError) else problem
        super().__init__(detail=f"{path} {'is damaged' if self.is_certain else 'can not be read'}: {said}.")


@dataclass(frozen=True, slots=True)
class Stored:
    """A file as it was published; `tensors` in the order in which they lie in it."""

    size: int
    sha256: str
    tensors: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What was packed, from what, and how. `absmax` is the form asked for; a stack where it does not go has float32."""

    model: str
    revision: str | None
    source: str  # fingerprint of the checkpoint, or the name of what a made-up model imitates
    absmax: str
    num_layers: int
    files: dict[str, Stored]
    made_by: dict[str, str] = field(default_factory=dict)  # versions of what made it
    format: int = FORMAT

    @property
    def weights(self) -> list[str]:
        """The weight files: that of each layer in order, then the rest."""
        return sorted(
            (name for name in self.files if _WEIGHTS.fullmatch(name)), key=lambda name: (name[0] == "g", len(name), name)
        )

    @property
    def num_bytes(self) -> int:
        """All files together."""
        return sum(stored.size for stored in self.files.values())

    def encode(self) -> bytes:
        """As it is stored."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a published directory, whose READY vouches for it.

    Raises:
        Damaged: it is not there, not what READY says, or says what can't be.
    """
    path = directory / MANIFEST
    try:
        ready, content = files.read(directory / READY), files.read(path)
    except OSError as error:
        raise Damaged(Path(error.filename or path), error) from error
    if ready != ready_for(content):
        raise Damaged(path, f"it is not the one that {READY} vouches for")
    try:
        return _decode(json.loads(content))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Damaged(path, f"it makes no sense: {error!r}") from error


def ready_for(manifest: bytes) -> bytes:
    """What READY holds."""
    return f"{hashlib.sha256(manifest).hexdigest()}\n".encode()


def _decode(content: dict[str, Any]) -> Manifest:
    if content["format"] != FORMAT:
        raise ValueError(f"format {content['format']}, not {FORMAT}")
    stored = {
        name: Stored(int(item["size"]), item["sha256"], [(name, dtype, tuple(shape)) for name, dtype, shape in item["tensors"]])
        for name, item in content.pop("files").items()
    }
    for name, item in stored.items():
        if not (name in TEXTS or _WEIGHTS.fullmatch(name)) or not _HASH.fullmatch(item.sha256) or item.size < 0:
            raise ValueError(f"{name} is no file of a packed model")
    return Manifest(files=stored, **content)


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """Looks at names and sizes.

    Raises:
        Damaged: a file is missing, has another size, or does not belong here.
    """
    for name, stored in manifest.files.items():
        path = directory / name
        try:
            found = files.status(path).st_size
        except OSError as error:
            raise Damaged(path, error) from error
        if found != stored.size:
            raise Damaged(path, f"{found:,} bytes where {stored.size:,} were published")
    for name in files.names_in(directory):
        if name not in manifest.files and name not in (MANIFEST, READY) and not name.startswith(".nfs"):
            raise Damaged(directory / name, "it was not published with the model")


def check_hashes(
    directory: Path, manifest: Manifest, names: Iterable[str], told: Callable[[int], None] = lambda _: None
) -> None:
    """Reads and hashes these files, several at a time. `told` is called with each one's size when it is found sound.

    Raises:
        Damaged: a file's content is another than was published.
    """

    def check(name: str) -> None:
        try:
            found = hash_file(directory / name)
        except EOFError as error:
            raise Damaged(directory / name, str(error)) from error
        except OSError as error:
            raise Damaged(directory / name, error) from error
        if found != manifest.files[name].sha256:
            raise Damaged(directory / name, "its content has changed")
        told(manifest.files[name].size)

    with ThreadPoolExecutor(8, "verify") as pool:
        list(pool.map(check, names))


def small_files(manifest: Manifest) -> list[str]:
    """The files beside the weights; they are hashed at each start."""
    return [name for name in manifest.files if name in TEXTS]
