"""Where a model runs. Knows torch's view of the GPU; says in one sentence what can't work."""

import json
import os
from dataclasses import dataclass

import torch

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store.locate import Located

_SHARE_FOR_WEIGHTS = 0.6  # the rest is for the KV pool, activations and the source while it is read


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and why there."""

    name: str
    reason: str


def choose_device(wanted: str) -> Device:
    """Resolves `auto`, `cuda` or `cpu`.

    Raises:
        ModelUnavailable: `cuda` was asked for and torch can't use it.
    """
    if wanted == "cpu":
        return Device("cpu", "ZOPILOT_GPU_DEVICE=cpu")
    if not torch.cuda.is_available():
        if wanted == "cuda":
            raise ModelUnavailable(detail="ZOPILOT_GPU_DEVICE=cuda, but torch finds no usable GPU and driver.")
        return Device("cpu", "torch finds no usable GPU")
    major, minor = torch.cuda.get_device_capability()
    built_for = torch.cuda.get_arch_list()
    if not any(arch.startswith(f"sm_{major}") for arch in built_for):
        raise ModelUnavailable(
            detail=f"{torch.cuda.get_device_name()} is sm_{major}{minor}; torch {torch.__version__} was built for "
            f"{', '.join(built_for)}. Use the image that is built for this card."
        )
    return Device("cuda", "torch finds a GPU")


def compute_dtype(device: Device) -> torch.dtype:
    """What our own model computes in: bf16, but float32 on a CPU, where it is both faster and exact."""
    return torch.float32 if device.name == "cpu" else torch.bfloat16


def why_not_mixtral(located: Located, device: Device) -> str | None:
    """What keeps our own model, which holds its weights dequantised, from taking these files; None when nothing does."""
    if located.model_type != "mixtral":
        return f"only the plain backend knows models of the type {located.model_type!r}"
    try:
        config = MixtralConfig.from_json(json.loads((located.directory / "config.json").read_bytes()))
    except (KeyError, TypeError, ValueError) as error:
        return f"its config.json says what only the plain backend knows ({error})"
    needed, free = config.num_parameters * compute_dtype(device).itemsize, _free_bytes(device)
    if needed > _SHARE_FOR_WEIGHTS * free:
        sizes = f"{needed / 1e9:.1f} GB dequantised, {free / 1e9:.1f} GB free"
        return f"the weights do not fit ({sizes}); the plain backend holds them in NF4"
    return None


def _free_bytes(device: Device) -> int:
    """Memory that the device has free; on the CPU, all that the machine has."""
    if device.name == "cpu":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(torch.cuda.mem_get_info()[0])


def memory_bytes(device: Device) -> tuple[str | None, int, int]:
    """(name, used, total) of the GPU; (None, 0, 0) on the CPU.

    Raises:
        RuntimeError: from torch. After one failed call on a GPU, all of the process fail.
    """
    if device.name == "cpu":
        return None, 0, 0
    free, total = torch.cuda.mem_get_info()
    return torch.cuda.get_device_name(), total - free, total
