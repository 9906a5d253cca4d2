"""A run from its first check to its report. Knows the sections, their order and what a failure is; options are the CLI's.

Whatever a section raises ends that section alone: what was measured is in the report, and in the file, beside the error.
"""

import gc
import json
import secrets
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from zopilot_gpu.bench import plot as plots
from zopilot_gpu.bench.gpu import baseline, check, kernels, load, machine, model, report, roofline, subject
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.model.kernels import shapes

SECTIONS = ("check", "kernels", "model", "baseline", "nested", "load")


@dataclass(slots=True)
class Run:
    """What a run has found so far. `failures` name sections and parts; a check that is wrong is one."""

    sizes: Sizes
    device: torch.device
    console: Console
    file: Path | None
    report: dict[str, Any]
    failures: dict[str, str] = field(default_factory=dict)
    best: kernels.Ceilings | None = None
    began_s: float = field(default_factory=time.monotonic)

    @contextmanager
    def guarded(self, name: str, *, ours: bool = True) -> Iterator[None]:
        """Lets an error in the block end no more than the block; one of others' code is no failure but a reason."""
        try:
            yield
        except baseline.LeftOut as reason:
            self.report.setdefault("left_out", {})[name] = str(reason)
            self.console.print(f"{name}: left out: {reason}")
        except Exception as error:  # noqa: BLE001  (a border: figures that were paid for are not lost to what comes after them)
            said = f"{type(error).__name__}: {error}"[:500]
            (self.failures if ours else self.report.setdefault("left_out", {}))[name] = said
            self.console.print(f"{name} FAILED\n{''.join(traceback.format_exception(error)[-6:])}", markup=False)
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        """The report as it is, for whoever stops the run."""
        self.report |= {"failures": self.failures, "wall_s": round(time.monotonic() - self.began_s, 1)}
        if self.file:
            self.file.write_text(json.dumps(self.report) + "\n")


def run(
    sizes: Sizes, device: torch.device, only: Iterable[str], file: Path | None, plot: Path | None, console: Console
) -> dict[str, Any]:
    """Measures, prints tables, draws the plot.

    Returns:
        The report, ready for JSON; `failures` is empty where all is right.
    """
    wanted = tuple(only) or SECTIONS
    seed = secrets.randbits(31) if sizes.seed is None else sizes.seed
    torch.manual_seed(seed)
    head = {"command": "bench gpu", "date": datetime.now(UTC).isoformat(timespec="seconds"), "size": sizes.name, "seed": seed}
    made = Run(sizes, device, console, file, head | {"machine": machine.describe(device), "sections": list(wanted)})
    if device.type == "cuda":
        made.report["shapes"] = shapes.use_shipped(device)
    report.show_flat("", made.report["machine"], console)
    with made.guarded("ceilings"):
        made.best = kernels.ceilings(sizes, device)
        made.report |= {"ceilings": asdict(made.best), "clocks": machine.clocks(device)}
    steps: dict[str, Callable[[Run], None]] = {
        "check": _check,
        "kernels": _kernels,
        "model": _model,
        "baseline": _baseline,
        "nested": _nested,
        "load": _load,
    }
    for name in SECTIONS:
        if name in wanted:
            console.rule(f"{name}, after {time.monotonic() - made.began_s:.0f} s")
            with made.guarded(name):
                steps[name](made)
    made.report["targets"] = report.verdicts(made.report)
    report.show_verdicts(made.report["targets"], console, judged=device.type == "cuda")
    if plot:
        with made.guarded("plot"):
            plots.require()
            roofline.draw(made.report, sizes, plot)
    made.write()
    console.print(f"{len(made.failures)} failures in {made.report['wall_s']:.0f} s {list(made.failures)}", markup=False)
    return made.report


