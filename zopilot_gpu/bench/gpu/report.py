"""A run's figures as tables for a person. Knows rich and where in a report a figure is; measures nothing."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from zopilot_gpu.bench.gpu.check import Check
from zopilot_gpu.bench.gpu.kernels import Ceilings, Timing
from zopilot_gpu.bench.gpu.peers import TARGETS, Target
from zopilot_gpu.bench.gpu.roofline import step_floor_s
from zopilot_gpu.bench.gpu.sizes import Sizes


def table(*headings: str, title: str | None = None) -> Table:
    """All columns but the first to the right."""
    made = Table(title=title, title_justify="left")
    for number, heading in enumerate(headings):
        made.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return made


def show_checks(found: Iterable[Check], console: Console) -> None:
    """One row each."""
    made = table("against float64", "relative norm", "at most", "")
    for check in found:
        verdict = "right" if check.is_right else "WRONG"
        made.add_row(check.name, f"{check.distance:.2e}", f"{check.bound:.0e}", verdict)
    console.print(made)


def show_timings(best: Ceilings, found: Iterable[Timing], console: Console) -> None:
    """One row each."""
    console.print(
        f"ceilings: copy {best.bytes_per_s / 1e12:.2f} TB/s read and written, bf16 product {best.flops / 1e12:.0f} TFLOP/s"
    )
    made = table("part", "size", "ms", "floor, ms", "of floor", "MB", "TB/s", "TFLOP/s", "Marlin, ms")
    for timing in found:
        made.add_row(
            timing.part,
            timing.size,
            f"{timing.ms:.4f}",
            f"{timing.floor_ms:.4f}",
            f"{timing.share:.0%}",
            f"{timing.num_bytes / 1e6:,.1f}",
            f"{timing.num_bytes / timing.ms / 1e9:.2f}",
            f"{timing.num_flops / timing.ms / 1e9:.1f}",
            "" if timing.peer_ms is None else f"{timing.peer_ms:g}",
        )
    console.print(made)


def show_decode(found: Mapping[str, Any], best: Ceilings | None, sizes: Sizes, console: Console) -> None:
    """A row a batch; then where the time of a step goes."""
    made = table("decode, sequences", "tok/s", "ms a step", "slowest", "of floor")
    for size, row in found.items():
        count = int(size.partition(",")[0])
        floor_ms = step_floor_s(sizes.config, count, row["context"], best.bytes_per_s) * 1000 if best else 0.0
        made.add_row(
            size, f"{row['tokens_per_s']:,.0f}", f"{row['ms']:.3f}", f"{row['slowest_ms']:.3f}", f"{floor_ms / row['ms']:.0%}"
        )
    console.print(made)
    split = {size: row["parts"] for size, row in found.items() if "parts" in row}
    if split:
        names = list(dict.fromkeys(name for parts in split.values() for name in parts["us"]))
        made = table("us of a step", *(f"B={size}" for size in split))
        for name in names:
            made.add_row(name, *(f"{parts['us'].get(name, 0):,.0f}" for parts in split.values()))
        for name, key in (("GPU busy", "busy_us"), ("gaps", "gaps_us"), ("launches", "kernels")):
            made.add_row(name, *(f"{parts[key]:,.0f}" for parts in split.values()))
        console.print(made)


def show_prefill(found: Mapping[str, Any], how: str, console: Console) -> None:
    """A row a prompt."""
    made = table("prompt, tokens", "first token, ms", "tok/s", title=how)
    for length, row in found.items():
        made.add_row(length, f"{row['ms']:.1f}", f"{row['tokens_per_s']:,.0f}")
    console.print(made)


def show_flat(title: str, found: Mapping[str, Any], console: Console) -> None:
    """Names and values, those of what is nested behind a dot."""
    made = Table(title=title, title_justify="left", show_header=False)
    for name, value in _flat(found):
        made.add_row(name, f"{value:,.4g}" if isinstance(value, float) else str(value))
    console.print(made)


def _flat(found: Mapping[str, Any], before: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def verdicts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was measured, None where it was not."""
    rows = []
    for target in TARGETS:
        value = _look(report, target)
        met = None if value is None else value >= target.value if target.least else value <= target.value
        rows.append({"name": target.name, "unit": target.unit, "target": target.value, "measured": value, "met": met})
    return rows


def _look(report: Mapping[str, Any], target: Target) -> float | None:
    found: Any = report
    for key in target.where:
        found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping):
        found = found.get("ms")
    return None if found is None else float(found)


def show_verdicts(rows: Iterable[Mapping[str, Any]], console: Console, *, judged: bool) -> None:
    """PERFORMANCE's targets."""
    made = table("target, on an H200", "aim", "measured", "unit", "")
    words = {None: "not measured", True: "met", False: "missed"}
    for row in rows:
        measured = "" if row["measured"] is None else f"{row['measured']:,.4g}"
        made.add_row(row["name"], f"{row['target']:,g}", measured, row["unit"], words[row["met"]] if judged else "")
    console.print(made)
