"""Where a model runs. Knows torch's view of the GPU; says in one sentence what can't work."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from runners.machine import Machine, look, why_no_gpu
from runners.memory import Keeps, Sum, sum_of
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store.locate import Located
from zopilot_gpu.store.manifest import MANIFEST

_SHARE_FOR_WEIGHTS = 0.6  # of a CPU's memory; the rest is for others, the KV pool, activations and the source while it is read
_SMALL_BYTES = 1_000_000_000
_LEAST_CONTEXT = 4096  # tokens that the KV pool must have room for


@dataclass(frozen=True, slots=True)
class Device:
    """Where a model runs, and why there."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class Form:
    """How our own model holds a model's weights, and why so; `name` is None where it can't take the model.

    `fits` is False where that is for want of memory: then no other backend can take it either. `is_lean`: see `runners.memory`.
    """

    name: Literal["dequantised", "nf4"] | None
    reason: str
    fits: bool = True
    is_lean: bool = False


def choose_device(wanted: str, machine: Machine | None = None) -> Device:
    """Resolves `auto`, `cuda` or `cpu` on this machine, or on `machine`.

    `auto` is the CPU only where no GPU is to be seen: one that is there and can't be used is an error, because a service that
    silently computes on the CPU is of no use to who pays for the GPU.

    Raises:
        ModelUnavailable: a GPU was asked for, or is there, and torch can't use it.
    """
    if wanted == "cpu":
        return Device("cpu", "ZOPILOT_GPU_DEVICE=cpu")
    machine = machine or look()
    problem = why_no_gpu(machine)
    if problem is None:
        return Device("cuda", "torch finds a GPU")
    if wanted == "cuda":
        raise ModelUnavailable(detail=f"ZOPILOT_GPU_DEVICE=cuda, but torch can use no GPU. {problem}")
    if machine.has_driver:
        raise ModelUnavailable(detail=f"{problem} ZOPILOT_GPU_DEVICE=cpu does without.")
    return Device("cpu", "there is no NVIDIA driver, and so no GPU")


def without_cudnn() -> None:
    """Has torch compute convolutions and attention by itself; the images are without cuDNN, 1 GB: docs/decisions/013-images.md.

    NOTE: torch 2.8 prefers cuDNN's attention from sm_90 on, and fails where it is not there.
    """
    torch.backends.cudnn.enabled = False
    torch.backends.cuda.enable_cudnn_sdp(enabled=False)


def compute_dtype(device: Device) -> torch.dtype:
    """What our own model computes in: bf16, but float32 on a CPU, where it is both faster and exact."""
    return torch.float32 if device.name == "cpu" else torch.bfloat16


def kv_dtype(wanted: str, device: Device) -> torch.dtype:
    """What the KV pool of our own model holds: `auto`, `bf16` or `fp8`, which is e4m3 with a scale of 1."""
    if wanted == "auto":
        return compute_dtype(device)
    return torch.float8_e4m3fn if wanted == "fp8" else torch.bfloat16


def choose_form(located: Located, device: Device, kv: str = "auto") -> Form:
    """How our own model would hold these files' weights on `device`, with keys and values in `kv`.

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
    return form_of(config, device, _free_bytes(device), keeps_of(located.directory, kv_dtype(kv, device)))


def keeps_of(directory: Path, kept: torch.dtype) -> Keeps:
    """What the files in `directory` have for absmax, and a pool in `kept`."""
    try:
        absmax = json.loads((directory / MANIFEST).read_bytes())["absmax"]
    except (OSError, KeyError, TypeError, ValueError):
        return Keeps("bfloat16", kept.itemsize)
    return Keeps(absmax, kept.itemsize, is_packed=True)


def form_of(config: MixtralConfig, device: Device, free: int, keeps: Keeps | None = None) -> Form:
    """See `choose_form`; `free` is the memory that there is for all of it, in bytes."""
    itemsize = compute_dtype(device).itemsize
    keeps = keeps or Keeps("bfloat16", itemsize)
    full = config.num_parameters * itemsize
    if full <= (_SHARE_FOR_WEIGHTS * free if device.name == "cpu" else _SMALL_BYTES):
        return Form("dequantised", f"its weights fit dequantised ({_gb(full)}, {_gb(free)} free)")
    usual, lean = sum_of(config, itemsize, keeps), sum_of(config, itemsize, keeps, lean=True)
    context = min(config.max_position, _LEAST_CONTEXT)
    if usual.total(context) <= free:
        return Form("nf4", f"its weights fit in NF4 ({_sizes(usual, context, free)})")
    if device.name == "cpu" or config.tie_embeddings:
        return Form(None, f"its weights do not fit in NF4 ({_sizes(usual, context, free)})", fits=False)
    sizes = _sizes(lean, context, free)
    if lean.total(context) > free:
        return Form(None, f"its weights do not fit in NF4 ({sizes}){_hint(config, keeps, free, context)}", fits=False)
    if not keeps.is_packed:
        return Form(None, f"its weights fit in NF4 once they are packed, by zopilot-gpu prepare ({sizes})", fits=False)
    return Form("nf4", f"its weights fit in NF4, the embedding left to the host's memory ({sizes})", is_lean=True)


def _sizes(needed: Sum, context: int, free: int) -> str:
    work = needed.total(context) - needed.weights_bytes
    return f"{_gb(needed.weights_bytes)}, and {_gb(work)} to work with {context} tokens; {_gb(free)} free"


def _hint(config: MixtralConfig, keeps: Keeps, free: int, context: int) -> str:
    """What would make a model fit on a GPU that does not."""
    ways = [
        (Keeps(keeps.absmax, 1), "ZOPILOT_GPU_KV_DTYPE=fp8"),
        (Keeps("double", keeps.kv_itemsize), "the double quantised form that zopilot-gpu prepare makes"),
        (Keeps("double", 1), "ZOPILOT_GPU_KV_DTYPE=fp8 and the double quantised form that zopilot-gpu prepare makes"),
    ]
    for way, named in ways:
        if sum_of(config, 2, way, lean=True).total(context) <= free:
            return f"; with {named} they would"
    return ""


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
