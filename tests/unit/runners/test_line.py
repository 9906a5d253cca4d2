"""Holds the waiting lines: first come, first served, bounded, and no way to lose the slot."""

import asyncio
import itertools
import random
import time
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from runners import line as module
from runners.line import Admission, WaitingLine
from zopilot_gpu.errors import DeadlineExceeded, Overloaded

NUM_TASKS = 400
SEEDS = range(5)


def soon() -> float:
    return time.monotonic() + 120


async def turns(number: int = 5) -> None:
    """Lets every task that can run do so."""
    for _ in range(number):
        await asyncio.sleep(0)


def counts(line: WaitingLine) -> tuple[int, int]:
    return line.num_running, line.num_waiting


async def test_places_are_given_in_the_order_of_arrival() -> None:
    line, order = WaitingLine(10), []

    async def take(number: int) -> None:
        await line.acquire(soon())
        order.append(number)
        await asyncio.sleep(0)
        line.release()

    await asyncio.gather(*(take(number) for number in range(10)))
    assert order == list(range(10))
    assert counts(line) == (0, 0)


async def test_a_newcomer_does_not_overtake_during_the_handover() -> None:
    line, order = WaitingLine(10), []
    await line.acquire(soon())
    waiter = asyncio.create_task(line.acquire(soon()))
    await turns()
    line.release()  # the waiter is told, and has not run yet
    newcomer = asyncio.create_task(line.acquire(soon()))
    waiter.add_done_callback(lambda _: order.append("waiter"))
    newcomer.add_done_callback(lambda _: order.append("newcomer"))
    await turns()
    assert order == ["waiter"]
    line.release()
    await newcomer
    line.release()
    assert counts(line) == (0, 0)


@pytest.mark.parametrize("max_waiting", [0, 1, 3])
async def test_one_runs_and_only_so_many_wait(max_waiting: int) -> None:
    line = WaitingLine(max_waiting)
    await line.acquire(soon())
    waiters = [asyncio.create_task(line.acquire(soon())) for _ in range(max_waiting)]
    await turns()
    assert counts(line) == (1, max_waiting)
    with pytest.raises(Overloaded):
        line.refuse_when_full()
    with pytest.raises(Overloaded):
        await line.acquire(soon())
    assert counts(line) == (1, max_waiting)
    for waiter in waiters:
        line.release()
        await waiter
    line.release()
    assert counts(line) == (0, 0)
    line.refuse_when_full()


def retry_after(line: WaitingLine) -> int:
    with pytest.raises(Overloaded) as refusal:
        line.refuse_when_full()
    assert refusal.value.retry_after_s is not None
    return refusal.value.retry_after_s


async def test_retry_after_grows_with_the_observed_length_of_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    line, told = WaitingLine(0), []
    for turn_s in [10] * 30 + [0.1] * 60:
        await line.acquire(clock.now_s + 60)
        told.append(retry_after(line))
        clock.now_s += turn_s
        line.release()
    growing, shrinking = told[:30], told[30:]
    assert growing == sorted(growing)
    assert (growing[0], growing[-1]) == (1, 10)
    assert shrinking == sorted(shrinking, reverse=True)
    assert shrinking[-1] == 1


async def test_retry_after_grows_with_the_length_of_the_line() -> None:
    told = []
    for max_waiting in (0, 2, 5):
        line = WaitingLine(max_waiting)
        await line.acquire(soon())
        waiters = [asyncio.create_task(line.acquire(soon())) for _ in range(max_waiting)]
        await turns()
        told.append(retry_after(line))
        for waiter in waiters:
            waiter.cancel()
        await asyncio.gather(*waiters, return_exceptions=True)
    assert told == [1, 3, 6]


@pytest.mark.parametrize("left_s", [0.02, 0.0, -1.0])
async def test_a_deadline_ends_the_wait_and_gives_the_place_back(left_s: float) -> None:
    line = WaitingLine(1)
    await line.acquire(soon())
    with pytest.raises(DeadlineExceeded):
        await line.acquire(time.monotonic() + left_s)
    assert counts(line) == (1, 0)
    waiter = asyncio.create_task(line.acquire(soon()))  # there is room again
    await turns()
    line.release()
    await waiter
    line.release()
    assert counts(line) == (0, 0)


async def test_a_deadline_that_has_passed_is_refused_though_the_slot_is_free() -> None:
    line = WaitingLine(1)
    with pytest.raises(DeadlineExceeded):
        await line.acquire(time.monotonic() - 1)
    assert counts(line) == (0, 0)


async def test_a_waiter_cancelled_as_its_turn_comes_passes_it_on() -> None:
    line = WaitingLine(2)
    await line.acquire(soon())
    first, second = asyncio.create_task(line.acquire(soon())), asyncio.create_task(line.acquire(soon()))
    await turns()
    line.release()  # the first is told, and has not run yet
    first.cancel()
    await asyncio.wait_for(second, 60)
    assert first.cancelled()
    assert counts(line) == (1, 0)
    line.release()
    assert counts(line) == (0, 0)


