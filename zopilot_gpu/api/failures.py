"""The one place where an error becomes a response. Knows the error tree and the documented shape; refuses causes.

Every answer of 400 and above has the body `{"success": false, "error": {"code", "message", "request_id"}}`; below `/v1/` it is
OpenAI's (`api.openai.errors`). Answers of
the frameworks below us (404, 405, readiness) are rewritten into it; their status and the headers a client acts on stay.
"""

import logging
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zopilot_gpu import log
from zopilot_gpu.api import metrics, request
from zopilot_gpu.api.openai import errors as openai
from zopilot_gpu.errors import EngineFailed, Forbidden, InternalError, InvalidRequest, ServiceError, ShuttingDown, Unauthorised

_log = log.get(__name__)
_SHAPED = "zopilot_gpu.error_is_shaped"
_PROBES = frozenset({"/health", "/livez", "/metrics", "/ping", "/readyz"})  # asked every second or so: logged at debug
_KEPT_HEADERS = ("allow", "retry-after", "www-authenticate")
_FOREIGN = {
    404: ("not_found", "There is no such route."),
    405: ("method_not_allowed", "This route does not take this method; the Allow header says which it takes."),
    503: ("not_ready", "The service is not ready. GET /health says why."),
}


def error_body(error: ServiceError, request_id: str) -> dict[str, Any]:
    """The documented body of an error."""
    return {"success": False, "error": {"code": error.code, "message": error.message, "request_id": request_id}}


class ErrorResponse(JSONResponse):
    """An error as a response, with the headers that its kind asks for."""

    def __init__(self, error: ServiceError) -> None:
        headers = {}
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(error.retry_after_s)
        if isinstance(error, Unauthorised | Forbidden):
            headers["WWW-Authenticate"] = "Bearer"
        if error.status in {408, 413} or isinstance(error, ShuttingDown | EngineFailed):
            headers["Connection"] = "close"  # the rest of the body is not worth reading, or nobody will read the next request
        info = request.current()
        if info.speaks_openai:
            super().__init__(openai.body(error), openai.status_of(error), headers)
        else:
            super().__init__(error_body(error, info.request_id), error.status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Marks the exchange, so that the gate does not shape it again."""
        scope[_SHAPED] = True
        await super().__call__(scope, receive, send)


def as_service_error(error: Exception) -> ServiceError:
    """`error` itself when it is one of ours; anything else is logged and becomes `InternalError`."""
    if isinstance(error, ServiceError):
        if error.detail:
            _log.warning("request_refused", code=error.code, detail=error.detail)
        return error
    _log.error("request_failed", exc_info=error)
    return InternalError()


class Failures:
    """Outermost but for CORS: names the request, catches what escapes, shapes what others refuse, logs one line."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        info = request.begin(scope)
        exchange = _Exchange(scope, receive, send, info)
        with log.bound(request_id=info.request_id):
            try:
                await self.app(scope, receive, exchange.send)
            except Exception as error:  # noqa: BLE001  (a border: nothing a caller sends may pass it)
                failure = as_service_error(error)
                if exchange.status is None:
                    await ErrorResponse(failure)(scope, receive, exchange.send)
            finally:
                elapsed_s = time.monotonic() - info.arrived_s
                metrics.observe_request(scope["path"], exchange.status, elapsed_s)
                _log.log(
                    logging.DEBUG if scope["path"] in _PROBES else logging.INFO,
                    "request",
                    method=scope["method"][:16],
                    path=scope["path"][:200],
                    status=exchange.status,
                    seconds=round(elapsed_s, 4),
                    **({"key": info.key_name} if info.key_name else {}),
                )


class _Exchange:
    """The sending side of one request: adds the request id, shapes the errors of others."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, info: request.RequestInfo) -> None:
        self._scope, self._receive, self._send, self._info = scope, receive, send, info
        self._replaced = False
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if self._replaced:
            return
        if message["type"] == "http.response.start":
            if (message["status"] >= 400 or message["status"] == 307) and not self._scope.get(_SHAPED):
                self._replaced = True
                await self._replace(message)
                return
            self.status = message["status"]
            MutableHeaders(scope=message)["X-Request-ID"] = self._info.request_id
        await self._send(message)

    async def _replace(self, message: Message) -> None:
        status = 404 if message["status"] == 307 else message["status"]  # a path with a slash too many is not ours
        code, sentence = _FOREIGN.get(status, ("invalid_request", "The request could not be understood."))
        error = InternalError() if status == 500 else InvalidRequest(status, code, sentence)
        response = ErrorResponse(error)
        original = Headers(raw=message["headers"])
        response.headers.update({name: original[name] for name in _KEPT_HEADERS if name in original})
        if status == 503:
            response.headers.setdefault("Retry-After", "5")
        response.headers["X-Request-ID"] = self._info.request_id
        self.status = status
        await response(self._scope, self._receive, self._send)
