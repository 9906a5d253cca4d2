"""The checks: each turns facts into a verdict with its reason and its remedy. Computes only; refuses to look at the machine.

A check that does not apply says None. The row of a check in docs/operations.md is its `what`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from runners.machine import Trouble, driver_note, span, why_no_gpu, why_not_built_for
from zopilot_gpu.doctor.facts import Facts
from zopilot_gpu.doctor.memory import memory
from zopilot_gpu.doctor.report import Check
from zopilot_gpu.doctor.volume import model, speed, volume
from zopilot_gpu.settings import NO_KEY

_RELEASED_S = 1_793_000_000  # late October 2026: this code is younger
_FAR_S = 20 * 365 * 86_400
_PYTHON = "3.11."
_INSTALL = "Install the locked requirements anew, or use the image that was built for this card."


@dataclass(frozen=True, slots=True)
class Entry:
    """A check; `build` says whether it is made where an image is built."""

    name: str
    what: str
    check: Callable[[Facts], Check | None]
    build: bool = False


def python(facts: Facts) -> Check:
    """The interpreter."""
    if facts.python.startswith(_PYTHON):
        return Check("python", "ok", facts.python, "The version that the lock is for.")
    return Check("python", "fail", facts.python, f"The lock is for Python {_PYTHON}x.", "Make the environment with python3.11.")


def packages(facts: Facts) -> Check:
    """What is installed, against the lock."""
    found = facts.packages
    if not found.lock:
        return Check(
            "packages", "warn", "no lock", "No lock file is here to compare with.", "Put requirements/ beside the code."
        )
    value = f"{found.num_locked - len(found.missing) - len(found.different)} of {found.num_locked} as in {found.lock}"
    wrong = [*(f"{name} is missing" for name in found.missing), *found.different]
    if not wrong:
        return Check("packages", "ok", value, "All are as locked.")
    more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
    return Check(
        "packages", "fail" if found.missing else "warn", value, f"Not as locked: {', '.join(wrong[:5])}{more}.", _INSTALL
    )


def torch(facts: Facts) -> Check:
    """What torch was built for."""
    machine = facts.machine
    cuda = ".".join(map(str, machine.cuda)) if machine.cuda else "none"
    value = f"{machine.torch}, CUDA {cuda}, {span(machine.archs)}"
    if machine.cuda is None:
        return Check("torch", "fail", value, "This torch was built for CPUs.", _INSTALL)
    return Check("torch", "ok", value, f"It runs on cards of these architectures: {' '.join(machine.archs)}.")


def driver(facts: Facts) -> Check:
    """The driver against torch's CUDA."""
    machine = facts.machine
    trouble = why_no_gpu(machine)
    if not machine.has_driver:
        if trouble and facts.device is None:
            return _troubled("driver", "none", trouble)
        return Check("driver", "ok", "none", "The CPU computes: no driver is needed.")
    speaks = f"CUDA {machine.driver_cuda[0]}.{machine.driver_cuda[1]}" if machine.driver_cuda else "CUDA unknown"
    value = f"{machine.driver or 'unknown'}, {speaks}"
    if facts.settings.device == "cpu":
        return Check("driver", "ok", value, "ZOPILOT_GPU_DEVICE=cpu: it is not used.")
    if machine.card is None and trouble:
        return _troubled("driver", value, trouble)
    if note := driver_note(machine):
        return Check("driver", "warn", value, note, "Take a host with a newer driver, where there is a choice.")
    return Check("driver", "ok", value, "It speaks the CUDA that torch was built with.")


def card(facts: Facts) -> Check:
    """The card against the architectures that torch was built for."""
    found = facts.machine.card
    if facts.device and facts.device.name == "cpu":
        return Check("card", "ok", "none", "The CPU computes: slowly, and enough for the demo model.")
    if found is None:
        return Check("card", "fail", "none", "No GPU can be used.", "See the driver.")
    value = f"{found.name}, {found.arch}, {found.total_bytes / 2**30:.1f} GiB"
    if trouble := why_not_built_for(facts.machine, found):
        return _troubled("card", value, trouble)
    if found.capability < (8, 0):
        reason = "It has no bf16: our kernels need sm_80 or newer, and without them answers come slowly."
        return Check("card", "warn", value, reason, "Take a card of sm_80 or newer (A6000, L40S, A100, H100, RTX 4090).")
    return Check("card", "ok", value, f"torch was built for it ({span(facts.machine.archs)}).")


def _troubled(name: str, value: str, trouble: Trouble) -> Check:
    reason, remedy = (f"{part[:1].upper()}{part[1:]}." for part in (trouble.reason, trouble.remedy))
    return Check(name, "fail", value, reason, remedy)


def bitsandbytes(facts: Facts) -> Check | None:
    """The native library of bitsandbytes."""
    tried = facts.bitsandbytes
    if tried.value:
        return Check("bitsandbytes", "ok", tried.value, "Its native library works.")
    if not tried.problem:
        return None
    reason = f"Its native library is dead: {tried.problem}."
    if facts.device and facts.device.name == "cpu":
        return Check(
            "bitsandbytes", "warn", "dead", reason, "On a CPU torch stands in, slowly; install the locked requirements anew."
        )
    return Check("bitsandbytes", "fail", "dead", reason, _INSTALL)


