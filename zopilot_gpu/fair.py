"""Turns among owners: a queue in which nobody's place depends on how much the others have put in. Knows owners, no clock.

Each owner has a line of its own, first come, first served. The next item is that of the owner with the least load, as the
caller counts it; among equals, of the one whose last turn is the longest ago.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """Waiting items, by owner."""

    def __init__(self) -> None:
        self._lines: dict[bytes, deque[T]] = {}  # in the order of turns: who had one goes to the end

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[T]:
        for line in self._lines.values():
            yield from line

    @property
    def owners(self) -> set[bytes]:
        """Who has something waiting."""
        return set(self._lines)

    def count(self, owner: bytes) -> int:
        """How much of `owner` is waiting."""
        return len(self._lines.get(owner, ()))

    def push(self, owner: bytes, item: T, *, first: bool = False) -> None:
        """Puts an item at the end of its owner's line, or at its front."""
        line = self._lines.setdefault(owner, deque())
        if first:
            line.appendleft(item)
        else:
            line.append(item)

    def head(self, load: Callable[[bytes], float] = lambda _: 0) -> tuple[bytes, T]:
        """Whose turn it is, and the item.

        Raises:
            IndexError: nothing waits.
        """
        if not self._lines:
            raise IndexError
        owner = min(self._lines, key=load)  # the first of equals
        return owner, self._lines[owner][0]

    def pop(self, owner: bytes) -> T:
        """Takes the first item of `owner`, whose turn that was."""
        line = self._lines.pop(owner)
        item = line.popleft()
        if line:
            self._lines[owner] = line
        return item

    def remove(self, owner: bytes, item: T) -> bool:
        """Takes an item out, wherever it is; False where it is not there."""
        line = self._lines.get(owner, deque())
        if item not in line:
            return False
        line.remove(item)
        if not line:
            del self._lines[owner]
        return True

    def clear(self) -> None:
        """Forgets everything."""
        self._lines.clear()
