"""Two owners on one scheduler, one of them flooding: what the other waits, counted in the time of steps.

The time of a step is modelled as a base and a constant for each token.
"""

import random

import pytest

from tests.unit.engine.test_scheduler import take
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence

BASE_TOKENS = 6
FLOOD, QUIET = b"flood", b"quiet"


def scheduler(num_blocks: int = 600, max_running: int = 16) -> Scheduler:
    pool = BlockPool(num_blocks, 4)
    return Scheduler(pool, max_step_tokens=128, max_running=max_running, step_base_tokens=BASE_TOKENS)


def sequence(owner: bytes, dice: random.Random, max_tokens: int) -> Sequence:
    return Sequence("r", [dice.randrange(100) for _ in range(dice.randint(20, 40))], max_tokens, salt=owner)


def step(it: Scheduler) -> tuple[float, list[Sequence]]:
    """One step as an engine does it: its time in tokens, and who is finished."""
    items = it.schedule()
    return BASE_TOKENS + sum(item.num_tokens for item in items), take(it, items)


def latencies(it: Scheduler, *, num_flooding: int, flood_tokens: int, count: int = 40) -> list[float]:
    """How long the quiet owner's requests take, one after the other, while the other keeps `num_flooding` in flight."""
    dice = random.Random(3)
    flood = list[Sequence]()
    found = list[float]()

    def fill() -> None:
        while len(flood) < num_flooding:
            flood.append(sequence(FLOOD, dice, flood_tokens))
            it.add(flood[-1])

    for _ in range(count):
        for _ in range(5):  # the flood is in full swing when the quiet one comes
            fill()
            for one in step(it)[1]:
                flood.remove(one)
        asked = sequence(QUIET, random.Random(len(found)), 30)
        it.add(asked)
        took = 0.0
        while len(asked.output_ids) < 30:
            fill()
            time, finished = step(it)
            took += time
            flood[:] = [one for one in flood if one not in finished]
        found.append(took)
    it.check()
    return found


def p95(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.95)]


@pytest.mark.parametrize("flood_tokens", [5, 40, 400])
@pytest.mark.parametrize("num_blocks", [600, 200])
def test_one_who_floods_at_most_doubles_what_another_waits(num_blocks: int, flood_tokens: int) -> None:
    alone = latencies(scheduler(num_blocks), num_flooding=0, flood_tokens=1)
    flooded = latencies(scheduler(num_blocks), num_flooding=48, flood_tokens=flood_tokens)
    assert p95(flooded) <= 2 * p95(alone), (p95(alone), p95(flooded))


def test_who_is_alone_pays_nothing() -> None:
    it, dice = scheduler(), random.Random(1)
    for _ in range(16):
        it.add(sequence(FLOOD, dice, 8))
    assert sum(item.num_tokens for item in it.schedule()) == 128


def test_equals_are_not_held_back() -> None:
    it, dice = scheduler(max_running=64), random.Random(1)
    for owner in (FLOOD, QUIET):
        for _ in range(20):
            it.add(sequence(owner, dice, 50))
    for _ in range(20):
        step(it)
    assert len(it.schedule()) == 40


def test_those_who_are_held_back_take_turns() -> None:
    it, dice = scheduler(), random.Random(1)
    flood = [sequence(FLOOD, dice, 200) for _ in range(15)]
    for one in flood:
        it.add(one)
    for _ in range(20):
        step(it)
    it.add(sequence(QUIET, dice, 100))
    before = [len(one.output_ids) for one in flood]
    for _ in range(50):
        step(it)
    gained = [len(one.output_ids) - was for one, was in zip(flood, before, strict=True)]
    assert min(gained) >= max(gained) - 2 > 0


def test_slots_and_blocks_are_taken_from_who_holds_more_than_a_share() -> None:
    it, dice = scheduler(num_blocks=90, max_running=8), random.Random(1)
    for _ in range(30):
        it.add(sequence(FLOOD, dice, 100))
    for _ in range(12):
        step(it)
    assert len(it.running) == 8
    asked = sequence(QUIET, dice, 10)
    it.add(asked)
    assert asked in [item.sequence for item in it.schedule()]
    it.check()


@pytest.mark.parametrize("seed", range(20))
def test_owners_of_any_number_finish_in_full_on_a_pool_that_is_too_small(seed: int) -> None:
    dice = random.Random(seed)
    it = scheduler(dice.randint(25, 80), dice.randint(1, 9))
    coming = [sequence(dice.choice([b"a", b"b", b"c", b"d"]), dice, dice.randint(1, 50)) for _ in range(40)]
    finished = list[Sequence]()
    for _ in range(50_000):
        if coming and dice.random() < 0.3:
            it.add(coming.pop())
        finished += step(it)[1]
        if len(finished) == 40:
            break
    assert all(one.output_ids == list(range(1000, 1000 + one.max_tokens)) for one in finished)
    assert len(finished) == 40
    it.check()
    assert it.pool.num_available == it.pool.num_blocks