def triton(facts: Facts) -> Check:
    """Triton, and the C compiler that it calls."""
    tried = facts.triton
    if tried.problem:
        return Check("triton", "fail", "dead", f"It can't make a kernel: {tried.problem}.", "Install gcc and Python's headers.")
    if tried.value:
        return Check("triton", "ok", tried.value, "Kernels can be made.")
    return Check("triton", "ok", "not tried", "There is no GPU that could run a kernel; the CPU needs none.")


def keys(facts: Facts) -> Check:
    """API keys: how many."""
    found, value = facts.keys, "1 key" if facts.keys.num == 1 else f"{facts.keys.num} keys"
    if found.problem == NO_KEY and facts.is_demo:
        return Check(
            "keys", "warn", "none", "`zopilot-gpu serve` will make one.", "Set ZOPILOT_GPU_API_KEY for one of your own."
        )
    if found.problem:
        reason, _, remedy = found.problem.partition(". ")
        return Check(
            "keys", "fail", value, f"{reason.rstrip('.')}.", remedy or "The service refuses to start until it is mended."
        )
    if not found.num:
        reason = "ZOPILOT_GPU_ALLOW_ANONYMOUS=true: anybody who reaches the port uses the model."
        return Check("keys", "warn", "none", reason, "Set ZOPILOT_GPU_API_KEY, unless nobody else reaches it.")
    if found.num_short:
        return Check("keys", "warn", value, f"Shorter than 16 characters: {found.num_short}.", "Use long random ones.")
    return Check("keys", "ok", value, "Callers need one.")


def token(facts: Facts) -> Check:
    """The token for the model hub."""
    if facts.settings.hf_token:
        return Check("token", "ok", "set", "It is used for downloads only.")
    if facts.not_found and facts.settings.allow_download:
        return Check("token", "warn", "not set", "The model will be downloaded; a gated one needs a token.", "Set HF_TOKEN.")
    return Check("token", "ok", "not set", "Nothing that needs one will be downloaded.")


def port(facts: Facts) -> Check | None:
    """The port of the HTTP service."""
    number, state = facts.settings.port, facts.port
    if state is None:
        return None
    if state == "denied":
        return Check("port", "fail", f"{number}", "This user may not listen there.", "Set PORT to a number from 1024 on.")
    if state == "taken":
        return Check("port", "warn", f"{number}", "Something listens there.", "If it is not this service, set another PORT.")
    return Check("port", "ok", f"{number}", "It is free.")


def start(facts: Facts) -> Check | None:
    """What came of the start, in a service."""
    state = facts.started
    if state is None:
        return None
    if state.problem:
        return Check("start", "fail", "not ready", state.problem, "Mend it and restart: until then /readyz and /ping say 503.")
    return Check("start", "ok", f"{state.load_s} s", f"The model answers; the backend is {state.runner}: {state.why}.")


def clock(facts: Facts) -> Check:
    """The clock, as far as one can tell alone."""
    value = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(facts.now_s))
    if max(_RELEASED_S, facts.written_s - 86_400) <= facts.now_s <= _RELEASED_S + _FAR_S:
        return Check("clock", "ok", value, "It is not before this code was written, nor far in the future.")
    reason = "The clock is wrong: certificates will be refused, and times in the log mean nothing."
    return Check("clock", "fail" if facts.settings.allow_download else "warn", value, reason, "Set the host's clock (NTP).")


CHECKS = (
    Entry("python", "The version of Python is the lock's.", python, build=True),
    Entry("packages", "Each package has the version of the lock that belongs to torch's.", packages, build=True),
    Entry("torch", "torch's CUDA, and the architectures that it was built for.", torch, build=True),
    Entry("driver", "The NVIDIA driver is there, and new enough for torch's CUDA.", driver),
    Entry("card", "The card's architecture is one that torch was built for.", card),
    Entry("bitsandbytes", "Its native library loads, and quantises one tensor.", bitsandbytes, build=True),
    Entry("triton", "It compiles one kernel, which the card runs; at a build it compiles only.", triton, build=True),
    Entry("memory", "Weights, KV for the configured context, and work fit; the longest context that fits.", memory),
    Entry("model", "What the store finds: the packed form, the source, or what is missing.", model),
    Entry("volume", "A mount of its own, writable or read-only, with room for what has to be written.", volume),
    Entry("speed", "The measured speed of reading the weights, and the start that it makes for.", speed),
    Entry("keys", "API keys are set (how many; never which).", keys),
    Entry("token", "The hub's token is set, where a download needs one (never shown).", token),
    Entry("port", "The port is free, and may be listened on.", port),
    Entry("start", "In a service: the model answers, or why not.", start),
    Entry("clock", "The clock is not before this code was written.", clock, build=True),
)


def examine(facts: Facts) -> Sequence[Check]:
    """All checks that apply at this depth, in the order of `CHECKS`."""
    entries = [entry for entry in CHECKS if entry.build or facts.depth != "build"]
    return [check for entry in entries if (check := entry.check(facts)) is not None]
