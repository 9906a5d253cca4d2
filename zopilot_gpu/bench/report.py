"""The figures of a run as tables for a person. Knows rich; computes nothing."""

from typing import Any

from rich.console import Console
from rich.table import Table

from zopilot_gpu.bench.figures import SHARES

_ROWS = {
    "ttft_s": "time to first token",
    "time_per_token_s": "time per output token",
    "latency_s": "whole answer",
    "send_lag_s": "sent late by",
}


def show(figures: dict[str, Any], console: Console) -> None:
    """Prints them."""
    console.print(_overview(figures))
    times = Table("milliseconds", *SHARES)
    for column in times.columns[1:]:
        column.justify = "right"
    for name, label in _ROWS.items():
        if values := figures[name]:
            times.add_row(label, *(f"{values[share] * 1000:,.2f}" for share in SHARES))
    if times.row_count:
        console.print(times)
    if figures["errors"]:
        errors = Table("error", "requests")
        for code, count in figures["errors"].items():
            errors.add_row(code, str(count))
        console.print(errors)


def _overview(figures: dict[str, Any]) -> Table:
    tokens = figures["tokens"]
    table = Table(show_header=False)
    table.add_row("requests", f"{figures['num_succeeded']} answered of {figures['num_requests']} in {figures['wall_s']:.2f} s")
    if figures["num_refused_and_retried"]:
        table.add_row("refused and retried", str(figures["num_refused_and_retried"]))
    table.add_row("requests/s", f"{figures['requests_per_s']:,.2f}")
    table.add_row("output tokens/s", f"{figures['output_tokens_per_s']:,.1f}")
    table.add_row("tokens", f"{tokens['prompt']:,} prompt ({tokens['cached']:,} cached), {tokens['completion']:,} output")
    return table
