"""The gate: what a request passes on its way to a route, in order. Knows settings; holds no logic of its own.

Cors -> Failures -> Auth -> Limits -> (Playground) -> ParsePrompt -> Disconnect -> the routes
"""

import re

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from zopilot_gpu.api import request
from zopilot_gpu.api.auth import OPEN_PATHS, Auth
from zopilot_gpu.api.disconnect import Disconnect
from zopilot_gpu.api.exchanges import Counted, Exchanges
from zopilot_gpu.api.failures import ErrorResponse, Failures
from zopilot_gpu.api.keys import ring_of
from zopilot_gpu.api.limits import Limits
from zopilot_gpu.api.parse import ParsePrompt
from zopilot_gpu.api.playground import PATHS, Playground
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.settings import Settings, load_settings

_HEADERS = {"Authorization", "Content-Type", "X-API-Key", "X-Request-ID", "Idempotency-Key", "Last-Event-ID"}
_HEADERS |= {"OpenAI-Organization", "OpenAI-Project", "OpenAI-Beta", "User-Agent"}
_TELLS_OF_THE_CLIENT = re.compile(r"x-stainless-[a-z0-9-]{1,64}")


class Gate:
    """All of our middleware as one ASGI app, built from the environment when the server builds its stack."""

    def __init__(self, app: ASGIApp, exchanges: Exchanges) -> None:
        self.app = Counted(through_the_gate(app, load_settings()), exchanges)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        await self.app(scope, receive, send)


def through_the_gate(app: ASGIApp, settings: Settings) -> ASGIApp:
    """`app` behind the gate that `settings` describe."""
    app = ParsePrompt(Disconnect(app))
    open_paths = OPEN_PATHS | ({"/health"} if settings.health_check_public else frozenset())
    if settings.playground:
        app, open_paths = Playground(app), open_paths | PATHS
    app = Limits(
        app,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        max_headers=settings.max_headers,
        max_header_bytes=settings.max_header_bytes,
    )
    app = Auth(
        app,
        keys=ring_of(settings),
        open_paths=open_paths,
    )
    app = Failures(app)
    return Cors(app, settings.allowed_origins) if settings.allowed_origins else app


class Cors(CORSMiddleware):
    """Starlette's, with a refused preflight in the documented shape."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=["DELETE", "GET", "POST"],
            allow_headers=sorted(_HEADERS),
            expose_headers=["X-Request-ID", "Retry-After", "Location"],
            max_age=600,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Starts the request's record first: a refused preflight carries its id."""
        if scope["type"] == "http":
            request.begin(scope)
        await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The answer to a preflight. OpenAI's client tells of itself in headers: they pass, and nobody reads them."""
        wanted = [name.strip().lower() for name in request_headers.get("access-control-request-headers", "").split(",")]
        told = {name for name in wanted if _TELLS_OF_THE_CLIENT.fullmatch(name)}
        asked = request_headers.mutablecopy()
        if told:
            asked["access-control-request-headers"] = ", ".join(name for name in wanted if name not in told) or "content-type"
        response = super().preflight_response(asked)
        if response.status_code < 400:
            if told:
                response.headers["access-control-allow-headers"] = ", ".join(sorted({*self.allow_headers, *told}))
            return response
        refusal = ErrorResponse(InvalidRequest(400, "cors_refused", "This origin, method or header is not allowed."))
        refusal.headers["X-Request-ID"] = request.current().request_id
        return refusal
