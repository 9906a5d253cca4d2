"""What the gate knows of the request being served, for everything that runs on its behalf."""

import re
import time
import uuid
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import Scope

from zopilot_gpu.api.openai.errors import is_openai

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(slots=True)
class RequestInfo:
    """What is known of it: since when it is here (`time.monotonic()`), whether the key was right, and whose that is.

    `owner` marks what belongs to the key; `key_name` is for logs. Both are empty without a key.
    `speaks_openai` says in which shape its errors are told.
    """

    request_id: str
    arrived_s: float = field(default_factory=time.monotonic)
    authorised: bool = False
    owner: bytes = b""
    key_name: str = ""
    speaks_openai: bool = False


_current: ContextVar[RequestInfo] = ContextVar("zopilot_gpu_request")


def begin(scope: Scope) -> RequestInfo:
    """Starts the record of a request. A well-formed `X-Request-ID` is kept, so that logs of two services meet."""
    sent = Headers(scope=scope).get("x-request-id", "")
    info = RequestInfo(
        request_id=sent if _REQUEST_ID.fullmatch(sent) else uuid.uuid4().hex, speaks_openai=is_openai(scope["path"])
    )
    _current.set(info)
    return info


def current() -> RequestInfo:
    """The record of the request that this code runs for."""
    return _current.get()
