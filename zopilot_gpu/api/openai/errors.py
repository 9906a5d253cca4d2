"""OpenAI's shape of an error. Knows the error tree; anything under `/v1/` that is refused is told so, by the gate too."""

from typing import Any

from zopilot_gpu.errors import InvalidRequest, ServiceError

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def bad_request(message: str, param: str | None = None, *, code: str = "invalid_request", status: int = 400) -> InvalidRequest:
    """What is raised for a request to `/v1/*` that is at fault, with the field."""
    return InvalidRequest(status, code, message, param)


def is_openai(path: str) -> bool:
    """Whether errors at `path` have this shape."""
    return path == "/v1" or path.startswith("/v1/")


def body(error: ServiceError) -> dict[str, Any]:
    """The body of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    param = error.param if isinstance(error, InvalidRequest) else None
    return {"error": {"message": error.message, "type": kind, "param": param, "code": error.code}}


def status_of(error: ServiceError) -> int:
    """OpenAI knows no 422: what is wrong with a request is 400."""
    return 400 if error.status == 422 else error.status
