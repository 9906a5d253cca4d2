"""The same questions to our service with either backend and to the FastAPI one: how many a second, and are the texts equal.

The services are started anew in every round, one at a time. A round's ratio is of figures taken minutes apart on the same
machine; the median of the rounds is reported. One caller asks with one key and many callers with another, so that the prefix
cache has not seen any question before.
"""

import asyncio
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.questions import asked
from benchmarks.servers import KEYS, SYSTEMS, served
from zopilot_gpu.bench.client import Client, Record
from zopilot_gpu.bench.figures import figures
from zopilot_gpu.bench.load import closed_loop
from zopilot_gpu.bench.workload import Body

BASELINE = "fastapi"
MANY = 32
_WARM_UP_SEED = 999


def measure(rounds: int, num_alone: int, num_many: int, seed: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Asks every system `num_alone` questions by one caller, then `num_many` by `MANY` callers, in every round."""
    questions = asked(seed, max(num_alone, num_many))
    phases = {"1": (1, KEYS[0], questions[:num_alone]), str(MANY): (MANY, KEYS[1], questions[:num_many])}
    runs: list[dict[str, dict[str, Any]]] = []
    texts: dict[int, set[str]] = {}
    for number in range(rounds):
        run: dict[str, dict[str, Any]] = {}
        for system in SYSTEMS[number % len(SYSTEMS) :] + SYSTEMS[: number % len(SYSTEMS)]:
            with served(system) as url:
                for callers, (num_callers, key, bodies) in phases.items():
                    records, outputs = asyncio.run(_ask(url, key, bodies, num_callers))
                    run.setdefault(system, {})[callers] = found = figures(records)
                    for index, output in enumerate(outputs):
                        texts.setdefault(index, set()).add(str(output))
                    say(f"round {number + 1}, {system}, {callers} at once: {found['requests_per_s']:.2f} requests/s")
        runs.append(run)
    systems = {system: {callers: _summary(runs, system, callers) for callers in phases} for system in SYSTEMS}
    num_differing = sum(len(said) > 1 for said in texts.values())
    return {"systems": systems, "num_texts": len(texts), "num_texts_that_differ": num_differing, "rounds": rounds, "seed": seed}


async def _ask(url: str, key: str, bodies: Sequence[Body], num_callers: int) -> tuple[list[Record], list[Any]]:
    """The records, and the outputs in the order of `bodies`."""
    outputs: dict[int, Any] = {}
    async with Client(url, key, timeout_s=3600) as client:

        async def ask(body: Body, due_s: float) -> Record:
            record = await client.ask(body, due_s)
            outputs[id(body)] = record.output
            return record

        await closed_loop(client.ask, asked(_WARM_UP_SEED, 4), 1)
        records = await closed_loop(ask, bodies, num_callers)
    return records, [outputs[id(body)] for body in bodies]


def _summary(runs: Sequence[dict[str, dict[str, Any]]], system: str, callers: str) -> dict[str, Any]:
    mine = [run[system][callers] for run in runs]
    ratios = [run[system][callers]["requests_per_s"] / run[BASELINE][callers]["requests_per_s"] for run in runs]
    return {
        "requests_per_s": median(one["requests_per_s"] for one in mine),
        "output_tokens_per_s": median(one["output_tokens_per_s"] for one in mine),
        "latency_p50_s": median(one["latency_s"]["p50"] for one in mine),
        "ratio_to_baseline": round(median(ratios), 2),
        "ratios": [round(ratio, 2) for ratio in ratios],
        "num_requests": mine[0]["num_requests"],
        "num_errors": sum(sum(one["errors"].values()) for one in mine),
        "cached_tokens": max(one["tokens"]["cached"] for one in mine),
    }


def table(found: dict[str, Any]) -> Table:
    """The medians."""
    shown = Table("service", "callers", "requests/s", "tokens/s", "p50, ms", f"requests/s to {BASELINE}", "errors")
    for system, phases in found["systems"].items():
        for callers, one in phases.items():
            rates = (f"{one['requests_per_s']:.2f}", f"{one['output_tokens_per_s']:.0f}")
            latency = f"{one['latency_p50_s'] * 1000:,.0f}"
            spread = f"{one['ratio_to_baseline']:.2f} ({min(one['ratios']):.2f} to {max(one['ratios']):.2f})"
            shown.add_row(system, callers, *rates, latency, spread, str(one["num_errors"]))
    return shown


def is_sound(found: dict[str, Any]) -> bool:
    """Whether every question was answered, by all systems alike, and none from the prefix cache."""
    summaries = [one for phases in found["systems"].values() for one in phases.values()]
    return not found["num_texts_that_differ"] and not any(one["num_errors"] for one in summaries)
