"""OpenAI's shape of an error. Knows the error tree; anything under `/v1/` that is refused is told so, by the gate too."""

from typing import Any

from zopilot_gpu.errors import InvalidRequest, ServiceError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class OpenAIRefusal(InvalidRequest):
    """A request to `/v1/*` that is at fault: 400, with the field."""

    def __init__(self, message: str, param: str | None = None, *, code: str | None = None, status: int = 400) -> None:
        super().__init__(status, code or "invalid_request", message)
        self.param = param


def is_openai(path: str) -> bool:
    """Whether errors at `path` have this shape."""
    return path == "/v1" or path.startswith("/v1/")


def body(error: ServiceError) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = getattr(error, "param", None)
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def status_of(error: ServiceError) -> int:
    """OpenAI knows no 422: what is wrong with a request is 400."""
    return 400 if error.status == 422 else error.status
