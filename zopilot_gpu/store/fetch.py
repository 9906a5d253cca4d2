"""Downloads a model into the cache, when the operator allowed it. The only file that may reach the network for weights.

Takes safetensors, configuration and tokenizer; never pickled weights or code. Asks for the sizes first and refuses what has no
room. Resumes what an earlier try left. Progress is what has arrived on the disk, whichever way the library takes.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from zopilot_gpu import log
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.build import remedy

_log = log.get(__name__)
_WANTED = ["*.safetensors", "model.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*", "special_*"]
_NEVER = ["*/*", "consolidated*", "*.py", "*.bin", "*.pt", "*.pkl"]
_LOOK_S = 1.0
_LOG_S = 30.0
Progress = Callable[[str, int, int], None]  # told a step, bytes done and bytes in all (0: not known)


def fetch(model: str, revision: str | None, cache: Path, token: str | None, progress: Progress = lambda *_: None) -> Path:
    """The snapshot directory of `model` below `cache`, downloaded where it was not there.

    Raises:
        ModelUnavailable: there is no room, or the hub refused or could not be reached; the detail says what to do.
    """
    from huggingface_hub import snapshot_download  # noqa: PLC0415  (heavy; most starts never download)
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError  # noqa: PLC0415

    _log.info("download_started", model=model, cache=str(cache))
    try:
        files.make_directory(cache, parents=True)  # before the hub is asked: what can't be written needs no network to say so
    except OSError as error:
        raise ModelUnavailable(detail=f"{model} can't be downloaded: {remedy(error, cache)}.") from error
    try:
        total = _size(model, revision, token)
        blobs = cache / f"models--{model.replace('/', '--')}" / "blobs"
        _check_space(model, total - _there(blobs), cache)
        with _watching(blobs, total, progress):
            directory = snapshot_download(
                model, revision=revision, cache_dir=cache, token=token, allow_patterns=_WANTED, ignore_patterns=_NEVER
            )
    except GatedRepoError:
        problem = f"{model} is gated: accept its terms on the hub and set HF_TOKEN to a token of that account."
        raise ModelUnavailable(detail=problem) from None
    except RepositoryNotFoundError:
        problem = f"The hub knows no {model}, or HF_TOKEN may not see it."
        raise ModelUnavailable(detail=problem) from None
    except HFValidationError:
        raise ModelUnavailable(detail=f"{model} is neither a directory nor of the form ORG/NAME.") from None
    except (HfHubHTTPError, OSError) as error:
        problem = f"{model} could not be downloaded ({type(error).__name__}): check the network and the space below {cache}."
        raise ModelUnavailable(detail=problem) from error
    _log.info("download_done", model=model)
    return Path(directory)


def _size(model: str, revision: str | None, token: str | None) -> int:
    """Bytes of the files that are wanted, as far as the hub says."""
    from huggingface_hub import HfApi  # noqa: PLC0415

    siblings = HfApi(token=token).model_info(model, revision=revision, files_metadata=True).siblings or []
    wanted = [item for item in siblings if _matches(item.rfilename, _WANTED) and not _matches(item.rfilename, _NEVER)]
    return sum(item.size or 0 for item in wanted)


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _check_space(model: str, needed: int, cache: Path) -> None:
    free = files.free_bytes(cache)
    if needed > free:
        sizes = f"{needed / 1e9:.1f} GB are missing of it and {free / 1e9:.1f} GB are free"
        raise ModelUnavailable(detail=f"{model} does not fit below {cache}: {sizes}. Make room, or name another volume.")


def _there(blobs: Path) -> int:
    """Bytes that have arrived, finished or not."""
    try:
        return sum(files.status(blobs / name).st_size for name in files.names_in(blobs))
    except OSError:
        return 0


@contextmanager
def _watching(blobs: Path, total: int, progress: Progress) -> Iterator[None]:
    ended = threading.Event()

    def watch() -> None:
        num_looks = 0
        while not ended.wait(_LOOK_S):
            done = min(_there(blobs), total)
            progress("downloading", done, total)
            num_looks += 1
            if num_looks % int(_LOG_S / _LOOK_S) == 0:
                _log.info("downloading", done_bytes=done, total_bytes=total)

    thread = threading.Thread(target=watch, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
