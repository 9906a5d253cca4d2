"""Our service against the one that it replaces, on this machine's CPU with the demo model. Starts all that it asks.

    throughput   requests/s and latency, both backends and the FastAPI baseline, 1 and 32 callers; texts must be equal
    http         what HTTP adds to one answer
    prefix       the time to the first token with and without hits in the prefix cache

Try it: `python -m benchmarks.compare` (about 15 minutes on 2 cores), or `python -m benchmarks.compare http prefix`.
"""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import http_cost, shared_prefix, throughput
from benchmarks.machine import describe

PARTS = ("throughput", "http", "prefix")


def main(
    parts: Annotated[list[str] | None, typer.Argument(help="Which of throughput, http, prefix; all by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Of the throughput, each with fresh services.")] = 3,
    alone: Annotated[int, typer.Option(min=1, help="Questions of one caller, a round.")] = 32,
    many: Annotated[int, typer.Option(min=1, help=f"Questions of {throughput.MANY} callers together, a round.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Pairs of the other two parts.")] = 100,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 7,
) -> None:
    """Measure, print tables, and end with a line of JSON; status 1 when a text differed or a question failed."""
    if unknown := set(parts or PARTS) - set(PARTS):
        raise typer.BadParameter(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}.")
    console, progress = Console(highlight=False, width=100), Console(stderr=True, highlight=False)
    report: dict[str, Any] = {"command": "compare", "machine": describe()}
    sound = True
    for part in parts or PARTS:
        if part == "throughput":
            found = throughput.measure(rounds, alone, many, seed, progress.print)
            sound = throughput.is_sound(found)
            console.print(throughput.table(found))
            console.print(f"{found['num_texts_that_differ']} of {found['num_texts']} texts differ between services or callers.")
        elif part == "http":
            found = http_cost.measure(repeats)
            console.print(http_cost.table(found))
        else:
            found = shared_prefix.measure(repeats, seed)
            console.print(shared_prefix.table(found))
        report[part] = found
    typer.echo(json.dumps(report))
    raise typer.Exit(int(not sound))


if __name__ == "__main__":
    typer.run(main)
