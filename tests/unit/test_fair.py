"""Holds the turns: whose is next depends on load and on the last turn, never on how much somebody has put in."""

import pytest

from zopilot_gpu.fair import FairQueue


def drain(queue: FairQueue[str]) -> list[str]:
    order = []
    while queue:
        owner, item = queue.head()
        assert queue.pop(owner) == item
        order.append(item)
    return order


def test_owners_take_turns_and_each_is_served_in_its_own_order() -> None:
    queue: FairQueue[str] = FairQueue()
    for item in ["a1", "a2", "a3", "b1", "c1", "c2"]:
        queue.push(item[0].encode(), item)
    assert len(queue) == 6
    assert (queue.owners, queue.count(b"a"), queue.count(b"x")) == ({b"a", b"b", b"c"}, 3, 0)
    assert drain(queue) == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_the_least_load_comes_first() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(b"a", "a1")
    queue.push(b"b", "b1")
    assert queue.head({b"a": 3, b"b": 1}.__getitem__) == (b"b", "b1")


def test_what_is_put_first_is_next_of_its_owner_and_what_is_taken_out_is_gone() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(b"a", "a1")
    queue.push(b"a", "a0", first=True)
    queue.push(b"b", "b1")
    assert queue.remove(b"b", "b1")
    assert not queue.remove(b"b", "b1")
    assert list(queue) == ["a0", "a1"]
    queue.clear()
    assert len(queue) == 0
    with pytest.raises(IndexError):
        queue.head()
