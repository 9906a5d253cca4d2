"""What is set in the environment before torch is imported. Knows what libraries read there, and which files hold kernels.

Whoever imports torch calls `set_before_torch` first; a second call changes nothing. Why: docs/decisions/003-before-torch.md.
"""

import os
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

import zopilot_gpu

_OURS = Path(zopilot_gpu.__file__).parent


def set_before_torch() -> None:
    """Sets what the environment does not have, and gives the kernels' machine code a folder of its own in Triton's cache."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    folder = kernel_folder(kernel_files())
    given = triton_cache()
    if given.name != folder:  # a parent has done it
        os.environ["TRITON_CACHE_DIR"] = str(given / folder)


def triton_cache() -> Path:
    """Where Triton keeps machine code now, by its own rules."""
    if given := os.environ.get("TRITON_CACHE_DIR", "").strip():
        return Path(given)
    home = os.environ.get("TRITON_HOME") or os.path.expanduser("~")  # noqa: PTH111  (Path's raises where there is none)
    return Path(home, ".triton", "cache")


def kernel_files() -> list[Path]:
    """The files whose text decides what the service's kernels compile to."""
    return [*sorted((_OURS / "model" / "kernels").glob("*.py")), _OURS / "engine" / "sample_kernel.py"]


def kernel_folder(files: Iterable[Path]) -> str:
    """The name of the folder for machine code of these files.

    NOTE: Triton 3.2 and 3.4 tell kernels apart by their functions' text alone. Inline assembly is in constants beside them, and
    a cache that was kept over a change of these gave yesterday's machine code.
    """
    text = sha256()
    for file in files:
        content = file.read_bytes()
        text.update(f"{file.name} {len(content)}\n".encode() + content)
    return f"zopilot-gpu-{text.hexdigest()[:16]}"
