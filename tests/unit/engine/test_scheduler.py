"""Blocks and scheduler without a model: nothing leaks, nothing starves, prefixes are shared and only with their owner."""

import random
import subprocess
import sys

import pytest

from zopilot_gpu.engine.blocks import BlockPool, OutOfBlocks, chunks_of
from zopilot_gpu.engine.scheduler import Scheduled, Scheduler, TooLong
from zopilot_gpu.engine.sequence import Sequence

SIZE = 4


def scheduler(num_blocks: int = 64, *, max_step_tokens: int = 16, max_running: int = 8, share: bool = True) -> Scheduler:
    pool = BlockPool(num_blocks, SIZE, share_prefixes=share)
    return Scheduler(pool, max_step_tokens=max_step_tokens, max_running=max_running)


def sequence(length: int, max_tokens: int = 4, *, first: int = 0, salt: bytes = b"") -> Sequence:
    return Sequence(f"{length}-{max_tokens}", [first, *range(1, length)], max_tokens, salt=salt)


def take(it: Scheduler, step: list[Scheduled]) -> list[Sequence]:
    """What an engine does with a step: a token for each sequence that is due one; those that have their last are finished."""
    due = [item.sequence for item in step if item.completes]
    it.advance(step)
    finished = []
    for one in due:
        one.output_ids.append(1000 + len(one.output_ids))
        if len(one.output_ids) == one.max_tokens:
            it.remove(one)
            finished.append(one)
    it.check()
    return finished


def run(it: Scheduler) -> list[Sequence]:
    """Steps until nothing is left; the finished sequences in order."""
    finished = []
    while step := it.schedule():
        finished += take(it, step)
    return finished


def test_a_long_prompt_goes_in_chunks_under_the_budget() -> None:
    it = scheduler()
    it.add(sequence(40))
    counts = []
    for _ in range(3):
        step = it.schedule()
        counts.append([(item.num_tokens, item.completes) for item in step])
        it.advance(step)
    assert counts == [[(16, False)], [(16, False)], [(8, True)]]


def test_decodes_come_before_prompts() -> None:
    it = scheduler()
    first, second = sequence(8), sequence(40, first=7)
    it.add(first)
    it.advance(it.schedule())
    first.output_ids.append(1000)
    it.add(second)
    assert [(item.sequence, item.num_tokens) for item in it.schedule()] == [(first, 1), (second, 15)]


def test_no_more_run_than_allowed_and_the_line_is_first_come_first_served() -> None:
    it = scheduler(max_running=2, max_step_tokens=100)
    sequences = [sequence(5, first=n) for n in range(5)]
    for one in sequences:
        it.add(one)
    assert [item.sequence for item in it.schedule()] == sequences[:2]
    assert run(it) == sequences


def test_what_could_never_fit_is_refused_at_once() -> None:
    it = scheduler(num_blocks=4)
    with pytest.raises(TooLong):
        it.add(sequence(13, max_tokens=4))
    it.add(sequence(12, max_tokens=4))
    assert len(run(it)) == 1


def test_the_youngest_gives_way_and_is_computed_anew() -> None:
    it = scheduler(num_blocks=6, max_step_tokens=100)
    old, young = sequence(8, max_tokens=12), sequence(8, max_tokens=12, first=9)
    it.add(old)
    it.add(young)
    assert run(it) == [old, young]
    assert (old.num_preemptions, young.num_preemptions) == (0, it.num_preemptions)
    assert it.num_preemptions >= 1
    assert old.output_ids == young.output_ids == list(range(1000, 1012))


def test_a_known_prefix_is_shared_but_for_the_last_token() -> None:
    it = scheduler(max_step_tokens=100)
    it.add(sequence(12))
    it.advance(it.schedule())
    twin, longer, other_owner = sequence(12), sequence(14), sequence(12, salt=b"another key")
    for one in (twin, longer, other_owner):
        it.add(one)
    assert {item.sequence: item.num_tokens for item in it.schedule()} == {twin: 4, longer: 2, other_owner: 12}
    assert (twin.num_cached, longer.num_cached, other_owner.num_cached) == (8, 12, 0)
    assert twin.block_ids[:2] == longer.block_ids[:2]


