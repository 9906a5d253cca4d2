"""The engine alone, demo model, on the CPU: how long a step takes by the number of sequences in it and by their length.

Every sequence decodes: one token each a step, drawn greedily. Sizes are measured in turn over several rounds, so that a busy
moment of the machine hits all of them; the figures are medians. NOTE: the model is so small that a step is mostly the cost of
calling torch; shares of a GPU's step are others.

Try it: `python -m benchmarks.step_time --plot steps.svg`.
"""

import json
import random
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from runners.environment import set_before_torch
from zopilot_gpu.bench import plot as plots

if TYPE_CHECKING:
    from zopilot_gpu.engine.engine import Engine

BATCHES = (1, 2, 4, 8, 16, 32, 64)
CONTEXTS = (32, 64, 128, 256, 512, 1024, 2000)
_BATCH_CONTEXT = 128  # tokens of each sequence while the batch grows
_CONTEXT_BATCHES = (1, 8)  # sequences while the context grows
_MAX_POSITION = 2048  # of the demo model
_STEPS = 12  # of one measurement; a context grows by as many tokens


def main(
    rounds: Annotated[int, typer.Option(min=1, help="How often each size is measured.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Write a plot to this SVG file.", dir_okay=False)] = None,
) -> None:
    """Measure and print."""
    set_before_torch()
    sizes = [(batch, _BATCH_CONTEXT) for batch in BATCHES]
    sizes += [(batch, context) for batch in _CONTEXT_BATCHES for context in CONTEXTS if context != _BATCH_CONTEXT]
    engine = _engine()
    taken: dict[tuple[int, int], list[float]] = {size: [] for size in sizes}
    for _ in range(rounds + 1):
        for size in sizes:
            taken[size].append(_step_ms(engine, *size))
    step_ms = {size: round(median(values[1:]), 3) for size, values in taken.items()}  # the first round warms up
    by_batch = {batch: step_ms[batch, _BATCH_CONTEXT] for batch in BATCHES}
    by_context = {batch: {context: step_ms[batch, context] for context in CONTEXTS} for batch in _CONTEXT_BATCHES}
    _show(by_batch, by_context)
    if plot:
        _draw(by_batch, by_context, plot)
    machine = describe()
    report: dict[str, Any] = {"command": "step_time", "machine": machine, "rounds": rounds}
    typer.echo(json.dumps(report | {"step_ms_by_batch": by_batch, "step_ms_by_context": by_context}))


def _engine() -> "Engine":
    """An engine as the Mixtral backend makes it on a CPU, but without the prefix cache."""
    import torch

    from runners.weights import load_source
    from zopilot_gpu.demo import MODEL
    from zopilot_gpu.engine.blocks import BlockPool
    from zopilot_gpu.engine.engine import Engine
    from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, make_pools, pool_size
    from zopilot_gpu.engine.scheduler import Scheduler
    from zopilot_gpu.model.config import MixtralConfig

    cpu, dtype = torch.device("cpu"), torch.float32
    config = MixtralConfig.from_json(json.loads((MODEL / "config.json").read_bytes()))
    size = pool_size(config, dtype, cpu, max_tokens=max(CONTEXTS) * max(BATCHES))
    blocks = BlockPool(size.num_blocks, BLOCK_SIZE, share_prefixes=False)
    scheduler = Scheduler(blocks, max_step_tokens=512, max_running=max(BATCHES))
    return Engine(load_source(MODEL, config, dtype, cpu, lambda *_: None), make_pools(config, size, dtype, cpu), scheduler)


def _step_ms(engine: "Engine", batch: int, context: int) -> float:
    """The median step with `batch` sequences that decode at about `context` tokens."""
    from zopilot_gpu.engine.sequence import Sequence

    rng = random.Random(f"{batch} {context}")
    for number in range(batch):
        ids = [rng.randrange(3, 1000) for _ in range(context)]
        engine.scheduler.add(Sequence(str(number), ids, max_tokens=_MAX_POSITION - context))
    while engine.scheduler.waiting or any(not sequence.output_ids for sequence in engine.scheduler.running):
        engine.step()
    taken = []
    for _ in range(_STEPS):
        began_s = time.perf_counter()
        drawn = engine.step()
        taken.append((time.perf_counter() - began_s) * 1000)
        if len(drawn) != batch:
            raise RuntimeError(f"{len(drawn)} of {batch} sequences ran")
    for sequence in list(engine.scheduler.running):
        engine.scheduler.remove(sequence)
    return median(taken)


def _show(by_batch: dict[int, float], by_context: dict[int, dict[int, float]]) -> None:
    console = Console(highlight=False, width=100)
    table = Table("sequences", "step, ms", "tokens/s", title=f"by batch size, {_BATCH_CONTEXT} tokens of context")
    for batch, step_ms in by_batch.items():
        table.add_row(str(batch), f"{step_ms:.2f}", f"{batch / step_ms * 1000:,.0f}")
    console.print(table)
    columns = [f"{batch} sequence{'s' * (batch > 1)}, ms" for batch in by_context]
    table = Table("context", *columns, title="by context length")
    for context in CONTEXTS:
        table.add_row(str(context), *(f"{steps[context]:.2f}" for steps in by_context.values()))
    console.print(table)


def _draw(by_batch: dict[int, float], by_context: dict[int, dict[int, float]], path: Path) -> None:
    figure, (left, right) = plots.new_figure(2)
    left.plot(list(by_batch), list(by_batch.values()), marker="o")
    left.set(xlabel=f"sequences in a step ({_BATCH_CONTEXT} tokens of context)", ylabel="step, milliseconds", ylim=(0, None))
    for batch, steps in by_context.items():
        right.plot(list(steps), list(steps.values()), marker="o", label=f"{batch} sequence{'s' * (batch > 1)}")
    right.set(xlabel="tokens of context", ylabel="step, milliseconds", ylim=(0, None))
    right.legend()
    plots.save(figure, path)


if __name__ == "__main__":
    typer.run(main)
