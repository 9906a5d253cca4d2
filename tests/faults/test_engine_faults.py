"""Faults in a step, at any step: who is concerned gets the right error, the others their right text, the engine goes on.

1,000 injections: `ZOPILOT_GPU_ENGINE_FAULTS=1000 python -m pytest tests/faults/test_engine_faults.py -s --timeout=1500`.
"""

import asyncio
import os
import random
import threading
from collections import Counter
from collections.abc import Callable

import pytest
import torch

from tests.twins import test_engine as twin
from zopilot_gpu import log
from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.engine import Drawn, Engine
from zopilot_gpu.engine.loop import EngineLoop, Mailbox
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import InternalError, OutOfMemory, ServiceError
from zopilot_gpu.model.mixtral import Mixtral

model, prompts = twin.model, twin.prompts
NUM_FAULTS = int(os.environ.get("ZOPILOT_GPU_ENGINE_FAULTS", "40"))
SEED = 20261123


@pytest.fixture(autouse=True)
def _short_lines() -> None:
    """As in the service; unconfigured, structlog draws every failure with all local variables, for seconds."""
    log.configure("error")


def raising(error: Exception) -> Callable[..., object]:
    def fail(*_: object, **__: object) -> object:
        raise error

    return fail


def poison(it: Engine, victim: Sequence) -> None:
    for pool in it._pools:
        pool[:, victim.block_ids[0]] = float("nan")


FAULTS: dict[str, tuple[type[ServiceError], Callable[[pytest.MonkeyPatch, Engine], None]]] = {
    "out of memory": (OutOfMemory, lambda patch, it: patch.setattr(it, "_forward", raising(torch.OutOfMemoryError()))),
    "sampler": (InternalError, lambda patch, it: patch.setattr(sampler, "sample", raising(ValueError()))),
    "scheduler": (InternalError, lambda patch, it: patch.setattr(it.scheduler, "advance", raising(KeyError()))),
    "block map": (InternalError, lambda patch, it: it.scheduler.pool._owners.__setitem__(0, -(10**6))),
}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():  # noqa: ASYNC110  (the engine's thread sets no event)
            await asyncio.sleep(0.01)


async def first_tokens(mailbox: Mailbox, number: int) -> None:
    """Waits until a sequence has got some tokens."""
    for _ in range(number):
        assert isinstance(await asyncio.wait_for(mailbox.arrived.get(), 120), Drawn)


async def test_a_broken_turn_ends_what_is_in_flight_with_the_right_error_and_the_engine_goes_on(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(SEED)
    it = twin.engine(model)
    loop = EngineLoop(it, asyncio.get_running_loop())
    after = Sequence("after", prompts[0], 8)
    expected = twin.alone(model, after)
    counts: Counter[str] = Counter()
    for number in range(NUM_FAULTS):
        name = dice.choice(list(FAULTS))
        error, inject = FAULTS[name]
        doomed = [loop.submit(Sequence(f"{number}-{n}", dice.choice(prompts), 400)) for n in range(3)]
        await first_tokens(doomed[2], dice.randint(1, 4))
        with monkeypatch.context() as patch:
            inject(patch, it)
            if name == "block map":  # noticed when nothing runs
                for mailbox in doomed:
                    loop.abort(mailbox)
                await until(lambda: it.scheduler.pool._owners[0] == 0)
            else:
                assert {type(await twin.collect(mailbox)) for mailbox in doomed} == {error}
        assert await twin.collect(loop.submit(Sequence("after", prompts[0], 8))) == expected
        counts[name] += 1
    assert it.scheduler.pool.num_available == it.scheduler.pool.num_blocks
    await loop.close()
    it.scheduler.check()
    print(dict(counts), f"{loop.num_failures} failures, seed {SEED}")  # noqa: T201  (the figure)


async def test_a_sequence_that_can_never_fit_is_refused_and_takes_nobody_along(
    model: Mixtral, prompts: list[list[int]]
) -> None:
    loop = EngineLoop(twin.engine(model, num_blocks=16), asyncio.get_running_loop())
    long, short = loop.submit(Sequence("long", prompts[0], 10**6)), loop.submit(Sequence("short", prompts[1], 8))
    assert isinstance(await twin.collect(long), InternalError)
    assert await twin.collect(short) == twin.alone(model, short.sequence)
    await loop.close()


async def test_a_step_that_hangs_shows_and_so_does_its_end(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = twin.engine(model)
    loop = EngineLoop(it, asyncio.get_running_loop())
    forward = it._forward

    goes_on = threading.Event()

    def slow(*args: object) -> object:
        goes_on.wait(120)
        return forward(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(it, "_forward", slow)
    hanging = loop.submit(Sequence("hanging", prompts[0], 1))
    await until(lambda: loop.stalled_s > 1)
    goes_on.set()
    assert isinstance(await twin.collect(hanging), list)
    await until(lambda: loop.stalled_s < 0.6)
    await loop.close()
