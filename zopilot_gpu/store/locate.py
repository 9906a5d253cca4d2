"""Finds a model's files on the mounted volumes. Knows the layout of the Hugging Face cache; makes no network call.

Layout: `<root>/[huggingface/|huggingface-cache/][hub/]models--ORG--NAME/snapshots/<commit>/`, with the commit of a ref
in `refs/<name>`. Roots, in order: the configured volume, `/runpod-volume` (serverless), `/workspace` (pods), `HF_HOME`
(or its default). A directory given as the model is taken as it is; `demo` is the embedded demo model.

Try it: `python -c "from zopilot_gpu.store.locate import locate; print(locate('demo'))"`.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.settings import DEMO_MODEL

MOUNTS = (Path("/runpod-volume"), Path("/workspace"))
_CACHES = ("huggingface/hub", "huggingface", "huggingface-cache/hub", "huggingface-cache", "hub", "")
DEMO_DIRECTORY = Path(__file__).parents[1] / "demo" / "model"
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[\w.-]+\.safetensors")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Located:
    """A complete set of model files. `revision` is the snapshot's commit; None for a plain directory."""

    name: str
    directory: Path
    revision: str | None
    model_type: str


def search_roots(volume: Path | None = None, hf_home: Path | None = None) -> list[Path]:
    """The places a cache is looked for, in order."""
    home = hf_home or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "huggingface"
    return [*([volume] if volume else []), *MOUNTS, home]


def locate(model: str, revision: str | None = None, roots: Sequence[Path] = ()) -> Located:
    """The files of `model`: `demo`, a directory, or `ORG/NAME` in a cache below one of `roots`.

    Raises:
        ModelUnavailable: nothing complete was found; the detail says where was looked, what is missing and what to do.
    """
    if model == DEMO_MODEL:
        return _complete("demo", DEMO_DIRECTORY, None)
    if Path(model).is_dir():
        return _complete(Path(model).name, Path(model), None)
    problems = []
    for folder in _model_folders(model, roots):
        problems += _broken_off(folder)
        for snapshot in _snapshots(folder, revision):
            try:
                return _complete(model, snapshot, snapshot.name)
            except ModelUnavailable as problem:
                problems.append(str(problem.detail))
    looked = ", ".join(str(root) for root in roots)
    found = " ".join(problems) or f"Looked below {looked}."
    wanted = f"{model} at revision {revision}" if revision else model
    raise ModelUnavailable(
        detail=f"{wanted} is not in the mounted cache. {found} Mount the volume that holds it, or name its root in "
        "ZOPILOT_GPU_VOLUME or HF_HOME, or set ZOPILOT_GPU_ALLOW_DOWNLOAD=true to download it."
    )


def _model_folders(model: str, roots: Sequence[Path]) -> Iterator[Path]:
    wanted = f"models--{model.replace('/', '--')}".lower()  # RunPod's model cache lower-cases names
    for root in roots:
        for cache in _CACHES:
            try:
                folders = sorted((root / cache).iterdir())
            except OSError:
                continue
            yield from (folder for folder in folders if folder.name.lower() == wanted)


def _broken_off(folder: Path) -> list[str]:
    """What a download that did not end has left, in words."""
    num_files = sum(1 for _ in (folder / "blobs").glob("*.incomplete"))
    return [f"A download into {folder} was broken off ({num_files} files .incomplete); it can go on."] if num_files else []


def _snapshots(folder: Path, revision: str | None) -> list[Path]:
    """Candidates in `folder`: the one that `revision` names, or `main`'s first and then the others."""
    name = revision or "main"
    try:
        commit = (folder / "refs" / name).read_text().strip()
    except OSError:
        commit = name
    named = folder / "snapshots" / commit
    try:
        present = sorted((path for path in (folder / "snapshots").iterdir() if path.is_dir()), key=lambda path: path.name)
    except OSError:
        return []
    if revision:
        return [named] if named in present else []
    return sorted(present, key=lambda path: path != named)


def _complete(name: str, directory: Path, revision: str | None) -> Located:
    config = _read_json(directory / "config.json")
    missing = [file for file in weight_files(directory) if not (directory / file).is_file()]
    if not any((directory / file).is_file() for file in _TOKENIZERS):
        missing.append(_TOKENIZERS[0])
    if missing:
        some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
        raise ModelUnavailable(detail=f"{directory} is incomplete: {some} not there.")
    if "auto_map" in config:
        raise ModelUnavailable(detail=f"{directory} asks to run code of its own (auto_map in config.json): refused.")
    return Located(name, directory, revision, str(config.get("model_type", "")))


def weight_bytes(directory: Path) -> int:
    """The size of a checkpoint's weights."""
    return sum((directory / name).stat().st_size for name in weight_files(directory))


def weight_files(directory: Path) -> list[str]:
    """The names of the files that hold a checkpoint's weights: those of its index, or the one of a checkpoint without.

    Raises:
        ModelUnavailable: the index can't be read, or names anything but safetensors files beside it.
    """
    if not (directory / _INDEX).is_file():
        return [_WEIGHTS]
    shards = _read_json(directory / _INDEX).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else set()
    if not names or not all(isinstance(name, str) and _SHARD.fullmatch(name) for name in names):
        raise ModelUnavailable(detail=f"{directory / _INDEX} does not map tensors to safetensors files beside it.")
    return sorted(names)


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelUnavailable(detail=f"{path} can't be read: {error}.") from error
    if not isinstance(content, dict):
        raise ModelUnavailable(detail=f"{path} is not a JSON object.")
    return content
