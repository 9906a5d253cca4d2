"""The numbers of a run, on records whose numbers are known."""

import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from zopilot_gpu.bench.client import Record
from zopilot_gpu.bench.figures import figures, percentile, percentiles
from zopilot_gpu.bench.report import show


def record(due_s: float, first_s: float, last_s: float, num_tokens: int, *, sent_s: float | None = None) -> Record:
    """An answer that was due at `due_s`; the other times count from then."""
    return Record(
        due_s,
        due_s if sent_s is None else sent_s,
        ended_s=due_s + last_s + 0.01,
        first_text_s=due_s + first_s,
        last_text_s=due_s + last_s,
        num_texts=min(num_tokens, 3),
        error=None,
        prompt_tokens=10,
        cached_tokens=4,
        completion_tokens=num_tokens,
    )


def failed(due_s: float, code: str) -> Record:
    return Record(due_s, due_s, ended_s=due_s + 9, error=code)


def test_percentiles_of_known_values() -> None:
    values = list(range(101))
    assert [percentile(values, share) for share in (0, 0.5, 0.95, 0.99, 1)] == [0, 50, 95, 99, 100]
    assert percentile([1, 2], 0.5) == 1.5
    assert percentile([3], 0.99) == 3
    assert percentiles([None, 4.0, None]) == {"p50": 4.0, "p95": 4.0, "p99": 4.0}
    assert percentiles([None]) is None
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


@settings(deadline=None)
@given(values=st.lists(st.floats(0, 1e6), min_size=1), share=st.floats(0, 1))
def test_a_percentile_is_numpys(values: list[float], share: float) -> None:
    assert percentile(values, share) == pytest.approx(float(np.quantile(values, share)), rel=1e-9, abs=1e-9)


def test_the_figures_of_a_run() -> None:
    found = figures([record(100, 0.1, 0.5, 5), record(101, 0.3, 0.9, 4, sent_s=101.2), failed(102, "overloaded")])
    assert (found["num_requests"], found["num_succeeded"], found["errors"]) == (3, 2, {"overloaded": 1})
    assert found["wall_s"] == 11  # to the end of the failure, which is in no percentile
    assert found["requests_per_s"] == pytest.approx(2 / 11, abs=1e-3)
    assert found["output_tokens_per_s"] == pytest.approx(9 / 11, abs=1e-3)
    assert found["tokens"] == {"prompt": 20, "cached": 8, "completion": 9}
    assert found["ttft_s"]["p50"] == pytest.approx(0.2)
    assert found["latency_s"]["p50"] == pytest.approx((0.51 + 0.91) / 2)
    assert found["time_per_token_s"]["p50"] == pytest.approx((0.4 / 4 + 0.6 / 3) / 2)
    assert found["send_lag_s"]["p99"] == pytest.approx(0.2, abs=0.01)


def test_one_token_has_no_time_per_token() -> None:
    assert record(0, 0.1, 0.1, 1).time_per_token_s is None
    assert figures([record(0, 0.1, 0.1, 1)])["time_per_token_s"] is None


def test_a_run_without_an_answer_has_figures_and_a_table() -> None:
    for records in ([], [failed(1, "connection_failed")]):
        found = figures(records)
        assert (found["num_succeeded"], found["requests_per_s"], found["latency_s"]) == (0, 0, None)
        show(found, Console(file=io.StringIO()))


def test_the_table_names_what_was_measured() -> None:
    out = io.StringIO()
    show(figures([record(100, 0.1, 0.5, 5), failed(101, "overloaded")]), Console(file=out, width=100))
    for text in ("1 answered of 2", "time to first token", "100.00", "10 prompt (4 cached), 5 output", "overloaded", "p99"):
        assert text in out.getvalue()
    assert math.isclose(figures([record(100, 0.1, 0.5, 5)])["ttft_s"]["p50"], 0.1)
