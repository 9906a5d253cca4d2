"""Machines that are not here, as facts: what doctor says on each. The facts are the lowest seam; the checks are the real ones.

Prints all tables: python -m tests.unit.doctor.machines [NAME]
"""

import sys
from dataclasses import replace
from pathlib import Path

from pydantic import SecretStr
from rich.console import Console

from runners.device import Device, choose_device
from runners.machine import Card, Machine
from zopilot_gpu.cli.doctor import show
from zopilot_gpu.doctor.checks import examine
from zopilot_gpu.doctor.facts import Facts, Found, Keys, Volume
from zopilot_gpu.doctor.lock import Packages
from zopilot_gpu.doctor.probes import Mount, Speed, Tried
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.settings import NO_KEY, Settings

GB = 1_000_000_000
MIXTRAL = MixtralConfig(32_000, 4096, 14_336, 32, 32, 8, 128, 8, 2, 1e6, 1e-5, 32_768, tie_embeddings=False)
ROOT = Path("/runpod-volume")
SNAPSHOT = ROOT / "huggingface/hub/models--mistralai--Mixtral-8x7B-Instruct-v0.1/snapshots/0123abcd"
NAME = "mistralai/Mixtral-8x7B-Instruct-v0.1"
PACKED = Found(
    "packed", NAME, ROOT / "packed/mixtral@0123-1", 24_490_000_000, "the packed form is there", MIXTRAL, absmax="double"
)
SOURCE = Found("source", NAME, SNAPSHOT, 93_400_000_000, "it has not been packed yet", MIXTRAL, 24_490_000_000)
DEMO = MixtralConfig(768, 192, 384, 6, 6, 2, 32, 8, 2, 1e6, 1e-5, 2048, tie_embeddings=True)

