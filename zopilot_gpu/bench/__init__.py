"""The load generator behind `zopilot-gpu bench serve`. Knows HTTP as any client does; never torch, the runners or the service.

`gpu`, which measures a card, is a stranger to the rest but for `plot`.

    workload ── bodies, arrivals ──▶ load ──▶ client ──▶ one Record a request ──▶ figures ──▶ report, plot
     (seed)                        (clock)   (HTTP, SSE)                          (numbers)

How it measures: monotonic clocks; in an open loop latencies count from when a request was due, not from when it was sent;
what failed is counted by its code and is in no percentile; warm-up requests are in no figure at all.
"""
