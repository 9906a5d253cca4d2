"""Loads a packed model from a local disk by the store, beside raw reads of the same files in the same run; and quantises.

Files are read cold (their pages dropped from the page cache) and warm, in turn. What is loaded has a few layers of full width:
what the whole model would take is computed from that, and named so.
"""

import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from zopilot_gpu.bench.gpu.clock import elapsed_s
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.bench.gpu.subject import make_engine
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.model import nf4
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.weights import build_packed
from zopilot_gpu.store.layout import packed_bytes, read_config
from zopilot_gpu.store.load import load
from zopilot_gpu.store.published import Published
from zopilot_gpu.store.quantise import Quantiser
from zopilot_gpu.store.synthetic import make_packed

_PIECE_BYTES = 16 << 20
_ROUNDS = 2
_THREADS = 4  # as many as the store reads with


def measure(sizes: Sizes, device: torch.device, directory: Path) -> dict[str, Any]:
    """All figures; `directory` is where the model is written, about 2 GB, and is left to the caller to remove."""
    began_s = time.perf_counter()
    made = make_packed(sizes.packed, directory, "double")
    num_bytes = sum(made.manifest.files[name].size for name in made.manifest.weights)
    found: dict[str, Any] = {"bytes": num_bytes, "written_s": time.perf_counter() - began_s}
    found["first_gbps"] = num_bytes / 1e9 / elapsed_s(lambda: _load(made, device), device)  # hashes what it reads
    readers: dict[str, Callable[[], object]] = {
        "load": lambda: _load(made, device),
        "dd": lambda: _dd(made.directory),
        f"raw, {_THREADS} threads": lambda: _read(made.directory),
    }
    for state in ("cold", "warm"):
        taken: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(_ROUNDS):
            for name, read in readers.items():
                if state == "cold":
                    _drop(made.directory)
                taken[name].append(elapsed_s(read, device))
        speeds = {name: num_bytes / 1e9 / median(seconds) for name, seconds in taken.items()}
        found[state] = {"gbps": speeds, "percent_of_raw": 100 * speeds["load"] / speeds["dd"]}
    return found | _first_token(sizes, made, device)


def _load(made: Published, device: torch.device) -> dict[str, torch.Tensor]:
    return load(made.directory, made.manifest, device.type)


def _first_token(sizes: Sizes, made: Published, device: torch.device) -> dict[str, Any]:
    """From the page cache to a first token, with kernels compiled: of what was loaded, and what the whole model would take."""
    config = read_config(made.directory)
    seconds = min(_first_token_s(made, config, device) for _ in range(2))
    layers = sizes.config.num_layers / config.num_layers
    whole = packed_bytes(sizes.config) / packed_bytes(config)
    return {
        "first_token_s": seconds,
        "first_token_s_full_size": seconds * max(1.0, min(whole, layers)),
        "layers": config.num_layers,
    }


def _first_token_s(made: Published, config: MixtralConfig, device: torch.device) -> float:
    began_s = time.perf_counter()
    model = build_packed(config, _load(made, device).pop, torch.bfloat16, device)
    engine = make_engine(model, 1024, max_step_tokens=512, max_running=1)
    sequence = Sequence("first", list(range(3, 19)), 1)
    engine.scheduler.add(sequence)
    while not sequence.output_ids:
        engine.step()
    return time.perf_counter() - began_s


def _drop(directory: Path) -> None:
    """Takes the files' pages out of the page cache."""
    for path in directory.glob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def _dd(directory: Path) -> None:
    """One file after the other."""
    for path in sorted(directory.glob("*.safetensors")):
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, capture_output=True)  # noqa: S603, S607


def _read(directory: Path) -> None:
    """Several files at once, into buffers that are used again and again: the least that a read can do."""

    def read(path: Path) -> None:
        buffer = bytearray(_PIECE_BYTES)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read, sorted(directory.glob("*.safetensors"))))


def quantise(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """GB of bf16 a second by the store's quantiser, from host memory and on the device; whether it gives its twin's bits."""
    shape = (sizes.config.intermediate_size, sizes.config.hidden_size)
    weight = (torch.randn(shape) * shape[1] ** -0.5).bfloat16()
    there = weight.to(device)
    packed = torch.empty(weight.numel() // 2, dtype=torch.uint8, device=device)
    absmax = torch.empty(weight.numel() // nf4.BLOCK, device=device)
    quantiser, found = Quantiser(device.type), dict[str, Any]()
    try:
        for name, source in (("from_host_gbps", weight), ("on_device_gbps", there)):
            quantiser(source, packed, absmax)
            call = partial(quantiser, source, packed, absmax)
            found[name] = weight.nbytes / 1e9 / median(elapsed_s(call, device) for _ in range(5))
    finally:
        quantiser.close()
    twin = nf4.quantise(there)
    return found | {"equals_twin": torch.equal(packed, twin.packed) and torch.equal(absmax, twin.scales())}
