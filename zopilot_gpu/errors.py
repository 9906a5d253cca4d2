"""Every way in which the service says no, as one tree. Knows codes, statuses and sentences; refuses causes.

    ServiceError                     code                        status
    ├── InvalidRequest               (given)                     400 · 404 · 405 · 408 · 409 · 413 · 415 · 422
    ├── Unauthorised                 api_key_missing             401
    ├── Forbidden                    api_key_invalid             403
    ├── Overloaded                   overloaded                  429 + Retry-After
    ├── RateLimited                  rate_limited                429 + Retry-After
    ├── JobsFull                     jobs_full                   429 + Retry-After
    ├── JobsUnavailable              jobs_unavailable            503 + Retry-After
    ├── ModelLoading                 model_loading               503 + Retry-After
    ├── ModelUnavailable             model_unavailable           503
    ├── OutOfMemory                  out_of_memory               503 + Retry-After
    ├── EngineFailed                 engine_failed               503 + Retry-After
    ├── ShuttingDown                 shutting_down               503 + Retry-After
    ├── DeadlineExceeded             deadline_exceeded           504
    ├── OutputTruncated              output_truncated            422
    ├── OutputInvalid                output_invalid              500
    └── InternalError                internal_error              500

`message` is a fixed sentence that is safe to send to a caller. What only the operator may read (paths, causes) travels in
`detail`: it goes to the log, and to `/health` for a caller with a key.
"""

_MOST_OF_A_LINE = 300


class ServiceError(Exception):
    """An error with the HTTP status, code and sentence that a caller sees.

    Args:
        message: the sentence for the caller.
        detail: the operator's part: cause and remedy.
        retry_after_s: seconds after which a retry may succeed; becomes the `Retry-After` header.
    """

    code = "internal_error"
    status = 500
    message = "The service failed to handle this request."

    def __init__(self, message: str | None = None, *, detail: str | None = None, retry_after_s: int | None = None) -> None:
        self.message = message or type(self).message
        self.detail = detail
        self.retry_after_s = retry_after_s
        super().__init__(detail or self.message)


class InvalidRequest(ServiceError):
    """The request itself is at fault; sending it again changes nothing. `param` is the field, where a caller is told it."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class Unauthorised(ServiceError):
    """No key was sent where one is needed."""

    code = "api_key_missing"
    status = 401
    message = "Send your key as 'X-API-Key: KEY' or 'Authorization: Bearer KEY'."


class Forbidden(ServiceError):
    """A key was sent and it is not one of ours."""

    code = "api_key_invalid"
    status = 403
    message = "This key is not valid."


class Overloaded(ServiceError):
    """The waiting line is full."""

    code = "overloaded"
    status = 429
    message = "The waiting line is full. Try again later."


class RateLimited(ServiceError):
    """A key has used what it may."""

    code = "rate_limited"
    status = 429
    message = "This key has used what it may. Try again later."


class JobsFull(ServiceError):
    """No more jobs are taken in."""

    code = "jobs_full"
    status = 429
    message = "The service keeps as many jobs as it may. Try again later."


class JobsUnavailable(ServiceError):
    """The jobs can't be read or written now."""

    code = "jobs_unavailable"
    status = 503
    message = "The service can't keep jobs now. Try again later; POST /prompt needs none."


class ModelLoading(ServiceError):
    """The model is still being loaded."""

    code = "model_loading"
    status = 503
    message = "The model is still loading. Try again later; GET /health says how far it is."


class ModelUnavailable(ServiceError):
    """The model can't be loaded on this machine; an operator has to act."""

    code = "model_unavailable"
    status = 503
    message = "The model could not be loaded. The operator finds the cause in the log."


class OutOfMemory(ServiceError):
    """The device ran out of memory during this request."""

    code = "out_of_memory"
    status = 503
    message = "The device ran out of memory for this request. Try again later or send a shorter one."


class EngineFailed(ServiceError):
    """The engine failed for good: the process is about to end, and another one takes over."""

    code = "engine_failed"
    status = 503
    message = "The engine failed and is started again. Try again."


class ShuttingDown(ServiceError):
    """The service is stopping."""

    code = "shutting_down"
    status = 503
    message = "The service is shutting down. Try again."


class DeadlineExceeded(ServiceError):
    """Waiting and generating took longer than the service allows a request."""

    code = "deadline_exceeded"
    status = 504
    message = "The request took longer than the service allows."


class OutputTruncated(ServiceError):
    """An answer that had to keep a schema was cut before it was whole."""

    code = "output_truncated"
    status = 422
    message = (
        "The answer was cut before its JSON was complete. Allow more max_tokens, or bound the schema's strings and arrays."
    )


class OutputInvalid(ServiceError):
    """An answer does not keep the schema that it was written under: a fault of ours."""

    code = "output_invalid"
    status = 500
    message = "The answer did not keep the schema, and was withheld."


class InternalError(ServiceError):
    """A fault of ours."""


def in_a_line(error: BaseException) -> str:
    """What a library's error says, for the operator: its type and its first sentence. Some of them write pages."""
    lines = [line.strip() for line in str(error).splitlines()]
    first = next((line for line in lines if line), "").partition(". ")[0].rstrip(".")
    short = first if len(first) <= _MOST_OF_A_LINE else f"{first[:_MOST_OF_A_LINE]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
