"""The facts that the checks are about, as plain data. Knows how to gather them; refuses to judge.

Four depths: `build` is for an image that is being built (no GPU, no volume, no keys), `quick` for a start that must not wait,
`serving` for a service that runs (nothing that computes on the GPU or listens on the port, which are its own), `all` for a
person at a terminal.
"""

import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from runners.background import LEAST_PACKED_BYTES
from runners.base import RunnerState
from runners.device import Device, choose_device, keeps_of
from runners.machine import Machine, look
from runners.memory import Absmax
from zopilot_gpu.api.keys import KeysError, read_file
from zopilot_gpu.doctor import probes
from zopilot_gpu.doctor.lock import Packages, compare
from zopilot_gpu.doctor.probes import Mount, Speed, Tried
from zopilot_gpu.errors import ModelUnavailable, ServiceError
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.settings import DEMO_MODEL, Settings
from zopilot_gpu.store import files
from zopilot_gpu.store.ensure import Prepared, Wanted, ensure
from zopilot_gpu.store.layout import packed_bytes, read_config, why_not_packed
from zopilot_gpu.store.locate import search_roots, weight_bytes

Depth = Literal["build", "quick", "serving", "all"]
_ROOT = Path(__file__).parents[2]
_LEAST_MEASURED_BYTES = 64 << 20  # the time of a smaller read is that of opening the file


@dataclass(frozen=True, slots=True)
class Found:
    """What the store would load now. `pack_bytes` is what its packed form would take; 0 where there is none to make.

    `absmax` is how the packed form keeps it; a source in bf16 is exact in bf16.
    """

    kind: Literal["packed", "source"]
    name: str
    directory: Path
    num_bytes: int
    why: str
    config: MixtralConfig | None = None  # None for another architecture
    pack_bytes: int = 0
    absmax: Absmax = "bfloat16"


