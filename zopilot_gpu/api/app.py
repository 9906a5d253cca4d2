"""The routes beside `/prompt`, as the one app that BentoML mounts."""

from collections.abc import Callable
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from runners.base import Runner
from zopilot_gpu.api import health, jobs, openapi
from zopilot_gpu.api.failures import ErrorResponse, as_service_error
from zopilot_gpu.api.openai import routes as openai
from zopilot_gpu.errors import ServiceError
from zopilot_gpu.jobs.queue import JobQueue
from zopilot_gpu.settings import Settings


def build_app(
    runner: Callable[[], Runner],
    settings: Callable[[], Settings],
    queue: Callable[[], JobQueue],
    findings: Callable[[], dict[str, Any] | None],
) -> Starlette:
    """The app. `runner`, `settings`, `queue` and doctor's `findings` are the service's; none is asked for before a request."""
    settings = cache(settings)

    def for_operators() -> dict[str, Any]:
        problem = queue().problem
        return {"doctor": findings()} | ({"jobs_problem": problem} if problem else {})

    async def counted() -> tuple[dict[str, int], dict[str, int]]:
        return await queue().counts(), queue().courier.outcomes

    return Starlette(
        routes=[
            *health.routes(runner, for_operators, counted),
            *openai.routes(runner, settings),
            *jobs.routes(queue),
            openapi.route(),
        ],
        exception_handlers={ServiceError: _refuse},
    )


async def _refuse(_: Request, error: Exception) -> Response:
    return ErrorResponse(as_service_error(error))
