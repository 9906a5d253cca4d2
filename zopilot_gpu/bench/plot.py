"""Pictures as small SVG files. Knows matplotlib, imported when one is drawn; refuses to start without it.

Curves are cut to a few hundred points, so that a file stays small however long the run was.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zopilot_gpu.bench.client import Record
from zopilot_gpu.bench.figures import percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POINTS = 200
_NUM_BINS = 30


class PlotUnavailable(Exception):
    """matplotlib is not installed; the text says how to get it."""


def require() -> None:
    """Raises `PlotUnavailable` where nothing can be drawn; better before a run than after it."""
    if importlib.util.find_spec("matplotlib") is None:
        raise PlotUnavailable("A plot needs matplotlib: pip install 'zopilot-gpu[bench]'.")


def new_figure(num_panels: int) -> tuple["Figure", list["Axes"]]:
    """An empty figure with panels side by side."""
    require()
    from matplotlib.figure import Figure  # noqa: PLC0415  (an extra)

    figure = Figure(figsize=(5 * num_panels, 3.6), layout="constrained")
    panels = [figure.add_subplot(1, num_panels, number + 1) for number in range(num_panels)]
    for panel in panels:
        panel.grid(visible=True, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def save(figure: "Figure", path: Path) -> None:
    """Writes the SVG, text as text; the same figure gives the same bytes."""
    from matplotlib import rc_context  # noqa: PLC0415

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "zopilot-gpu", "font.sans-serif": ["DejaVu Sans"]}):
        figure.savefig(path, format="svg", metadata={"Date": None})


def draw_run(records: Sequence[Record], path: Path) -> None:
    """How the times are distributed, and how they went over the run."""
    figure, (distribution, course) = new_figure(2)
    answers = [record for record in records if record.error is None]
    _distribution(distribution, answers)
    _course(course, records, answers)
    save(figure, path)


def _distribution(panel: "Axes", answers: Sequence[Record]) -> None:
    curves = {
        "first token": sorted(ttft_s for record in answers if (ttft_s := record.ttft_s) is not None),
        "whole answer": sorted(record.latency_s for record in answers),
    }
    shares = [number / _MOST_POINTS for number in range(_MOST_POINTS + 1)]
    for label, values in curves.items():
        if values:
            panel.plot([percentile(values, share) * 1000 for share in shares], [share * 100 for share in shares], label=label)
    panel.set(xlabel="milliseconds", ylabel="% of answers at most this", ylim=(0, 101))
    if answers:
        panel.set_xscale("log")
        panel.legend()


def _course(panel: "Axes", records: Sequence[Record], answers: Sequence[Record]) -> None:
    panel.set(xlabel="due, seconds from the start", ylabel="whole answer, milliseconds")
    if not records:
        return
    began_s = min(record.scheduled_s for record in records)
    width_s = (max(record.scheduled_s for record in records) - began_s) / _NUM_BINS or 1.0

    def middle(number: int) -> float:
        return (number + 0.5) * width_s

    def number(record: Record) -> int:
        return min(int((record.scheduled_s - began_s) / width_s), _NUM_BINS - 1)

    bins: dict[int, list[float]] = {}
    for record in answers:
        bins.setdefault(number(record), []).append(record.latency_s * 1000)
    there = sorted(bins)
    for share, label in ((0.5, "median"), (0.95, "95%")):
        panel.plot([middle(at) for at in there], [percentile(bins[at], share) for at in there], label=label)
    failed = sorted({number(record) for record in records if record.error is not None})
    if failed:
        panel.plot([middle(at) for at in failed], [0] * len(failed), "x", color="black", label="failures", clip_on=False)
    panel.set_ylim(bottom=0)
    panel.legend()
