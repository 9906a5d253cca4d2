"""Measures the store on a made-up model: packing, loading, against the disk and transformers. One run, one line of JSON.

Each figure is taken in a process of its own; what is compared is measured in turn, cold (the files' pages dropped) and warm.

Try it: `python benchmarks/store.py /mnt/scratch --model demo-size`; `--model small` is 4.9 GB of bf16 and takes minutes.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_PIECE = 16 << 20


def drop(directory: Path) -> None:
    """Takes the files' pages out of the page cache."""
    for path in directory.glob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def read_raw(directory: Path, threads: int) -> None:
    """Reads every weight file into buffers that are used again and again: the least that a read can do."""

    def read(path: Path) -> None:
        buffer = bytearray(_PIECE)
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, sorted(directory.glob("*.safetensors"))))


def read_fresh(directory: Path) -> None:
    """The same into memory that is then kept, as a load on a CPU has to."""

    def read(path: Path) -> bytearray:
        with path.open("rb", buffering=0) as file:
            kept = bytearray(path.stat().st_size)
            view = memoryview(kept)
            while count := file.readinto(view[:_PIECE]):
                view = view[count:]
        return kept

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, sorted(directory.glob("*.safetensors"))))


def dd(directory: Path) -> None:
    """The same by `dd`, one file after the other."""
    for path in sorted(directory.glob("*.safetensors")):
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M"], check=True, capture_output=True)  # noqa: S607


def pack(source: Path, root: Path) -> str:
    """The packed form of `source` below `root`."""
    from zopilot_gpu.store.ensure import Wanted, ensure

    return str(ensure(Wanted(str(source), roots=[root])).located.directory)


def load(directory: Path) -> None:
    """Our load, hashed already."""
    import torch

    from zopilot_gpu.store.load import load
    from zopilot_gpu.store.manifest import read_manifest

    with torch.inference_mode():
        tensors = load(directory, read_manifest(directory), "cuda" if torch.cuda.is_available() else "cpu")
    assert tensors


def load_through_ring(directory: Path) -> None:
    """Our load as it is on a GPU, up to the copy: each worker reads into two buffers that it uses again and again."""
    import torch

    from zopilot_gpu.store import load as module

    local = threading.local()

    class Ring:
        def __init__(self, num_bytes: int) -> None:
            self._data = torch.empty(num_bytes, dtype=torch.uint8)  # never touched, so no memory
            if not hasattr(local, "buffers"):  # as torch's allocator of pinned memory does
                local.buffers = [torch.empty(module._PIECE_BYTES, dtype=torch.uint8) for _ in range(2)]
            self._buffers = local.buffers

        def take(self, begin: int, end: int, read: Callable[[memoryview], None]) -> None:
            self._buffers.reverse()
            read(memoryview(self._buffers[0].numpy().data)[: end - begin])

        def finish(self) -> torch.Tensor:
            return self._data

    module._HostSink = Ring  # type: ignore[assignment, misc]
    load(directory)


def from_pretrained(directory: Path) -> None:
    """Transformers' load; quantises what is not."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config: dict[str, Any] = {}
    if "quantization_config" not in json.loads((directory / "config.json").read_bytes()):
        config["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=["gate", "lm_head"],
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16, device_map={"": device}, **config)


def export(directory: Path, target: Path) -> None:
    """The packed form as a checkpoint for transformers."""
    from zopilot_gpu.store.export import export
    from zopilot_gpu.store.published import open_published

    export(open_published(directory), target)


def speeds(_: Path) -> dict[str, float]:
    """What bitsandbytes' quantisation takes as a multiple of ours, on one weight of 8x7B, and whether they agree."""
    import bitsandbytes.functional as theirs
    import torch

    from zopilot_gpu.store.quantise import Quantiser

    weight = (torch.randn(14336, 4096) * 0.02).to(torch.bfloat16)
    packed, absmax = torch.empty(weight.numel() // 2, dtype=torch.uint8), torch.empty(weight.numel() // 64)
    ours = Quantiser()
    walls, cpus, rates = [], [], []
    for _round in range(3):
        began, cpu = time.perf_counter(), time.process_time()
        ours(weight, packed, absmax)
        middle, cpu_middle = time.perf_counter(), time.process_time()
        codes, state = theirs.quantize_4bit(weight, quant_type="nf4")
        walls.append((time.perf_counter() - middle) / (middle - began))
        cpus.append((time.process_time() - cpu_middle) / (cpu_middle - cpu))
        rates.append(weight.numel() * 2 / 1e9 / (middle - began))
    equal = torch.equal(codes.view(-1), packed) and torch.equal(state.absmax, absmax)
    return {
        "ours_GBps": max(rates),
        "wall_ratio": statistics.median(walls),
        "cpu_ratio": statistics.median(cpus),
        "equal": equal,
    }


_STEPS: dict[str, Callable[..., Any]] = {
    "read_raw": lambda path, threads="4": read_raw(Path(path), int(threads)),
    "read_fresh": lambda path: read_fresh(Path(path)),
    "dd": lambda path: dd(Path(path)),
    "pack": lambda path, root: pack(Path(path), Path(root)),
    "load": lambda path: load(Path(path)),
    "load_through_ring": lambda path: load_through_ring(Path(path)),
    "from_pretrained": lambda path: from_pretrained(Path(path)),
    "export": lambda path, target: export(Path(path), Path(target)),
    "speeds": lambda path: speeds(Path(path)),
}


def step(name: str, *arguments: object) -> dict[str, Any]:
    """Runs one step in a process of its own: seconds without imports, peak memory in bytes, and what it gave."""
    command = [sys.executable, __file__, "--step", name, *map(str, arguments)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(run.stdout.splitlines()[-1]))


def run_step(name: str, arguments: list[str]) -> None:
    """The other side of `step`."""
    if name not in ("read_raw", "read_fresh", "dd"):
        import zopilot_gpu.store.ensure
        import zopilot_gpu.store.load  # noqa: F401
    if name in ("pack", "from_pretrained", "speeds"):
        import bitsandbytes  # noqa: F401
    if name == "from_pretrained":
        from transformers import MixtralForCausalLM  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began_s = time.perf_counter()
    gave = _STEPS[name](*arguments)
    seconds = time.perf_counter() - began_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "before_bytes": before, "gave": gave}))


