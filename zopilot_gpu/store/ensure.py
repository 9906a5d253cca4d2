"""The store's only door: where to load a model from. Finds its packed form, or makes it, or says why the source has to do.

    packed form there and sound ─────────────────────────────────────────────▶ packed
    source there, or downloaded where allowed ─▶ lease ─▶ pack ─▶ publish ───▶ packed
                                                 └─ somebody packs: wait ────▶ packed
    not a Mixtral · no writable volume · no space · not asked to build ──────▶ the source, and why

Found means no network call. torch is imported only where something is packed. A service that wants to answer soon calls it with
`build=False`, serves from what it gets, and calls it again with `build=True` on a thread, for the next start.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zopilot_gpu import log
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.build import Progress, Stopped, Task, build_or_wait, remedy
from zopilot_gpu.store.fetch import fetch
from zopilot_gpu.store.fingerprint import fingerprint
from zopilot_gpu.store.layout import Absmax, why_not_packed
from zopilot_gpu.store.lease import Pace
from zopilot_gpu.store.locate import Located, locate
from zopilot_gpu.store.manifest import MANIFEST, Damaged, Manifest
from zopilot_gpu.store.publish import Pack
from zopilot_gpu.store.published import FOLDER, Published, find, open_published

_log = log.get(__name__)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of the store. Without `packed` only the source will do. `pace` and `pack` are for tests."""

    model: str
    revision: str | None = None
    roots: Sequence[Path] = ()
    allow_download: bool = False
    token: str | None = None
    packed: bool = True
    build: bool = True
    absmax: Absmax | None = None  # None takes any form that is there, and makes a double one
    device: str = "cpu"  # where weights are quantised
    pace: Pace = field(default_factory=Pace)
    pack: Pack | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """Where to load from, and `why` there. `manifest` is that of the packed form; None where `located` is the source."""

    located: Located
    manifest: Manifest | None
    why: str

    @property
    def is_packed(self) -> bool:
        """Whether `zopilot_gpu.store.load` reads it."""
        return self.manifest is not None


def ensure(wanted: Wanted, progress: Progress = lambda *_: None, stopped: Stopped = lambda: False) -> Prepared:
    """Where to load `wanted.model` from.

    Raises:
        ModelUnavailable: neither a packed form nor a source is there; the detail says where was looked and what to do.
        ShuttingDown: `stopped` said so.
    """
    if (Path(wanted.model) / MANIFEST).is_file():
        return _packed(open_published(Path(wanted.model)), "it is a packed directory itself")
    located = _source(wanted)
    mark = _mark(located) if wanted.packed else None
    problems: list[Damaged] = []
    if wanted.packed and (mark or not located):
        found, problems = find(located.name if located else wanted.model, mark, wanted.revision, wanted.absmax, wanted.roots)
        if found:
            return _packed(found, "the packed form is there")
        if problems and not located and not wanted.allow_download:
            raise problems[0]
    if not located:
        located = _download(wanted, progress)
        mark, problems = _mark(located), []
    if why := _why_the_source(wanted, located, mark, problems):
        return Prepared(located, None, why)
    return _build(wanted, located, mark or "", progress, stopped)


def _why_the_source(wanted: Wanted, located: Located, mark: str | None, problems: Sequence[Damaged]) -> str | None:
    """What keeps a source from being packed now; None when nothing does."""
    if not wanted.packed:
        return "the source was asked for"
    if mark is None:
        return f"only a Mixtral is packed, and this is of the type {located.model_type!r}"
    if obstacle := why_not_packed(located.directory):
        return obstacle
    if not wanted.build:
        return str(problems[0].detail) if problems else "it has not been packed yet"
    return None


def _mark(located: Located | None) -> str | None:
    """The fingerprint of a source that can be packed."""
    return fingerprint(located.directory) if located and located.model_type == "mixtral" else None


def _packed(found: Published, why: str) -> Prepared:
    made = found.manifest
    return Prepared(Located(made.model, found.directory, made.revision, "mixtral"), made, why)


def _source(wanted: Wanted) -> Located | None:
    """The source; None where there is none, but a packed form or a download may do."""
    try:
        return locate(wanted.model, wanted.revision, wanted.roots)
    except ModelUnavailable:
        if not wanted.packed:
            if wanted.allow_download:
                return None
            raise
        found, problems = find(wanted.model, None, wanted.revision, wanted.absmax, wanted.roots)
        if found is None and not problems and not wanted.allow_download:
            raise
        return None


def _download(wanted: Wanted, progress: Progress) -> Located:
    root = next((root for root in wanted.roots if root.is_dir()), wanted.roots[-1])
    cache = root / ("hub" if root == wanted.roots[-1] else "huggingface/hub")
    fetch(wanted.model, wanted.revision, cache, wanted.token, progress)
    return locate(wanted.model, wanted.revision, wanted.roots)


def _unwritable(roots: Sequence[Path]) -> str:
    """Why nothing can be written, and what an operator can do."""
    mounted = ", ".join(str(root) for root in roots if root.is_dir())
    if not mounted:
        return f"no volume is mounted (looked for {', '.join(map(str, roots))})"
    return (
        f"user {os.geteuid()} can't write to {mounted}: mount it writable, let this user write there (chown {os.geteuid()}), "
        "or run `zopilot-gpu prepare` as one who may"
    )


def _pack() -> Pack:
    from zopilot_gpu.store.pack import pack  # noqa: PLC0415  (imports torch)

    return pack


def _build(wanted: Wanted, located: Located, mark: str, progress: Progress, stopped: Stopped) -> Prepared:
    root = next((root for root in wanted.roots if root.is_dir() and files.is_writable(root)), None)
    if root is None:
        return Prepared(located, None, f"it can't be packed: {_unwritable(wanted.roots)}")
    task = Task(located, mark, root / FOLDER, wanted.absmax or "double", wanted.device, wanted.pace, wanted.pack or _pack())
    try:
        found, why = build_or_wait(task, progress, stopped)
    except OSError as error:
        why = f"packing failed: {remedy(error, task.folder)}"
        _log.warning("packing_failed", model=located.name, problem=why)
        return Prepared(located, None, why)
    return _packed(found, why)
