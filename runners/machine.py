"""The machine as CUDA's driver and torch see it. Knows what the facts mean for a GPU; refuses to load or compute anything.

`look` gathers the facts, everything else is a sum over them: so every machine can be tried on any. Try it:
`python -c "from runners.machine import look; print(look())"`.
"""

import ctypes
import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

_DRIVER_FILE = Path("/proc/driver/nvidia/version")
_DRIVER = re.compile(r"\b\d{3}\.\d+(\.\d+)?\b")
_ARCH = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")
# From CUDA's release notes, for Linux: what any release of a major version runs on, and what a release came with.
_LEAST_DRIVER = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
_OWN_DRIVER = {(12, 4): "550.54.14", (12, 8): "570.26"}
_BLACKWELL = (10, 0)


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU, as torch tells of it."""

    name: str
    capability: tuple[int, int]
    total_bytes: int
    free_bytes: int

    @property
    def arch(self) -> str:
        """As compilers spell it, `sm_90`."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


@dataclass(frozen=True, slots=True)
class Machine:
    """`cuda` and `archs` are what torch was built with; `driver_cuda` is the newest CUDA that the driver speaks.

    `problem` is why the driver gives torch no GPU, in the words of CUDA; None where it does, or where there is no driver.
    """

    torch: str
    cuda: tuple[int, int] | None
    archs: tuple[str, ...]
    memory_bytes: int
    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    card: Card | None = None
    problem: str | None = None

    @property
    def has_driver(self) -> bool:
        """Whether NVIDIA's driver is there at all."""
        return self.driver is not None or self.driver_cuda is not None


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong and what to do, to be told in one sentence."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason[:1].upper()}{self.reason[1:]}: {self.remedy}."


def look(*, at_card: bool = True) -> Machine:
    """The facts. `at_card` makes torch open the GPU, which takes a second and some of its memory."""
    built_with = torch.version.cuda
    cuda = _pair(built_with) if built_with else None
    archs = tuple((torch._C._cuda_getArchFlags() or "").split()) if cuda else ()  # noqa: SLF001  (get_arch_list is empty without a GPU)
    driver_cuda = _driver_cuda()
    card, problem = _card() if at_card and (driver_cuda or _DRIVER_FILE.exists()) else (None, None)
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Machine(torch.__version__, cuda, archs, memory_bytes, _driver(), driver_cuda, card, problem)


def why_no_gpu(machine: Machine) -> Trouble | None:
    """Why torch can't compute on this machine's GPU; None where it can."""
    if machine.cuda is None:
        return Trouble(f"torch {machine.torch} was built without CUDA", "install the locked requirements")
    if not machine.has_driver:
        remedy = "give the container a GPU (docker run --gpus all), or set ZOPILOT_GPU_DEVICE=cpu"
        return Trouble("there is no NVIDIA driver", remedy)
    if machine.driver_cuda and machine.driver_cuda[0] < machine.cuda[0]:
        named = f"the NVIDIA driver {machine.driver}" if machine.driver else "the NVIDIA driver"
        speaks = f"speaks CUDA {_dotted(machine.driver_cuda)}, and torch {machine.torch} needs CUDA {machine.cuda[0]}"
        least = _LEAST_DRIVER.get(machine.cuda[0], "of that version")
        return Trouble(f"{named} {speaks}", f"take a host with driver {least} or newer")
    if machine.card is None:
        said = f" ({machine.problem})" if machine.problem else ""
        reason = f"the NVIDIA driver is here, but gives this process no GPU{said}"
        return Trouble(reason, "look at CUDA_VISIBLE_DEVICES and nvidia-smi")
    return why_not_built_for(machine, machine.card)


def why_not_built_for(machine: Machine, card: Card) -> Trouble | None:
    """Why this torch has no code for a card; None where it has."""
    if runs_on(machine.archs, card.capability):
        return None
    reason = f"{card.name} is {card.arch}, and torch {machine.torch} was built for {span(machine.archs)}"
    return Trouble(reason, _other_image(card))


def driver_note(machine: Machine) -> str | None:
    """What to know of a driver that is older than torch's CUDA, and new enough to run it; None where nothing is."""
    if not (machine.cuda and machine.driver_cuda) or machine.driver_cuda >= machine.cuda:
        return None
    own = _OWN_DRIVER.get(machine.cuda)
    return (
        f"The driver speaks CUDA {_dotted(machine.driver_cuda)} and torch was built with {_dotted(machine.cuda)}, which runs "
        f"within a major version; it was made for {f'driver {own}' if own else 'a newer driver'} or newer."
    )


def runs_on(archs: tuple[str, ...], capability: tuple[int, int]) -> bool:
    """Whether code built for `archs` runs on a card: machine code of its generation up to its own, or PTX that is no newer."""
    for arch in archs:
        if found := _ARCH.fullmatch(arch):
            major, minor = int(found[2]), int(found[3])
            if found[1] == "sm" and major == capability[0] and minor <= capability[1]:
                return True
            if found[1] == "compute" and (major, minor) <= capability:
                return True
    return False


def span(archs: tuple[str, ...]) -> str:
    """`sm_50 to sm_90`."""
    return f"{archs[0]} to {archs[-1]}" if len(archs) > 1 else "".join(archs) or "no GPU"


def _other_image(card: Card) -> str:
    if card.capability >= _BLACKWELL:
        return "use the Blackwell image (torch 2.8, CUDA 12.8)"
    if card.capability >= (5, 0):
        return "use the default image (torch 2.6, CUDA 12.4)"
    return "take a newer card, no image is built for this one"


def _card() -> tuple[Card | None, str | None]:
    """The first GPU, or why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say, `why_no_gpu` says with the remedy
            torch.cuda.init()  # type: ignore[no-untyped-call]
            found = torch.cuda.get_device_properties(0)
            free, total = torch.cuda.mem_get_info()
    except (AssertionError, RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        return None, str(error).partition("\n")[0].rstrip(".")
    return Card(found.name, (found.major, found.minor), total, free), None


def _driver() -> str | None:
    try:
        found = _DRIVER.search(_DRIVER_FILE.read_text())
    except OSError:
        return None
    return found[0] if found else None


def _driver_cuda() -> tuple[int, int] | None:
    """Asked of the driver's own library, which needs neither torch nor a GPU that works."""
    version = ctypes.c_int()
    try:
        if ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version)) != 0:
            return None
    except (OSError, AttributeError):
        return None
    return version.value // 1000, version.value % 1000 // 10


def _pair(version: str) -> tuple[int, int]:
    major, minor, *_ = version.split(".")
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
