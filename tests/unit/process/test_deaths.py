"""When a dead worker is started again: at once, later, not at all."""

import pytest

from zopilot_gpu.process.deaths import WINDOW_S, Deaths
from zopilot_gpu.process.exits import Exit, reason


def test_the_first_is_started_at_once_the_next_wait_and_the_fifth_is_the_last() -> None:
    deaths = Deaths(most=5, wait_s=1.0)
    assert [deaths.add(now_s) for now_s in (100, 110, 120, 130, 140)] == [0, 1, 2, 4, None]


def test_deaths_of_long_ago_do_not_count() -> None:
    deaths = Deaths(most=3, wait_s=2.0)
    assert [deaths.add(now_s) for now_s in (0, 1, WINDOW_S + 2, WINDOW_S + 3)] == [0, 2, 0, 2]
    assert deaths.add(WINDOW_S + 4) is None


def test_a_wait_has_a_bound_and_one_death_can_be_too_many() -> None:
    deaths = Deaths(most=10_000, wait_s=1.0)
    assert max(deaths.add(now_s / 100) or 0 for now_s in range(5000)) == 30
    assert Deaths(most=1, wait_s=1.0).add(0) is None


@pytest.mark.parametrize(
    ("returncode", "words"),
    [(-9, "ended by signal 9"), (1, "exit status 1"), (70, Exit.CUDA_ERROR.meaning), (71, Exit.HUNG_STEP.meaning)],
)
def test_the_reason_of_a_death(returncode: int, words: str) -> None:
    assert reason(returncode) == words
