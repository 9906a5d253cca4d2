"""The one place where BentoML is changed from outside, because no setting of it does: its timer for every request.

NOTE: BentoML 1.4.39 starts a timer of `traffic.timeout` seconds for each request and never stops it: 4.4 KB a request, kept
that long, for refused ones too. Its schema takes no timeout of zero or none. `tests/faults/test_memory.py` holds the change.
"""

from bentoml._internal.server.http import traffic
from starlette.types import ASGIApp, Receive, Scope, Send


class _Untimed:
    """Stands where BentoML's timeout middleware would; deadlines are ours, per request."""

    def __init__(self, app: ASGIApp, timeout: float) -> None:  # noqa: ARG002
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def without_timers() -> None:
    """Takes the timeout middleware out of every app that BentoML builds in this process from now on."""
    traffic.TimeoutMiddleware = _Untimed  # type: ignore[misc, assignment]
