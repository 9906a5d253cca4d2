"""One JSON object a line on standard error. Knows how lines look; refuses what must not be in them.

Prompts, outputs, headers and keys are never passed to a logger. Lines of other libraries (bentoml, uvicorn) go
through the same formatter; their tracebacks are cut to file, line and exception type, because an exception's text can
quote what a caller sent.
"""

import logging
import sys
import traceback
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

import structlog

_ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]


def configure(level: str = "info") -> None:
    """Sends every line of this process through the JSON formatter: ours from `level` on, those of others from warnings on.

    Others log what they handle: sse-starlette each chunk of an answer, at debug. Safe to call again.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _short_traceback,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    for name in list(logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        logger.handlers = []
        logger.propagate = True
        logger.setLevel(logging.NOTSET)
    root.setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    for ours in ("zopilot_gpu", "runners"):
        logging.getLogger(ours).setLevel(level.upper())


def bound(**fields: str) -> AbstractContextManager[None]:
    """Adds `fields` to every line logged inside the `with` block, by this task and those it starts."""
    return structlog.contextvars.bound_contextvars(**fields)


def get(name: str) -> Any:
    """A logger; `log.get(__name__).info("model_ready", load_s=3.2)`."""
    return structlog.stdlib.get_logger(name)


def _short_traceback(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    exc_info = event.pop("exc_info", None)
    if exc_info is True:
        exc_info = sys.exc_info()
    if isinstance(exc_info, BaseException):
        exc_info = (type(exc_info), exc_info, exc_info.__traceback__)
    if not exc_info or exc_info[0] is None:
        return event
    kind, _error, trace = exc_info
    frames = traceback.extract_tb(trace)[-8:]
    event["exception"] = kind.__name__
    event["at"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    return event
