"""Bytes to `PromptRequest` to `Job`: wrong input stops here. Knows pydantic's errors; refuses to quote what was sent.

A body that is no JSON is 400; JSON that is no valid request is 422, with the name of the field and the rule it broke.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from zopilot_gpu.api import json_schema
from zopilot_gpu.api.failures import ErrorResponse
from zopilot_gpu.api.limits import replay_body
from zopilot_gpu.api.request import RequestInfo
from zopilot_gpu.api.schemas import PARSED, PromptRequest
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.events import Job, Sampling

_Model = TypeVar("_Model", bound=BaseModel)
_MOST_PROBLEMS = 5
_GREEDY_BELOW = 0.01  # dividing logits by less overflows


class ParsePrompt:
    """Parses the body of `POST /prompt` once, ahead of BentoML, and leaves the result in the scope."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one request whose body arrives in one piece, or refuses it."""
        if scope["type"] == "http" and scope["path"] == "/prompt" and scope["method"] == "POST":
            body = (await receive())["body"]
            try:
                scope[PARSED] = parse_prompt(body)
            except InvalidRequest as refusal:
                await ErrorResponse(refusal)(scope, receive, send)
                return
            receive = replay_body(b"", receive)
        await self.app(scope, receive, send)


def parse_prompt(body: bytes) -> PromptRequest:
    """The request in `body`.

    Raises:
        InvalidRequest: 400 where it is not JSON, 422 where it is not a valid request.
    """
    parsed = read_as(PromptRequest, body)
    check(parsed)
    return parsed


def read_as(model: type[_Model], body: bytes | str) -> _Model:
    """The `model` in `body`, for its types and bounds.

    Raises:
        InvalidRequest: 400 where it is not JSON, 422 where it is not a valid request.
    """
    try:
        parsed: _Model = model.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    return parsed


def check(parsed: PromptRequest) -> None:
    """What types and bounds do not say.

    Raises:
        InvalidRequest: 422.
    """
    if not parsed.prompt.strip():
        raise _invalid("prompt: must not be empty")
    if "\0" in parsed.prompt or any("\0" in stop for stop in parsed.stop):
        raise _invalid("prompt, stop: must not contain U+0000")
    try:
        json.dumps(parsed.context, allow_nan=False)
    except ValueError:
        raise _invalid("context: must be plain JSON, without NaN, Infinity or integers of thousands of digits") from None
    if parsed.min_tokens > parsed.max_tokens:
        raise _invalid("min_tokens: must not be above max_tokens")
    if parsed.json_schema is not None and parsed.stop:
        raise _invalid("stop: can't be used with json_schema, which says where the answer ends")


def job_of(request: PromptRequest, info: RequestInfo, timeout_s: float) -> Job:
    """The job that a runner does for `request`; its deadline counts from the request's arrival.

    Raises:
        InvalidRequest: 422 where its schema can't be asked for.
    """
    return Job(
        request_id=info.request_id,
        prompt=request.prompt,
        context=request.context,
        max_tokens=request.max_tokens,
        sampling=Sampling(
            temperature=request.temperature if request.temperature >= _GREEDY_BELOW else 0,
            top_p=request.top_p,
            top_k=request.top_k,
            repetition_penalty=request.repetition_penalty,
            seed=request.seed,
            min_tokens=request.min_tokens,
        ),
        stop=tuple(request.stop),
        deadline_s=info.arrived_s + timeout_s,
        owner=info.owner,
        json_schema=None if request.json_schema is None else json_schema.read(request.json_schema),
    )


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(422, "invalid_request", message)


def _refusal(error: ValidationError) -> InvalidRequest:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if any(problem["type"] == "json_invalid" for problem in problems):
        return InvalidRequest(400, "invalid_json", "The body is not valid JSON in UTF-8, or is nested too deeply.")
    sentences = [_sentence(problem) for problem in problems[:_MOST_PROBLEMS]]
    if len(problems) > _MOST_PROBLEMS:
        sentences.append(f"and {len(problems) - _MOST_PROBLEMS} more")
    return _invalid("; ".join(sentences))


def _sentence(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"])[:100]
    reason = "unknown field" if problem["type"] == "extra_forbidden" else problem["msg"]
    return f"{where}: {reason}" if where else str(reason)