_cu124 = ("2.6.0+cu124", (12, 4), ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"))
_cu128 = ("2.8.0+cu128", (12, 8), ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"))
_MEMORY = 128 << 30


def card(name: str, capability: tuple[int, int], gib: float) -> Card:
    total = int(gib * 2**30)
    return Card(name, capability, total, total - 500_000_000)


RTX_4090 = card("NVIDIA GeForce RTX 4090", (8, 9), 23.64)
RTX_5090 = card("NVIDIA GeForce RTX 5090", (12, 0), 31.4)
A6000 = card("NVIDIA RTX A6000", (8, 6), 47.5)
A100 = card("NVIDIA A100 40GB", (8, 0), 39.4)
H100 = card("NVIDIA H100 80GB HBM3", (9, 0), 79.1)
V100 = card("Tesla V100-SXM2-32GB", (7, 0), 31.7)


def default(found: Card | None, driver: str = "550.54.15", speaks: tuple[int, int] = (12, 4), problem: str = "") -> Machine:
    return Machine(*_cu124, _MEMORY, driver, speaks, found, problem or None)


def blackwell(found: Card | None, driver: str = "570.86.15", speaks: tuple[int, int] = (12, 8)) -> Machine:
    return Machine(*_cu128, _MEMORY, driver, speaks, found)


def settings(**changed: object) -> Settings:
    given: dict[str, object] = {"api_key": (SecretStr("k" * 32),), "volume": None, "hf_home": None, "model": NAME}
    return Settings.model_validate(given | changed)


def facts(machine: Machine, **changed: object) -> Facts:
    """A machine with all in order, but for what is changed."""
    asked = changed.get("settings", settings())
    assert isinstance(asked, Settings)
    device: Device | None = None
    refused = None
    try:
        device = choose_device(asked.device, machine)
    except ModelUnavailable as problem:
        refused = problem.detail
    on_card = device is not None and device.name == "cuda"
    whole = Facts(
        depth="all",
        settings=asked,
        python="3.11.11",
        packages=Packages("runtime.lock.txt" if machine.torch.startswith("2.6") else "blackwell.lock.txt", 166),
        machine=machine,
        device=device,
        no_device=refused,
        bitsandbytes=Tried("a tensor quantised on the GPU" if on_card else "libbitsandbytes_cpu.so loads"),
        triton=Tried("a kernel compiled and run in 0.9 s") if on_card else Tried(),
        now_s=1_796_000_000.0,
        written_s=1_795_000_000.0,
        found=PACKED,
        volume=Volume(ROOT, True, Mount("/runpod-volume", "fuse.juicefs", read_only=False), True, 120 * GB),  # noqa: FBT003
        speed=Speed(256 << 20, 0.9),
        keys=Keys(1),
        port="free",
    )
    return replace(whole, **changed)  # type: ignore[arg-type]


def _volume(**changed: object) -> Volume:
    whole = Volume(ROOT, True, Mount("/runpod-volume", "fuse.juicefs", read_only=False), True, 120 * GB)  # noqa: FBT003
    return replace(whole, **changed)  # type: ignore[arg-type]


_OWN_DISK = Mount("/", "overlay", read_only=False)
_MISSING = f"{NAME} is not in the mounted cache. Looked below /runpod-volume, /workspace, ~/.cache/huggingface."
_NO_DRIVER = Machine(*_cu124, _MEMORY)

# name: the facts, the worst verdict, the check that says it, and a part of its sentence
MACHINES: dict[str, tuple[Facts, str, str, str]] = {
    "H100": (facts(default(H100)), "ok", "card", "torch was built for it"),
    "H100, not packed": (facts(default(H100), found=SOURCE), "warn", "model", "3.8 times as much"),
    "A100 40 GB": (facts(default(A100)), "ok", "memory", "32,768 tokens"),
    "A6000": (facts(default(A6000)), "ok", "memory", "32,768 tokens"),
    "RTX 4090, 24 GiB": (facts(default(RTX_4090)), "fail", "memory", "with ZOPILOT_GPU_KV_DTYPE=fp8 they would"),
    "RTX 4090, not packed": (facts(default(RTX_4090), found=SOURCE), "fail", "memory", "the double quantised form"),
    "RTX 4090, fp8": (facts(default(RTX_4090), settings=settings(kv_dtype="fp8")), "warn", "memory", "longest context"),
    "RTX 5090, default image": (facts(default(RTX_5090, "570.86.15", (12, 8))), "fail", "card", "Blackwell image"),
    "RTX 5090, Blackwell image": (facts(blackwell(RTX_5090)), "ok", "memory", "32,768 tokens"),
    "H100, Blackwell image": (facts(blackwell(H100)), "ok", "card", "torch was built for it"),
    "V100": (facts(default(V100)), "warn", "card", "no bf16"),
    "no GPU asked for, demo": (
        facts(_NO_DRIVER, settings=settings(model="demo", device="cpu"), found=replace(PACKED, config=DEMO), volume=None),
        "ok",
        "driver",
        "The CPU computes",
    ),
    "no driver, a GPU asked for": (
        facts(_NO_DRIVER, settings=settings(device="cuda")),
        "fail",
        "driver",
        "docker run --gpus all",
    ),
    "driver 470 (CUDA 11.4)": (
        facts(default(None, "470.256.02", (11, 4), "The NVIDIA driver on your system is too old")),
        "fail",
        "driver",
        "Take a host with driver 525.60.13 or newer",
    ),
    "driver 520 (CUDA 11.8)": (
        facts(default(None, "520.61.05", (11, 8))),
        "fail",
        "driver",
        "torch 2.6.0+cu124 needs CUDA 12",
    ),
    "driver 535 (CUDA 12.2)": (facts(default(H100, "535.161.08", (12, 2))), "warn", "driver", "550.54.14"),
    "GPU hidden": (
        facts(default(None, problem="No CUDA GPUs are available"), settings=settings(device="cuda")),
        "fail",
        "driver",
        "CUDA_VISIBLE_DEVICES",
    ),
    "GPU in use by another": (
        facts(default(replace(H100, free_bytes=20 * GB))),
        "fail",
        "memory",
        "20.00 GB free",
    ),
    "full volume, not packed": (
        facts(default(H100), found=SOURCE, volume=_volume(free_bytes=2 * GB)),
        "warn",
        "volume",
        "There is no room for the packed form (24.5 GB)",
    ),
    "full volume, to be downloaded": (
        facts(
            default(H100),
            found=None,
            not_found=_MISSING,
            volume=_volume(free_bytes=0),
            speed=None,
            settings=settings(allow_download=True),
        ),
        "fail",
        "volume",
        "no room for a download",
    ),
    "unmounted volume": (
        facts(
            default(H100), found=None, not_found=_MISSING, speed=None, volume=_volume(mount=_OWN_DISK, free_bytes=20 * GB)
        ),
        "fail",
        "volume",
        "Nothing is mounted at /runpod-volume",
    ),
    "no such volume": (
        facts(
            default(H100),
            found=None,
            not_found=_MISSING,
            speed=None,
            settings=settings(volume=Path("/data")),
            volume=Volume(Path("/data"), is_there=False, mount=_OWN_DISK),
        ),
        "fail",
        "volume",
        "/data is not there",
    ),
    "read-only volume, packed": (
        facts(
            default(H100), volume=_volume(is_writable=False, mount=Mount("/runpod-volume", "nfs4", read_only=True))
        ),
        "ok",
        "volume",
        "has what a start needs",
    ),
    "read-only volume, not packed": (
        facts(
            default(H100),
            found=SOURCE,
            volume=_volume(is_writable=False, mount=Mount("/runpod-volume", "nfs4", read_only=True)),
        ),
        "warn",
        "volume",
        "mounted read-only",
    ),
    "volume of another user": (
        facts(default(H100), found=SOURCE, volume=_volume(is_writable=False)),
        "warn",
        "volume",
        "Let this user write there",
    ),
    "slow volume, not packed": (
        facts(default(H100), found=SOURCE, speed=Speed(256 << 20, 1.2)),
        "warn",
        "speed",
        "takes 418 s. Packed it would be 109 s",
    ),
    "missing model": (
        facts(default(H100), found=None, not_found=_MISSING, speed=None),
        "fail",
        "model",
        "zopilot-gpu prepare --download",
    ),
    "no key": (facts(default(H100), keys=Keys(0, problem=NO_KEY)), "fail", "keys", "Set ZOPILOT_GPU_API_KEY"),
    "short keys": (facts(default(H100), keys=Keys(2, num_short=1)), "warn", "keys", "Shorter than 16 characters: 1."),
    "anonymous": (
        facts(default(H100), keys=Keys(0), settings=settings(api_key=(), allow_anonymous=True)),
        "warn",
        "keys",
        "anybody who reaches the port",
    ),
    "bitsandbytes dead": (
        facts(default(H100), bitsandbytes=Tried(problem="OSError: libcusparse.so.12: cannot open shared object file")),
        "fail",
        "bitsandbytes",
        "libcusparse.so.12",
    ),
    "no C compiler": (facts(default(H100), triton=Tried(problem="there is no C compiler")), "fail", "triton", "gcc"),
    "other packages": (
        facts(
            default(H100),
            packages=Packages("runtime.lock.txt", 166, ("llguidance 1.9.1",), ("numpy 1.26.4 (locked: 2.3.5)",)),
        ),
        "fail",
        "packages",
        "llguidance 1.9.1 is missing, numpy 1.26.4",
    ),
    "another Python": (facts(default(H100), python="3.12.4"), "fail", "python", "python3.11"),
    "port in use": (facts(default(H100), port="taken"), "warn", "port", "Something listens there"),
    "port 80": (facts(default(H100), port="denied", settings=settings(port=80)), "fail", "port", "from 1024 on"),
    "clock in 1970": (facts(default(H100), now_s=1000.0), "warn", "clock", "certificates will be refused"),
    "another architecture": (
        facts(
            default(A6000), found=Found("source", "llama", SNAPSHOT, 140 * GB, "only a Mixtral is packed")
        ),
        "warn",
        "speed",
        "takes 469 s. Take a faster volume",
    ),
    "another architecture, too large": (
        facts(default(RTX_4090), found=Found("source", "llama", SNAPSHOT, 140 * GB, "only a Mixtral is packed")),
        "fail",
        "memory",
        "The weights do not fit",
    ),
}  # fmt: skip


def main(wanted: str = "") -> None:
    """Prints doctor's table for each machine, or for those whose name has `wanted` in it."""
    console = Console(highlight=False, width=140)
    for name, (made, *_) in MACHINES.items():
        if wanted in name:
            console.rule(name)
            show(examine(made), console)


if __name__ == "__main__":
    main(*sys.argv[1:2])
