"""Records to numbers. Knows arithmetic; refuses to mix answers with failures: percentiles are of complete answers alone."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from zopilot_gpu.bench.client import Record

SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
TIMES = ("ttft_s", "time_per_token_s", "latency_s", "send_lag_s")


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of `values` lie, linear between neighbours (numpy's default; 0.5 is the median).

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def percentiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """p50, p95 and p99 of the values that are there; None where none is."""
    there = [value for value in values if value is not None]
    return {name: round(percentile(there, share), 6) for name, share in SHARES.items()} if there else None


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """The numbers of a run, ready for JSON. Its time is from the first request due to the last answer's end, failures too."""
    answers = [record for record in records if record.error is None]
    wall_s = max((r.ended_s for r in records), default=0.0) - min((r.scheduled_s for r in records), default=0.0)
    tokens = {
        "prompt": sum(record.prompt_tokens for record in answers),
        "cached": sum(record.cached_tokens for record in answers),
        "completion": sum(record.completion_tokens for record in answers),
    }
    return {
        "num_requests": len(records),
        "num_succeeded": len(answers),
        "num_refused_and_retried": sum(record.num_refused for record in records),
        "errors": dict(Counter(record.error for record in records if record.error is not None).most_common()),
        "wall_s": round(wall_s, 6),
        "requests_per_s": _rate(len(answers), wall_s),
        "output_tokens_per_s": _rate(tokens["completion"], wall_s),
        "tokens": tokens,
        **{name: percentiles(getattr(record, name) for record in answers) for name in TIMES},
    }


def _rate(count: int, wall_s: float) -> float:
    return round(count / wall_s, 3) if wall_s > 0 else 0.0
