"""What a second engine in one service adds: on the CPU, and where the model only waits, as it does for a card.

    python -m benchmarks.engines                 # the demo model on 1 and 2 engines; then 1, 2 and 4 whose model waits 10 ms

On the CPU engines share the cores, so two can't be faster than one by much; the second table shows what the structure itself
costs: one interpreter, one event loop, a thread for each engine.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence as Rows
from contextlib import aclosing
from dataclasses import replace
from unittest import mock

import torch

from benchmarks.machine import describe
from runners.background import BackgroundRunner
from zopilot_gpu.events import GREEDY, Done, Job
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.settings import Settings

_WAIT_S = 0.010
_ROUNDS = 3
_CALLERS = 16  # for each engine
_TOKENS = 64
_SAMPLING = replace(GREEDY, min_tokens=_TOKENS)
_LIKELY = 300  # a token that is nothing special


def _wait(model: Mixtral, batch: Batch, pools: Rows[torch.Tensor]) -> torch.Tensor:  # noqa: ARG001
    """In the place of `Mixtral.forward`, as if on a card: a step takes 10 ms in which nobody needs a core."""
    time.sleep(_WAIT_S)
    logits = torch.zeros(len(batch.logit_rows), model.config.vocab_size)
    logits[:, _LIKELY] = 1.0
    return logits


async def started(num_engines: int) -> BackgroundRunner:
    """A runner over the demo model, ready."""
    runner = BackgroundRunner(Settings(allow_anonymous=True, model="demo", device="cpu", num_engines=num_engines))
    while runner.state().phase == "loading":  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    return runner


async def one_round(runner: BackgroundRunner, num_callers: int) -> tuple[float, float]:
    """Tokens and steps a second with so many callers at once."""
    before, began_s = _steps(runner), time.monotonic()
    counts = await asyncio.gather(*(_ask(runner, number) for number in range(num_callers)))
    took_s = time.monotonic() - began_s
    return sum(counts) / took_s, (_steps(runner) - before) / took_s


def _steps(runner: BackgroundRunner) -> int:
    stats = runner.state().engine
    return stats.num_steps if stats else 0


async def _ask(runner: BackgroundRunner, number: int) -> int:
    job = Job(f"{number}", f"Say {number}.", None, _TOKENS, _SAMPLING, (), time.monotonic() + 600)
    async with aclosing(runner.generate(job)) as events:
        async for event in events:
            if isinstance(event, Done):
                return event.usage.completion_tokens
    return 0


async def compare(counts: Rows[int], callers: int | None) -> None:
    """A table: engines, tokens and steps a second, and both beside one engine's. Rounds go in turns, medians are told."""
    runners = {count: await started(count) for count in counts}
    rounds: dict[int, list[tuple[float, float]]] = {count: [] for count in counts}
    for _ in range(_ROUNDS):
        for count, runner in runners.items():
            rounds[count].append(await one_round(runner, callers or _CALLERS * count))
    for runner in runners.values():
        await runner.close()
    print("engines   tokens/s   ratio   steps/s   ratio")
    ones = rounds[counts[0]]
    for count, told in rounds.items():
        tokens, steps = (statistics.median(one[column] for one in told) for column in (0, 1))
        ratios = [
            statistics.median(one[column] / first[column] for one, first in zip(told, ones, strict=True)) for column in (0, 1)
        ]
        print(f"{count:7d} {tokens:10.0f} {ratios[0]:7.2f} {steps:9.1f} {ratios[1]:7.2f}")


def main() -> None:
    """Both tables."""
    print(describe())
    print("\nthe demo model on the CPU, 32 callers")
    asyncio.run(compare((1, 2), callers=32))
    print(f"\na model that waits {_WAIT_S * 1000:.0f} ms a step, {_CALLERS} callers for each engine")
    with mock.patch.object(Mixtral, "forward", _wait):
        asyncio.run(compare((1, 2, 4), callers=None))


if __name__ == "__main__":
    main()