def test_a_prefix_survives_its_sequence_until_its_blocks_are_needed() -> None:
    it = scheduler(num_blocks=8, max_step_tokens=100)
    it.add(sequence(16, max_tokens=1))
    run(it)
    assert it.pool.num_cached == 4
    again = sequence(16, max_tokens=1)
    it.add(again)
    run(it)
    assert again.num_cached == 12
    it.add(sequence(31, max_tokens=1, first=5))
    run(it)
    third = sequence(16, max_tokens=1)
    it.add(third)
    run(it)
    assert third.num_cached == 0


def test_without_sharing_nothing_is_kept() -> None:
    it = scheduler(share=False)
    it.add(sequence(16))
    run(it)
    assert (it.pool.num_cached, it.pool.num_available) == (0, 64)


def test_a_digest_covers_the_salt_and_all_tokens_before() -> None:
    plain, salted = chunks_of(range(12), SIZE, b""), chunks_of(range(12), SIZE, b"k")
    changed = chunks_of([99, *range(1, 12)], SIZE, b"")
    assert len({chunk.digest for chunk in [*plain, *salted, *changed]}) == 9
    assert chunks_of(range(12), SIZE, b"", plain[:2]) == plain


def test_equal_digests_with_other_tokens_are_no_hit() -> None:
    pool = BlockPool(4, SIZE)
    (block,) = pool.allocate(1)
    (chunk,) = chunks_of(range(4), SIZE, b"")
    pool.seal(block, chunk)
    forged = type(chunk)(chunk.digest, (9, 9, 9, 9))
    assert pool.share_prefix([forged]) == []
    assert pool.share_prefix([chunk]) == [block]


def test_allocating_too_much_takes_nothing() -> None:
    pool = BlockPool(4, SIZE)
    pool.allocate(3)
    with pytest.raises(OutOfBlocks):
        pool.allocate(2)
    assert pool.num_available == 1


def test_a_broken_map_is_noticed() -> None:
    pool = BlockPool(4, SIZE)
    blocks = pool.allocate(2)
    pool.check([blocks])
    with pytest.raises(RuntimeError, match="block map broken"):
        pool.check([blocks[:1]])


@pytest.mark.parametrize("seed", range(40))
def test_random_mixes_finish_in_full_and_leak_nothing(seed: int) -> None:
    """25 sequences each: random lengths, shared beginnings, owners, arrivals and aborts on a pool that is often too small."""
    dice = random.Random(seed)
    it = scheduler(dice.randint(12, 40), max_step_tokens=dice.randint(3, 50), max_running=dice.randint(1, 9))
    coming = [
        sequence(dice.randint(1, 30), dice.randint(1, 15), first=dice.randint(0, 2), salt=dice.choice([b"", b"k"]))
        for _ in range(25)
    ]
    live, finished, aborted = list[Sequence](), list[Sequence](), list[Sequence]()
    for _ in range(20_000):
        if coming and dice.random() < 0.3:
            live.append(coming.pop())
            it.add(live[-1])
        if live and dice.random() < 0.02:
            aborted.append(live.pop(dice.randrange(len(live))))
            it.remove(aborted[-1])
            it.remove(aborted[-1])
        step = it.schedule()
        assert sum(item.num_tokens for item in step) <= it._max_step_tokens
        assert len({id(item.sequence) for item in step}) == len(step)
        assert all(item.sequence in it.running for item in step)
        for one in take(it, step):
            live.remove(one)
            finished.append(one)
        if not coming and not live:
            break
    assert len(finished) + len(aborted) == 25
    assert all(one.output_ids == list(range(1000, 1000 + one.max_tokens)) for one in finished)
    assert it.pool.num_available == it.pool.num_blocks


def test_the_scheduler_needs_no_torch() -> None:
    program = "import sys, zopilot_gpu.engine.scheduler; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