def _check(run: Run) -> None:
    found: list[check.Check] = []

    def collect(name: str, checks: Callable[[], Iterable[check.Check]]) -> None:
        with run.guarded(f"check {name}"), torch.inference_mode():
            found.extend(checks())

    one = subject.make_model(run.sizes, run.device, nested=False, num_layers=1)
    for name, checks in check.CHECKS.items():
        collect(name, partial(checks, run.sizes, one))
    one = subject.make_model(run.sizes, run.device, nested=True, num_layers=1)
    collect("nested", partial(check.nested, run.sizes, one))
    report.show_checks(found, run.console)
    run.report["check"] = [one.json() for one in found]
    run.failures |= {one.name: f"{one.distance:.2e}, at most {one.bound:.0e}" for one in found if not one.is_right}


def _kernels(run: Run) -> None:
    if run.best is None:
        raise RuntimeError("the ceilings are not known")
    best, found = run.best, list[kernels.Timing]()

    def collect(name: str, timings: kernels.Timings, one: Any) -> None:
        with run.guarded(f"kernels {name}"), torch.inference_mode():
            for timing in timings(run.sizes, one, best):
                found.append(timing)
                run.report.setdefault("kernels", {})[f"{timing.part} {timing.size}"] = timing.json()

    one = subject.make_model(run.sizes, run.device, nested=False, num_layers=run.sizes.copies)
    for name, timings in kernels.PARTS.items():
        collect(name, timings, one)
    one = subject.make_model(run.sizes, run.device, nested=True, num_layers=run.sizes.copies)
    collect("nested", kernels.nested_experts, one)
    report.show_timings(best, found, run.console)


def _model(run: Run) -> None:
    model.forget_peak(run.device)
    one, built = model.build(run.sizes, run.device, nested=False)
    run.report["model"] = found = built
    with run.guarded("model prefill"):
        found["prefill"] = model.prefill(run.sizes, one, model.RUNNER_STEP_TOKENS)
        found["memory"] = model.memory(one, model.prompt_tokens(run.sizes), run.device)
        report.show_prefill(found["prefill"], f"steps of {model.RUNNER_STEP_TOKENS}, as the runner's", run.console)
        report.show_flat("with these prompts", _memory(found), run.console)
    with run.guarded("model prefill, larger steps"):
        found["prefill_large_steps"] = model.prefill(run.sizes, one, model.LARGE_STEP_TOKENS)
        report.show_prefill(found["prefill_large_steps"], f"steps of {model.LARGE_STEP_TOKENS}", run.console)
    with run.guarded("model decode"):
        found["decode"] = {}
        for size, row in model.decode(run.sizes, one):
            found["decode"][size] = row
        report.show_decode(found["decode"], run.best, run.sizes, run.console)


def _memory(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in ("absmax", "built_s", "weights_gb")} | dict(found["memory"])


def _nested(run: Run) -> None:
    one, built = model.build(run.sizes, run.device, nested=True)
    run.report["nested"] = built
    report.show_flat("double quantisation", built, run.console)
    with run.guarded("nested decode"):
        built["decode"] = dict(model.decode_some(run.sizes, one))
        report.show_decode(built["decode"], run.best, run.sizes, run.console)


def _baseline(run: Run) -> None:
    found: dict[str, Any] = {}
    run.report["baseline"] = found
    ways = {"transformers": baseline.by_transformers, "plain_parts": baseline.by_plain_parts}
    for name, measure in ways.items():
        with run.guarded(f"baseline {name}", ours=False), torch.inference_mode():
            found[name] = measure(run.sizes, run.device)
    ours = run.report.get("model", {}).get("decode", {}).get("1")
    slow = next((name for name in ways if name in found), None)
    if ours and slow:
        found |= {"times_faster": ours["tokens_per_s"] / found[slow]["tokens_per_s"], "times_faster_than": slow}
    report.show_flat("one sequence, the slow ways", found, run.console)
    run.report.setdefault("left_out", {})["baseline vLLM"] = "it is not installed; Marlin's times are those that are published"


def _load(run: Run) -> None:
    with tempfile.TemporaryDirectory(prefix="zopilot-gpu-bench-") as directory:
        run.report["load"] = load.measure(run.sizes, run.device, Path(directory))
    with run.guarded("load quantise", ours=False):  # on a GPU it is bitsandbytes
        run.report["load"]["quantise"] = load.quantise(run.sizes, run.device)
    report.show_flat("packed files", run.report["load"], run.console)