def measure(root: Path, model: str, rounds: int, *, slow: bool) -> dict[str, Any]:
    """Everything."""
    from zopilot_gpu.store.synthetic import make_checkpoint

    source, exported = root / "source", root / "exported"
    if not source.is_dir():
        make_checkpoint(model, source)
    results: dict[str, Any] = {
        "model": model,
        "source_bytes": sum(path.stat().st_size for path in source.glob("*.safetensors")),
    }
    results["quantise"] = step("speeds", root)["gave"]
    shutil.rmtree(root / "packed", ignore_errors=True)
    drop(source)
    results["read_source"] = step("read_raw", source)
    drop(source)
    results["pack"] = step("pack", source, root)
    packed = Path(results["pack"]["gave"])
    results["packed_bytes"] = sum(path.stat().st_size for path in packed.glob("*.safetensors"))
    step("load", packed)  # hashes; later ones need not
    kinds: dict[str, tuple[Any, ...]] = {
        "dd": ("dd", packed),
        "raw": ("read_raw", packed),
        "raw, kept": ("read_fresh", packed),
        "load": ("load", packed),
        "load, ring": ("load_through_ring", packed),
    }
    if slow:
        shutil.rmtree(exported, ignore_errors=True)
        step("export", packed, exported)
        kinds |= {
            "from_pretrained(export)": ("from_pretrained", exported),
            "from_pretrained(bf16)": ("from_pretrained", source),
        }
    for state in ("cold", "warm"):
        taken: dict[str, list[float]] = {name: [] for name in kinds}
        for index in range(rounds):
            for name, (what, *arguments) in kinds.items():
                if index and name.startswith("from_pretrained"):
                    continue
                if state == "cold":
                    drop(Path(arguments[0]))
                outcome = step(what, *arguments)
                taken[name].append(outcome["seconds"])
                results.setdefault("peak_bytes", {})[name] = outcome["peak_bytes"]
        results[state] = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return results


def report(results: dict[str, Any]) -> None:
    """The table."""
    packed = results["packed_bytes"]
    rate = results["source_bytes"] / 1e9 / results["pack"]["seconds"]
    print(f"{results['model']}: {results['source_bytes'] / 1e9:.2f} GB bf16 -> {packed / 1e9:.2f} GB packed")
    print(f"pack: {results['pack']['seconds']:.1f} s, {rate:.2f} GB/s, peak {results['pack']['peak_bytes'] / 1e9:.2f} GB")
    print(f"quantise, one weight: {results['quantise']}")
    for state in ("cold", "warm"):
        ours = results[state]["load"]
        for name, seconds in results[state].items():
            print(
                f"{state} {name:26} {seconds:8.2f} s {packed / 1e9 / seconds:7.2f} GB/s of packed, {seconds / ours:6.2f} x load"
            )
    print(json.dumps(results))


def main() -> None:
    """Parses the command line."""
    if sys.argv[1:2] == ["--step"]:
        run_step(sys.argv[2], sys.argv[3:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--model", default="small")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-transformers", action="store_true")
    given = parser.parse_args()
    report(measure(given.root, given.model, given.rounds, slow=not given.no_transformers))


if __name__ == "__main__":
    main()
