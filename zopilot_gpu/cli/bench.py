"""`zopilot-gpu bench serve` loads a running service and says how it answered; `bench gpu` measures a card.

Standard output gets tables and, as its last line, one line of JSON with all figures; the progress bar goes to standard error.
"""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from runners.environment import set_before_torch
from zopilot_gpu.bench.workload import Mix, Plan, Span
from zopilot_gpu.cli.common import fail, read_object

app = typer.Typer(no_args_is_help=True, help="Measure.")
_NUM_CALLERS = 8
_NUM_REQUESTS = 100
_SECTIONS = ("check", "kernels", "model", "baseline", "nested", "load")


@app.command()
def serve(  # noqa: PLR0913  (one parameter an option)
    *,
    callers: Annotated[int | None, typer.Option(min=1, help=f"Closed loop: so many at once; {_NUM_CALLERS}.")] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Open loop: requests a second, Poisson arrivals.")] = None,
    requests: Annotated[int | None, typer.Option(min=1, help=f"How many; {_NUM_REQUESTS} where no duration is given.")] = None,
    duration: Annotated[float | None, typer.Option(min=0.1, help="Begin none after so many seconds.")] = None,
    prompt_words: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Words of a prompt.")] = "20:200",
    max_tokens: Annotated[str, typer.Option(metavar="LOW:HIGH", help="Most tokens of an answer.")] = "8:64",
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    shared_prefix_words: Annotated[int, typer.Option(min=0, help="Words before those, the same for all that share.")] = 0,
    shared_share: Annotated[float, typer.Option(min=0, max=1, help="The share of requests that share them.")] = 1.0,
    schema: Annotated[typer.FileText | None, typer.Option(help="A file with a JSON Schema for the answers.")] = None,
    seed: Annotated[int, typer.Option(help="Of all that is drawn; the same prompts again are found in the prefix cache.")] = 0,
    warm_up: Annotated[int, typer.Option(min=0, help="Requests before the measured ones, in no figure.")] = 4,
    retry: Annotated[bool, typer.Option("--retry", help="Wait out Retry-After; otherwise a 429 or 503 is an error.")] = False,
    timeout: Annotated[float, typer.Option(min=0.1, help="Longest wait for an answer, in seconds.")] = 600.0,
    plot: Annotated[Path | None, typer.Option(help="Write a plot to this SVG file.", dir_okay=False)] = None,
    url: Annotated[str, typer.Option(help="Where the service is.", envvar="ZOPILOT_GPU_URL")] = "http://127.0.0.1:3000",
    key: Annotated[str, typer.Option(help="The API key.", envvar="ZOPILOT_GPU_API_KEY")] = "",
) -> None:
    """Send streamed requests to a running service and measure its answers; status 1 when none was complete."""
    if callers and rate:
        raise typer.BadParameter("--callers is a closed loop and --rate an open one: choose one.")
    words, tokens = _span("--prompt-words", prompt_words), _span("--max-tokens", max_tokens)
    mix = Mix(words, tokens, shared_prefix_words, shared_share, temperature, None if schema is None else read_object(schema))
    if requests is None and duration is None:
        requests = _NUM_REQUESTS
    plan = Plan(mix, callers or _NUM_CALLERS, rate, requests, duration, warm_up, seed)
    from zopilot_gpu.bench import serve as bench  # noqa: PLC0415  (its aiohttp takes 0.3 s, which no other command needs)

    try:
        first_key = key.partition(",")[0].strip()
        report = bench.serve(plan, url, first_key, retry=retry, timeout_s=timeout, plot=plot)
    except bench.CanNotRun as error:
        fail(str(error))
    typer.echo(json.dumps(report))
    raise typer.Exit(0 if report["figures"]["num_succeeded"] else 1)


@app.command()
def gpu(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, a minute or two.")] = False,
    demo: Annotated[bool, typer.Option("--demo", help="All of it at a tiny size on the CPU: figures mean nothing.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="SECTION", help=f"Only these: {', '.join(_SECTIONS)}.")] = None,
    file: Annotated[Path | None, typer.Option("--json", help="Write the report here as it grows.", dir_okay=False)] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a roofline to this SVG file.", dir_okay=False)] = None,
) -> None:
    """Measure a card: correctness, kernels, the full-size model made up, loading; status 1 when anything is wrong."""
    if unknown := set(only or ()) - set(_SECTIONS):
        raise typer.BadParameter(f"--only: there is no section {min(unknown)!r}; there are {', '.join(_SECTIONS)}.")
    set_before_torch()
    import torch  # noqa: PLC0415  (it takes seconds, which no other command needs)

    if demo:
        torch.set_num_threads(1)  # as the runner has it for a model as small: threads would wait for each other
    if not demo and not torch.cuda.is_available():
        fail("torch finds no usable GPU and driver; --demo runs all of it at a tiny size on the CPU.")
    from zopilot_gpu.bench.gpu import run, sizes  # noqa: PLC0415

    chosen = sizes.TINY if demo else sizes.QUICK if quick else sizes.FULL
    device = torch.device("cpu" if demo else "cuda")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    report = run.run(chosen, device, only or (), file, plot, console)
    typer.echo(json.dumps(report))
    raise typer.Exit(1 if report["failures"] else 0)


def _span(option: str, text: str) -> Span:
    try:
        return Span.parse(text)
    except ValueError:
        raise typer.BadParameter(f"{option}: {text!r} is neither LOW:HIGH nor a number, from 1 on.") from None
