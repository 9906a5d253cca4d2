"""How the service is, for people, balancers and monitors: `/health`, `/ping`, `/warmup`, `/metrics`.

`/health` answers 200 as long as this process can speak; its `status` says whether it is of use. `/ping` speaks RunPod's
load balancer: 204 while loading, 200 when ready, 503 when it never will be. What only the operator may read (the sentence with
paths and remedy) is there for callers with a key.
"""

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from runners.base import Runner, RunnerState
from zopilot_gpu import __version__
from zopilot_gpu.api import metrics, request
from zopilot_gpu.api.failures import ErrorResponse
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.events import GREEDY, Job

_STATUS = {"ready": "ok", "loading": "loading", "failed": "unavailable", "closed": "shutting_down"}


def routes(
    runner: Callable[[], Runner],
    for_operators: Callable[[], dict[str, Any]],
    jobs: Callable[[], Awaitable[tuple[Mapping[str, int], Mapping[str, int]]]],
) -> list[Route]:
    """The routes. `runner` gives the service's runner once it is made; `for_operators` what `/health` says to them besides.

    `jobs` counts jobs by state, and tries of callbacks by outcome.
    """
    started_s = time.monotonic()

    async def health(_: Request) -> Response:
        authorised = request.current().authorised
        body = health_of(runner().state(), time.monotonic() - started_s, authorised=authorised)
        return JSONResponse(body | for_operators() if authorised else body)

    async def ping(_: Request) -> Response:
        phase = runner().state().phase
        if phase == "loading":
            return Response(status_code=204)
        if phase == "ready":
            return JSONResponse({"status": "ok"})
        return ErrorResponse(ModelUnavailable())

    async def warmup(_: Request) -> Response:
        state = runner().state()
        if state.phase == "loading":
            return JSONResponse({"status": "loading", "progress": state.progress}, 202)
        began_s = time.monotonic()
        async for _event in runner().generate(_warmup_job()):
            pass
        return JSONResponse({"status": "ok", "seconds": round(time.monotonic() - began_s, 4)})

    async def series(_: Request) -> Response:
        return Response(metrics.render(runner().state(), *await jobs()), media_type=metrics.CONTENT_TYPE)

    return [
        Route("/health", health, methods=["GET"]),
        Route("/ping", ping, methods=["GET"]),
        Route("/warmup", warmup, methods=["POST"]),
        Route("/metrics", series, methods=["GET"]),
    ]


def _warmup_job() -> Job:
    info = request.current()
    return Job(info.request_id, "warm-up", None, 1, GREEDY, (), info.arrived_s + 60)


def health_of(state: RunnerState, uptime_s: float, *, authorised: bool) -> dict[str, Any]:
    """How the service is, as `/health` says it."""
    model = asdict(state)
    problem = model.pop("problem")
    gpu = {"name": model.pop("gpu_name"), "memory_used_bytes": model.pop("memory_used_bytes")}
    gpu["memory_total_bytes"] = model.pop("memory_total_bytes")
    engine = model.pop("engine")
    queue = {name: model.pop(name) for name in ("num_running", "max_running", "num_waiting", "max_waiting")}
    body = {
        "status": _STATUS[state.phase],
        "version": __version__,
        "uptime_s": round(uptime_s, 1),
        "model": model,
        "gpu": gpu if gpu["name"] else None,
        "queue": queue,
        "engine": engine,
    }
    if problem and authorised:
        body["problem"] = problem
    return body
