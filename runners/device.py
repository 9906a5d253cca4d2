"""Where a model runs. Knows torch's view of the GPU; says in one sentence what can't work."""

import json
import os
from dataclasses import dataclass
from typing import Literal

import torch

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store.locate import Located

_SHARE_FOR_WEIGHTS = 0.6  # of a CPU's memory; the rest is for others, the KV pool, activations and the source while it is read
_SMALL_BYTES = 1_000_000_000
_NF4_BYTES = 0.53  # a weight: half a byte, and a bf16 absmax for each 64; 0.516 with double quantisation
_LEAST_CONTEXT = 4096  # tokens that the KV pool must have room for
_WORK_BYTES = 1_000_000_000  # activations, and one expert's matrix where a product dequantises it


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and why there."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Form:
    """How our own model holds a model's weights, and why so; `name` is None where it can't take the model."""

    name: Literal["dequantised", "nf4"] | None
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


def kv_dtype(wanted: str, device: Device) -> torch.dtype:
    """What the KV pool of our own model holds: `auto`, `bf16` or `fp8`, which is e4m3 with a scale of 1."""
    if wanted == "auto":
        return compute_dtype(device)
    return torch.float8_e4m3fn if wanted == "fp8" else torch.bfloat16


def choose_form(located: Located, device: Device) -> Form:
    """How our own model would hold these files' weights on `device`.

    On a CPU dequantised, where they fit so: each product would dequantise them anew. On a GPU in NF4: memory is for the KV pool
    there, and a step takes as long as its weights take to be read; only a model so small that this does not count is
    dequantised.
    """
    if located.model_type != "mixtral":
        return Form(None, f"only the plain backend knows models of the type {located.model_type!r}")
    try:
        config = MixtralConfig.from_json(json.loads((located.directory / "config.json").read_bytes()))
    except (KeyError, TypeError, ValueError) as error:
        return Form(None, f"its config.json says what only the plain backend knows ({error})")
    itemsize, free = compute_dtype(device).itemsize, _free_bytes(device)
    full = config.num_parameters * itemsize
    if full <= (_SHARE_FOR_WEIGHTS * free if device.name == "cpu" else _SMALL_BYTES):
        return Form("dequantised", f"its weights fit dequantised ({_gb(full)}, {_gb(free)} free)")
    others = config.num_parameters - config.num_quantised
    needed = int(config.num_quantised * _NF4_BYTES) + others * itemsize
    context = min(config.max_position, _LEAST_CONTEXT)
    work = config.kv_bytes_per_token(itemsize) * context + _WORK_BYTES
    sizes = f"{_gb(needed)}, and {_gb(work)} to work with {context} tokens; {_gb(free)} free"
    if needed + work > free:
        return Form(None, f"its weights do not fit in NF4 ({sizes})")
    return Form("nf4", f"its weights fit in NF4 ({sizes})")


def choose_threads(config: MixtralConfig, device: Device) -> int:
    """How many threads torch computes with: one for a small model on a CPU, else what torch chose.

    A step of the demo model is some 700 operations of microseconds, and threads wait for each other at the end of each. With a
    second thread a step takes 0.7 to 0.9 of the time on two quiet cores, but 2 to 4 times as long when anything else, such as
    this service's own HTTP, wants one of them: docs/decisions/007-steps-on-a-cpu.md.
    """
    small = device.name == "cpu" and config.num_parameters * compute_dtype(device).itemsize <= _SMALL_BYTES
    return 1 if small else torch.get_num_threads()


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


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
