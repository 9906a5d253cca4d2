"""The Prometheus series of the service, in one registry of its own. Knows names and labels; refuses unbounded ones.

Series are described in docs/operations.md.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from runners.base import EngineStats, RunnerState
from zopilot_gpu.events import Done, Usage

CONTENT_TYPE = CONTENT_TYPE_LATEST
_ROUTES = frozenset(
    {
        "/playground",
        "/prompt",
        "/health",
        "/warmup",
        "/ping",
        "/livez",
        "/readyz",
        "/metrics",
        "/schema.json",
        "/docs.json",
        "/jobs",
    }
)
_ROUTES |= {"/openapi.json", "/v1/models", "/v1/chat/completions", "/v1/completions", "/jobs"}
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)

REGISTRY = CollectorRegistry()
_requests = Counter("zopilot_gpu_requests", "Requests served, by route and status.", ["route", "status"], registry=REGISTRY)
_request_s = Histogram(
    "zopilot_gpu_request_seconds",
    "Seconds from arrival to last byte, by route.",
    ["route"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_first_token_s = Histogram(
    "zopilot_gpu_ttft_seconds", "Seconds from arrival to first text.", buckets=_SECONDS, registry=REGISTRY
)
_per_token_s = Histogram(
    "zopilot_gpu_time_per_token_seconds",
    "Seconds a token after the first text, one value an answer.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1, 2),
    registry=REGISTRY,
)
_tokens = Counter(
    "zopilot_gpu_tokens", "Tokens of finished answers, by kind: prompt, cached, completion.", ["kind"], registry=REGISTRY
)
_finished = Counter("zopilot_gpu_finished", "Finished answers, by reason: stop, length.", ["reason"], registry=REGISTRY)
_key_requests = Counter(
    "zopilot_gpu_key_requests",
    "Answers asked for, by the key's name and outcome: done, refused, failed, left.",
    ["key", "outcome"],
    registry=REGISTRY,
)
_key_tokens = Counter(
    "zopilot_gpu_key_tokens",
    "Tokens of finished answers, by the key's name and kind: prompt, cached, completion.",
    ["key", "kind"],
    registry=REGISTRY,
)
_running = Gauge("zopilot_gpu_running", "Requests being generated.", registry=REGISTRY)
_waiting = Gauge("zopilot_gpu_waiting", "Requests in the waiting line.", registry=REGISTRY)
_ready = Gauge("zopilot_gpu_ready", "1 when the model answers.", registry=REGISTRY)


class _Engine(Collector):
    """The engine's own counts, read when somebody asks."""

    def __init__(self) -> None:
        self.stats: EngineStats | None = None

    def collect(self) -> Iterator[Metric]:
        now = self.stats or EngineStats(0, 0, 0, 0, 0, 0, 0, 0)
        pool = GaugeMetricFamily(
            "zopilot_gpu_kv_tokens", "Tokens of the KV pool, by state: free, owned, cached.", labels=["state"]
        )
        free = now.kv_tokens_total - now.kv_tokens_owned - now.kv_tokens_cached
        for state, value in (("free", free), ("owned", now.kv_tokens_owned), ("cached", now.kv_tokens_cached)):
            pool.add_metric([state], value)
        yield pool
        for name, what, value in (
            ("steps", "Steps of the engine.", now.num_steps),
            ("prefix_hits", "Requests whose beginning was found in the KV pool.", now.num_prefix_hits),
            (
                "preemptions",
                "Times that a request gave its blocks up to another one, to be computed again.",
                now.num_preemptions,
            ),
            ("aborts", "Requests ended because the caller left or an answer was complete early.", now.num_aborts),
            ("failures", "Steps that failed and ended what was in flight.", now.num_failures),
        ):
            yield CounterMetricFamily(f"zopilot_gpu_engine_{name}", what, value)


class _Jobs(Collector):
    """Jobs and callbacks, as counted when somebody asks."""

    def __init__(self) -> None:
        self.states: Mapping[str, int] = {}
        self.callbacks: Mapping[str, int] = {}

    def collect(self) -> Iterator[Metric]:
        kept = GaugeMetricFamily(
            "zopilot_gpu_jobs", "Jobs that are kept, by state; none while they can't be.", labels=["state"]
        )
        for state, num in self.states.items():
            kept.add_metric([state], num)
        yield kept
        tries = CounterMetricFamily(
            "zopilot_gpu_callbacks",
            "Tries of callbacks, by outcome: delivered, failed (to be tried again), gave_up.",
            labels=["outcome"],
        )
        for outcome, num in self.callbacks.items():
            tries.add_metric([outcome], num)
        yield tries


_engine, _jobs = _Engine(), _Jobs()
REGISTRY.register(_engine)
REGISTRY.register(_jobs)


def observe_request(path: str, status: int | None, seconds: float) -> None:
    """Counts one exchange. A client that left before its answer has the status `gone`; unknown paths share a label."""
    route = path if path in _ROUTES else "/jobs/{id}" if path.startswith("/jobs/") else "other"
    _requests.labels(route, "gone" if status is None else str(status)).inc()
    _request_s.labels(route).observe(seconds)


def observe_first_text(seconds: float) -> None:
    """Records a time to first text, in seconds since arrival."""
    _first_token_s.observe(seconds)


def observe_done(done: Done, seconds: float) -> None:
    """Counts a finished answer and its tokens, and the pace of those after the first, which took `seconds`."""
    if done.usage.completion_tokens > 1:
        _per_token_s.observe(seconds / (done.usage.completion_tokens - 1))
    _finished.labels(done.finish_reason).inc()
    _tokens.labels("prompt").inc(done.usage.prompt_tokens)
    _tokens.labels("cached").inc(done.usage.cached_tokens)
    _tokens.labels("completion").inc(done.usage.completion_tokens)


def observe_key_request(name: str, outcome: str) -> None:
    """Counts an answer that a key asked for: `done`, `refused`, `failed`, or `left` by its caller. Names are the operator's."""
    _key_requests.labels(name, outcome).inc()


def observe_key_tokens(name: str, usage: Usage) -> None:
    """Counts the tokens of an answer that a key got."""
    _key_tokens.labels(name, "prompt").inc(usage.prompt_tokens)
    _key_tokens.labels(name, "cached").inc(usage.cached_tokens)
    _key_tokens.labels(name, "completion").inc(usage.completion_tokens)


def render(state: RunnerState, jobs: Mapping[str, int], callbacks: Mapping[str, int]) -> bytes:
    """All series in the text format, with the runner's gauges as of now, jobs by state and tries of callbacks by outcome."""
    _running.set(state.num_running)
    _waiting.set(state.num_waiting)
    _ready.set(state.phase == "ready")
    _engine.stats = state.engine
    _jobs.states, _jobs.callbacks = jobs, callbacks
    return generate_latest(REGISTRY)
