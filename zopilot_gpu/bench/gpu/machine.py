"""What a run was measured on. Reads the card and the versions; changes nothing, names no host and no path."""

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from zopilot_gpu import __version__

_PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "numpy", "vllm")
_ASKED = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit", "temperature.gpu")


def describe(device: torch.device) -> dict[str, Any]:
    """Ready for JSON."""
    versions = {"zopilot_gpu": __version__, "python": platform.python_version()} | {name: _version(name) for name in _PACKAGES}
    if device.type != "cuda":
        return {"card": "none: the CPU", "versions": versions}
    card = torch.cuda.get_device_properties(device)
    return {
        "card": card.name,
        "capability": f"sm_{card.major}{card.minor}",
        "multiprocessors": card.multi_processor_count,
        "memory_gb": round(card.total_memory / 1e9, 1),
        "versions": versions | {"cuda": torch.version.cuda},
    }


def clocks(device: torch.device) -> dict[str, str]:
    """Of the card now, as its driver says; nothing where that can't be asked."""
    tool = shutil.which("nvidia-smi")
    if device.type != "cuda" or tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader", f"--id={device.index or 0}"]
    try:
        said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=10).stdout  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_ASKED, (value.strip() for value in said.split(",")), strict=False))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