@pytest.mark.parametrize("seed", SEEDS)
async def test_cancellation_and_deadlines_at_any_moment_never_lose_the_slot(seed: int) -> None:
    draw, line, holders = random.Random(seed), WaitingLine(5), itertools.count()
    held, outcomes = set[int](), dict[str, int]()

    def note(outcome: str) -> None:
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    async def take() -> None:
        try:
            await line.acquire(time.monotonic() + draw.choice([0.0, 0.0005, 0.002, 120, 120]))
        except (DeadlineExceeded, Overloaded, asyncio.CancelledError) as end:
            note(type(end).__name__)
            return
        holder = next(holders)
        held.add(holder)
        try:
            assert held == {holder}
            assert line.num_running == 1
            await asyncio.sleep(draw.choice([0, 0, 0.0003, 0.001]))
            note("served")
        except asyncio.CancelledError:
            note("cancelled while served")
        finally:
            held.remove(holder)
            line.release()

    tasks = []
    for _ in range(NUM_TASKS):
        tasks.append(asyncio.create_task(take()))
        if draw.random() < 0.4:
            draw.choice(tasks[-8:]).cancel()
        await asyncio.sleep(draw.choice([0, 0, 0, 0.0005]))
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 120)
    assert [task.exception() for task in tasks if not task.cancelled() and task.exception()] == []
    assert {"served", "CancelledError", "DeadlineExceeded", "Overloaded"} <= set(outcomes), outcomes
    assert counts(line) == (0, 0)
    await asyncio.wait_for(line.acquire(soon()), 60)
    line.release()


async def test_owners_take_turns_however_many_each_has_put_in() -> None:
    line, order = WaitingLine(100), []
    await line.acquire(soon(), b"a")

    async def take(owner: bytes, number: int) -> None:
        await line.acquire(soon(), owner)
        order.append(f"{owner.decode()}{number}")
        await asyncio.sleep(0)
        line.release()

    tasks = [asyncio.create_task(take(b"a", number)) for number in range(5)]
    await turns()
    tasks += [asyncio.create_task(take(b"b", number)) for number in range(2)]
    await turns()
    line.release()
    await asyncio.gather(*tasks)
    assert order == ["a0", "b0", "a1", "b1", "a2", "a3", "a4"]
    assert counts(line) == (0, 0)


async def test_a_line_that_one_owner_has_filled_still_takes_another_up_to_its_share() -> None:
    line = WaitingLine(4)
    await line.acquire(soon(), b"a")
    waiters = [asyncio.create_task(line.acquire(soon(), b"a")) for _ in range(4)]
    await turns()
    with pytest.raises(Overloaded):
        line.refuse_when_full(b"a")
    waiters += [asyncio.create_task(line.acquire(soon(), b"b")) for _ in range(2)]
    await turns()
    assert line.num_waiting == 6
    for owner in (b"a", b"b"):
        with pytest.raises(Overloaded):
            line.refuse_when_full(owner)
    line.refuse_when_full(b"c")
    for waiter in waiters:
        waiter.cancel()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert counts(line) == (1, 0)


def test_admission_lets_an_owner_in_that_holds_less_than_its_share_of_a_full_line() -> None:
    line = Admission(num_slots=2, num_room_tokens=100, max_waiting=4, max_waiting_tokens=100)
    with ExitStack() as inside:
        for _ in range(6):
            inside.enter_context(line.enter(10, b"a"))
        for _ in range(3):  # half of six
            inside.enter_context(line.enter(10, b"b"))
        for owner in (b"a", b"b"):
            with pytest.raises(Overloaded):
                line.refuse_when_full(1, owner)
        inside.enter_context(line.enter(10**6, b"c"))  # its first, whatever the model takes
        with pytest.raises(Overloaded):
            line.refuse_when_full(1, b"c")  # too many tokens
    assert line.num_in_flight == 0
    with ExitStack() as inside:  # nobody else is there: the whole line is its own
        for _ in range(6):
            inside.enter_context(line.enter(10, b"b"))


def test_admission_is_bounded_by_requests_and_by_tokens_and_forgets_who_has_left() -> None:
    line = Admission(num_slots=2, num_room_tokens=100, max_waiting=1, max_waiting_tokens=50)
    with ExitStack() as inside:
        for _ in range(3):
            inside.enter_context(line.enter(10))
        with pytest.raises(Overloaded):
            line.refuse_when_full()
    with ExitStack() as inside:
        inside.enter_context(line.enter(100))
        inside.enter_context(line.enter(50))
        line.refuse_when_full(0)
        with pytest.raises(Overloaded) as refusal:
            line.refuse_when_full(1)
        assert refusal.value.retry_after_s
    assert line.num_in_flight == 0
    with line.enter(10**6):  # alone, whatever the model takes
        pass


def test_the_wait_that_is_told_follows_the_rate_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.now_s))
    line = Admission(num_slots=4, num_room_tokens=10**6, max_waiting=0, max_waiting_tokens=0)
    for _ in range(60):
        with line.enter(100):
            clock.now_s += 8.0
    with ExitStack() as inside:
        for _ in range(4):
            inside.enter_context(line.enter(100))
        with pytest.raises(Overloaded) as refusal:
            line.refuse_when_full()
    assert refusal.value.retry_after_s == 2  # a turn of eight seconds, four at once