@dataclass(frozen=True, slots=True)
class Volume:
    """The directory that the model is on, or would be looked for first."""

    path: Path
    is_there: bool
    mount: Mount
    is_writable: bool = False
    free_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Keys:
    """How many, never which."""

    num: int
    num_short: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known. What was not looked at, at this depth or on this machine, is None."""

    depth: Depth
    settings: Settings
    python: str
    packages: Packages
    machine: Machine
    device: Device | None  # None where none can be used, for the reason `no_device`
    no_device: str | None
    bitsandbytes: Tried
    triton: Tried
    now_s: float
    written_s: float  # when our own files were: no clock that is right shows less
    found: Found | None = None
    not_found: str | None = None
    volume: Volume | None = None
    speed: Speed | None = None
    keys: Keys = Keys(0)
    port: str | None = None
    started: RunnerState | None = None

    @property
    def is_demo(self) -> bool:
        """Whether the embedded model is meant."""
        return self.settings.model == DEMO_MODEL


def gather(
    settings: Settings,
    depth: Depth,
    *,
    machine: Machine | None = None,
    started: RunnerState | None = None,
    keys_problem: str | None = None,
) -> Facts:
    """The facts of this machine.

    Args:
        settings: what is meant to be served.
        depth: see the module.
        machine: as it was before a model was loaded; looked at now where it is None.
        started: what came of the start, in a service.
        keys_problem: what is wrong with the keys in the environment, of which `settings` can't tell.
    """
    if machine is None:
        machine = look(at_card=depth != "build" and settings.device != "cpu")
    device, no_device = _device(settings, machine, depth)
    found, not_found = (None, None) if depth == "build" else _find(settings)
    measured = found if found and found.num_bytes >= _LEAST_MEASURED_BYTES and depth != "quick" else None
    return Facts(
        depth=depth,
        settings=settings,
        python=platform.python_version(),
        packages=compare(_ROOT, machine.torch),
        machine=machine,
        device=device,
        no_device=no_device,
        bitsandbytes=_bitsandbytes(depth, machine, device),
        triton=_triton(depth, machine, device),
        now_s=time.time(),
        written_s=Path(__file__).stat().st_mtime,
        found=found,
        not_found=not_found,
        volume=None if depth == "build" else _volume(settings, found),
        speed=probes.read_speed(_largest(measured.directory)) if measured else None,
        keys=Keys(0) if depth == "build" else _keys(settings, keys_problem),
        port=probes.port_state(settings.port) if depth == "all" and settings.face == "http" else None,
        started=started,
    )


def _device(settings: Settings, machine: Machine, depth: Depth) -> tuple[Device | None, str | None]:
    if depth == "build":
        return None, None
    try:
        return choose_device(settings.device, machine), None
    except ModelUnavailable as problem:
        return None, problem.detail


def _bitsandbytes(depth: Depth, machine: Machine, device: Device | None) -> Tried:
    on_card = device is not None and device.name == "cuda"
    loaded = probes.bitsandbytes_library(machine.cuda if on_card or depth == "build" else None)
    if loaded.problem or depth != "all" or device is None:
        return loaded
    return probes.bitsandbytes_quantises(device.name)


def _triton(depth: Depth, machine: Machine, device: Device | None) -> Tried:
    if depth == "build":
        return probes.triton_compiles(machine.archs)
    if device is None or device.name != "cuda":
        return Tried()
    if depth == "all":
        return probes.triton_runs()
    compiler = probes.c_compiler()
    return Tried(f"the C compiler is {compiler}") if compiler else Tried(problem="there is no C compiler")


def _find(settings: Settings) -> tuple[Found | None, str | None]:
    """What the service would load; nothing is downloaded or made for it."""
    wanted = Wanted(
        settings.model,
        settings.revision,
        search_roots(settings.volume, settings.hf_home),
        build=False,
        packed=settings.runner != "plain",
    )
    try:
        return _found(ensure(wanted), settings), None
    except ServiceError as problem:
        return None, problem.detail or problem.message
    except OSError as error:
        return None, f"{error.filename}: {error.strerror}."


def _found(prepared: Prepared, settings: Settings) -> Found:
    located, manifest = prepared.located, prepared.manifest
    config = _config(located.directory) if located.model_type == "mixtral" else None
    if manifest:
        absmax = keeps_of(located.directory, torch.bfloat16).absmax
        return Found("packed", located.name, located.directory, manifest.num_bytes, prepared.why, config, absmax=absmax)
    num_bytes = weight_bytes(located.directory)
    packs = settings.pack and settings.runner != "plain" and config is not None and num_bytes >= LEAST_PACKED_BYTES
    to_pack = packed_bytes(config) if packs and config and not why_not_packed(located.directory) else 0
    return Found("source", located.name, located.directory, num_bytes, prepared.why, config, to_pack)


def _config(directory: Path) -> MixtralConfig | None:
    try:
        return read_config(directory)
    except ModelUnavailable:
        return None  # one that only the plain backend knows


def _largest(directory: Path) -> Path:
    return max(directory.glob("*.safetensors"), key=lambda path: path.stat().st_size)


def _volume(settings: Settings, found: Found | None) -> Volume | None:
    """The root that the model was found below, or the first that a model could be put below; None for what is no volume's."""
    if settings.model == DEMO_MODEL:
        return None
    roots = search_roots(settings.volume, settings.hf_home)
    if found:
        path = next((root for root in roots if found.directory.is_relative_to(root)), found.directory)
    else:
        path = settings.volume or next((root for root in roots if root.is_dir()), roots[-1])
    mount = probes.mount_of(path)
    if not path.is_dir():
        return Volume(path, is_there=False, mount=mount)
    return Volume(path, True, mount, files.is_writable(path), files.free_bytes(path))  # noqa: FBT003  (it is there)


def _keys(settings: Settings, problem: str | None) -> Keys:
    own = [key.get_secret_value() for key in settings.api_key]
    in_file = 0
    if settings.keys_file:
        try:
            in_file = len(read_file(settings.keys_file))
        except KeysError as error:
            problem = str(error)
    return Keys(len(own) + in_file, sum(len(key) < 16 for key in own), problem or None)
