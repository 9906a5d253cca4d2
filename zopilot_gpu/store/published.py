"""The packed directories on the volumes: their names, finding a sound one, setting a damaged one aside. No torch.

`<root>/packed/<model>@<first 16 digits of the source's fingerprint>-<format>[-<absmax>]/`. Readers take no lock: what has this
name was complete when it got it, and nothing in it changes. Names that begin with a dot are nobody's to read: builds, leases,
damaged forms.
"""

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.layout import Absmax
from zopilot_gpu.store.manifest import FORMAT, Damaged, Manifest, check_hashes, check_sizes, read_manifest, small_files

FOLDER = "packed"
BUILDING, LEASE, QUARANTINE = ".building-", ".lease-", ".damaged-"
_UNUSUAL = re.compile(r"[^\w.-]+")
_OLD_S = 3600
_ENDS: dict[Absmax, str] = {"double": f"{FORMAT}", "bfloat16": f"{FORMAT}-bfloat16", "float32": f"{FORMAT}-float32"}


@dataclass(frozen=True, slots=True)
class Published:
    """A packed directory whose names, sizes and small files are as they were published."""

    directory: Path
    manifest: Manifest


def key_of(model: str, fingerprint: str, absmax: Absmax = "double") -> str:
    """The name of a packed form of a source."""
    return f"{_slug(model)}@{fingerprint[:16]}-{_ENDS[absmax]}"


def _slug(model: str) -> str:
    return _UNUSUAL.sub("--", model).strip("-.").lower() or "model"  # RunPod's model cache lower-cases names


def open_published(directory: Path) -> Published:
    """What is in `directory`, looked at but for the hashes of the weights.

    Raises:
        Damaged: it is not what was published.
    """
    try:
        manifest = read_manifest(directory)
        check_sizes(directory, manifest)
        check_hashes(directory, manifest, small_files(manifest))
    except OSError as error:
        raise Damaged(Path(error.filename or directory), error) from error
    return Published(directory, manifest)


def find(
    model: str, fingerprint: str | None, revision: str | None, absmax: Absmax | None, roots: Sequence[Path]
) -> tuple[Published | None, list[Damaged]]:
    """A sound packed form, the first in the order of `roots`, and what is wrong with those that would come before it.

    Args:
        model: its name.
        fingerprint: of the source; None where there is no source, and any packed form of `model` is taken, the newest first.
        revision: asked for; only looked at where there is no source.
        absmax: its form; None for any, double first.
        roots: where to look.
    """
    problems = []
    for root in roots:
        for directory in _candidates(model, fingerprint, absmax, root / FOLDER):
            try:
                found = open_published(directory)
            except Damaged as problem:
                problems.append(problem)
                continue
            if fingerprint or revision in (None, found.manifest.revision):
                return found, problems
    return None, problems


def _candidates(model: str, fingerprint: str | None, absmax: Absmax | None, folder: Path) -> list[Path]:
    forms: list[Absmax] = [absmax] if absmax else list(_ENDS)
    if fingerprint:
        return [path for form in forms if exists(path := folder / key_of(model, fingerprint, form))]
    ends = tuple(f"-{_ENDS[form]}" for form in forms)
    found = [folder / name for name in _names(folder) if name.startswith(f"{_slug(model)}@") and name.endswith(ends)]
    return sorted(found, key=_changed_s, reverse=True)


def directories(roots: Sequence[Path]) -> Iterator[Path]:
    """Everything that was published below `roots`, sound or not."""
    for root in roots:
        folder = root / FOLDER
        yield from (folder / name for name in _names(folder) if "@" in name and not name.startswith("."))


def leftovers(roots: Sequence[Path]) -> Iterator[Path]:
    """What nobody needs any more: damaged forms, and builds, leases and probes that nobody has touched for an hour."""
    for root in roots:
        folder = root / FOLDER
        for path in (folder / name for name in _names(folder) if name.startswith(".")):
            if path.name.startswith(QUARANTINE) or time.time() - _newest_s(path) > _OLD_S:
                yield path


def set_aside(directory: Path) -> Path:
    """Renames a damaged directory so that nobody finds it.

    Raises:
        ModelUnavailable: the volume does not let us; the detail names what an operator has to remove.
    """
    aside = directory.with_name(f"{QUARANTINE}{directory.name}.{time.time_ns():x}")
    try:
        files.move(directory, aside)
    except FileNotFoundError:
        return aside  # somebody else has
    except OSError as error:
        reason = f"{directory} is damaged and can't be set aside ({error.strerror}): remove it"
        raise ModelUnavailable(detail=f"{reason}, and it is made anew.") from error
    return aside


def _names(folder: Path) -> list[str]:
    try:
        return files.names_in(folder)
    except OSError:
        return []


def exists(path: Path) -> bool:
    """Whether something has this name."""
    try:
        files.status(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # there, and opening it will say what is wrong
    return True


def _changed_s(path: Path) -> float:
    try:
        return files.status(path).st_mtime
    except OSError:
        return 0.0


def _newest_s(path: Path) -> float:
    return max([_changed_s(path), *(_changed_s(path / name) for name in _names(path))])
