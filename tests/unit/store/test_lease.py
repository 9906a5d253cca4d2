"""Holds the lease: one holder, a heartbeat, a takeover after silence, and nothing lost when two want it at once."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zopilot_gpu.store.lease import Pace, Watch, acquire, owner_of

QUICK = Pace(beat_s=0.05, stale_s=0.5)


def test_only_one_of_many_gets_it_and_it_is_free_afterwards(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        got = [lease for lease in pool.map(lambda _: acquire(tmp_path / "lease", QUICK), range(64)) if lease]
    assert len(got) == 1
    with got[0]:
        assert not Watch(tmp_path / "lease", QUICK).is_free()
    assert Watch(tmp_path / "lease", QUICK).is_free()
    assert list(tmp_path.iterdir()) == []


def test_a_holder_that_lives_keeps_it(tmp_path: Path) -> None:
    pace = Pace(beat_s=0.05, stale_s=2)  # a busy machine may keep the heart from beating for a while
    lease = acquire(tmp_path / "lease", pace)
    assert lease
    with lease:
        watch = Watch(tmp_path / "lease", pace)
        until_s = time.monotonic() + 1.5 * pace.stale_s
        while time.monotonic() < until_s:
            assert not watch.is_free()
            time.sleep(0.05)
        assert not lease.lost.is_set()


def test_a_dead_holders_is_taken_away_once_it_has_been_silent(tmp_path: Path) -> None:
    assert acquire(tmp_path / "lease", QUICK)  # never beats
    watch = Watch(tmp_path / "lease", QUICK)
    began_s = time.monotonic()
    while not watch.is_free():
        time.sleep(0.02)
    assert QUICK.stale_s <= time.monotonic() - began_s < 60
    assert acquire(tmp_path / "lease", QUICK)


def test_a_watcher_that_is_late_leaves_the_next_holder_alone(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    assert acquire(path, QUICK)
    late = Watch(path, QUICK)
    assert not late.is_free()
    time.sleep(1.2 * QUICK.stale_s)
    path.unlink()
    assert acquire(path, QUICK)
    owner = owner_of(path)
    assert owner
    assert not late._take_away("the one before")
    assert owner_of(path) == owner
    assert [found.name for found in tmp_path.iterdir()] == ["lease"]


def test_a_holder_learns_that_it_lost_it_and_leaves_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lease"
    first = acquire(path, QUICK)
    assert first
    with first:
        path.unlink()
        second = acquire(path, QUICK)
        assert second or owner_of(path)  # the first may have been quicker to make it anew
        if second:
            assert first.lost.wait(60)
            owner = owner_of(path)
    if second:
        assert owner_of(path) == owner
