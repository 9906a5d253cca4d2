"""When a worker that died is started again, and when not. Knows times; no processes.

The first is started at once, each further one within ten minutes after a wait that doubles; with `most` deaths in ten minutes
it is over: what kills a worker so often will kill the next one too, and the machine's own supervisor should hear of it.
"""

from collections import deque

WINDOW_S = 600.0
_LONGEST_WAIT_S = 30.0


class Deaths:
    """The deaths of the last ten minutes.

    Args:
        most: so many in ten minutes are too many.
        wait_s: how long the second one within ten minutes waits.
    """

    def __init__(self, most: int, wait_s: float) -> None:
        self._most, self._wait_s = most, wait_s
        self._times: deque[float] = deque()

    def add(self, now_s: float) -> float | None:
        """A worker died at `now_s` (monotonic): the seconds to wait before the next is started; None: don't."""
        self._times.append(now_s)
        while self._times[0] < now_s - WINDOW_S:
            self._times.popleft()
        if len(self._times) >= self._most:
            return None
        num_before = len(self._times) - 1
        return min(self._wait_s * 2.0 ** min(num_before - 1, 10), _LONGEST_WAIT_S) if num_before else 0.0
