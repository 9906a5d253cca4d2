"""What a figure was measured on: processor, cores, versions. Names no host and no path."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from zopilot_gpu import __version__

_PACKAGES = ("torch", "transformers", "bitsandbytes", "bentoml", "fastapi", "uvicorn", "aiohttp")


def describe() -> dict[str, Any]:
    """Ready for JSON. `load_1min` says how busy the machine was, with us and others."""
    return {
        "cpu": _cpu_name(),
        "num_cores": len(os.sched_getaffinity(0)),
        "load_1min": round(os.getloadavg()[0], 2),
        "versions": {"zopilot_gpu": __version__, "python": platform.python_version()}
        | {package: version(package) for package in _PACKAGES},
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
