"""A run of `zopilot-gpu bench serve` from warm-up to report. Knows the parts and the terminal; the options are `cli.bench`'s.

The tables go to standard output, the progress bar to standard error.
"""

import asyncio
import platform
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from zopilot_gpu import __version__
from zopilot_gpu.bench import plot as plots
from zopilot_gpu.bench.client import Client, Record
from zopilot_gpu.bench.figures import figures
from zopilot_gpu.bench.load import OnRecord, closed_loop, open_loop
from zopilot_gpu.bench.report import show
from zopilot_gpu.bench.workload import Plan, arrivals, bodies

_MOST_WARM_UP_CALLERS = 8


class CanNotRun(Exception):
    """There is nothing to measure, or no way to draw it; the text is a sentence for a person."""


def serve(plan: Plan, url: str, key: str, *, retry: bool, timeout_s: float, plot: Path | None) -> dict[str, Any]:
    """Measures, prints the tables, draws the plot.

    Returns:
        The report, ready for JSON, without the key.

    Raises:
        CanNotRun: nobody answers at `url`, or `plot` can't be drawn; known before anything is measured.
    """
    if plot:
        _check(plot)
    client = Client(url, key, retry=retry, timeout_s=timeout_s)
    health, records = asyncio.run(_measure(plan, client, url))
    found = figures(records)
    show(found, Console(highlight=False))
    if plot:
        plots.draw_run(records, plot)
    return {
        "command": "bench serve",
        "versions": {"zopilot_gpu": __version__, "python": platform.python_version(), "aiohttp": aiohttp.__version__},
        "service": {name: health.get(name) for name in ("version", "model", "gpu")},
        "arguments": _arguments(plan) | {"url": url, "retry": retry, "timeout_s": timeout_s},
        "figures": found,
    }


async def _measure(plan: Plan, client: Client, url: str) -> tuple[dict[str, Any], list[Record]]:
    """What the service says of itself, and the records."""
    async with client:
        try:
            health = await client.health()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise CanNotRun(f"No answer from {url}: {error}") from error
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("requests", total=plan.num_requests)
            records = await _run(plan, client, lambda _: progress.advance(task))
        return health, records


async def _run(plan: Plan, client: Client, on_record: OnRecord) -> list[Record]:
    """The records of the measured requests."""
    warm_up = islice(bodies(plan.mix, plan.seed, "warm-up"), plan.num_warm_up)
    await closed_loop(client.ask, warm_up, _MOST_WARM_UP_CALLERS if plan.rate else plan.num_callers)
    measured = islice(bodies(plan.mix, plan.seed), plan.num_requests)
    duration_s = float("inf") if plan.duration_s is None else plan.duration_s
    if plan.rate:
        due = arrivals(plan.rate, plan.seed)
        return await open_loop(client.ask, measured, due, duration_s=duration_s, on_record=on_record)
    return await closed_loop(client.ask, measured, plan.num_callers, duration_s=duration_s, on_record=on_record)


def _arguments(plan: Plan) -> dict[str, Any]:
    """The plan, flat, with ranges as they are typed."""
    typed = {"prompt_words": str(plan.mix.prompt_words), "max_tokens": str(plan.mix.max_tokens)}
    arguments = asdict(plan) | asdict(plan.mix) | typed | {"num_callers": None if plan.rate else plan.num_callers}
    del arguments["mix"]
    return arguments


def _check(plot: Path) -> None:
    try:
        plots.require()
    except plots.PlotUnavailable as error:
        raise CanNotRun(str(error)) from error
    if not plot.resolve().parent.is_dir():
        raise CanNotRun(f"--plot: there is no directory {plot.parent}.")
