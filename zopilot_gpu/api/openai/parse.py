"""Bytes to request to jobs, for the OpenAI-compatible routes. Wrong input stops here, as 400 with the name of the field."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from runners.base import RunnerState
from zopilot_gpu.api import json_schema
from zopilot_gpu.api.openai.errors import bad_request
from zopilot_gpu.api.openai.messages import conversation
from zopilot_gpu.api.openai.shapes import (
    DEFAULT_MAX_TOKENS,
    MAX_CHOICES,
    ChatRequest,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
)
from zopilot_gpu.api.openai.tools import Calling, calling_of
from zopilot_gpu.api.request import RequestInfo
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.events import Job, Sampling

_GREEDY_BELOW = 0.01  # dividing logits by less overflows
_ANY_OBJECT = json.dumps({"type": "object"})
_TYPES = frozenset({"str", "constrained-str"})
_FORM_AT = {"messages": (2,), "response_format": (1,)}  # where pydantic puts the name of the form
_T = TypeVar("_T", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: a job for each choice, and how they may call tools."""

    jobs: tuple[Job, ...]
    model: str
    stream: bool
    include_usage: bool
    calling: Calling | None = None


def parse(shape: type[_T], body: bytes) -> _T:
    """The request in `body`.

    Raises:
        InvalidRequest: it is not JSON, or not a valid request.
    """
    try:
        return shape.model_validate_json(body)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        # NOTE: where there are several forms, pydantic tells what is wrong by each; the deepest is the one that was meant.
        problem = max(problems, key=lambda one: (len(one["loc"]), not one["type"].endswith("_type")))
    if problem["type"] == "json_invalid":
        raise bad_request("The body is not valid JSON in UTF-8, or is nested too deeply.", code="invalid_json")
    param = _param(problem["loc"])
    if problem["type"] == "extra_forbidden":
        raise bad_request(f"{param}: this service does not know this field, or does not support it", param)
    raise bad_request(f"{param}: {problem['msg']}" if param else problem["msg"], param or None)


def _param(place: tuple[int | str, ...]) -> str:
    """`("messages", 0, "user", "content", "str")` as `messages[0].content`: without the names of forms and types."""
    name = ""
    for at, part in enumerate(place):
        if isinstance(part, int):
            name += f"[{part}]"
        elif at == 0:
            name = part
        elif not (at in _FORM_AT.get(str(place[0]), ()) or part in _TYPES or "[" in part or part != part.lower()):
            name += f".{part}"
    return name[:100]


def refuse_other_model(wanted: str, state: RunnerState) -> None:
    """Raises the 404 of OpenAI where `wanted` is not what is served."""
    if wanted not in {state.model, state.model.rsplit("/")[-1]}:
        sentence = "There is no such model here; GET /v1/models says which there is."
        raise bad_request(sentence, "model", code="model_not_found", status=404)


def asked_of_chat(request: ChatRequest, info: RequestInfo, timeout_s: float) -> Asked:
    """What a chat request asks for.

    Raises:
        InvalidRequest: what is wrong only as a whole.
    """
    calling = calling_of(request)
    schema = _schema_of(request)
    if calling and schema:
        raise bad_request("response_format: can't be used with tools, unless tool_choice is 'none'", "response_format")
    if calling and request.logprobs:
        raise bad_request("logprobs: can't be used with tools, unless tool_choice is 'none'", "logprobs")
    if request.top_logprobs is not None and not request.logprobs:
        raise bad_request("top_logprobs: needs logprobs", "top_logprobs")
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise bad_request("max_tokens: send max_completion_tokens or max_tokens", "max_tokens")
    if request.stop and (schema or (calling and calling.forced)):
        raise bad_request("stop: can't be used with JSON or a call, which say where the answer ends", "stop")
    history, prompt = conversation(request.messages, calling.preamble if calling else None)
    job = replace(
        _job(request, prompt, info, timeout_s),
        history=history,
        json_schema=schema,
        max_tokens=request.max_completion_tokens or request.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=_sampling(request, (request.top_logprobs or 0) if request.logprobs else None),
    )
    return _asked(request, list(_choices(job, request.n or 1)), calling)


def asked_of_completion(request: CompletionRequest, info: RequestInfo, timeout_s: float) -> Asked:
    """What a completion request asks for.

    Raises:
        InvalidRequest: what is wrong only as a whole.
    """
    prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if any(not prompt or "\0" in prompt for prompt in prompts):
        raise bad_request("prompt: must not be empty, and must not contain U+0000", "prompt")
    if len(prompts) * (request.n or 1) > MAX_CHOICES:
        raise bad_request(f"n: prompts times n is at most {MAX_CHOICES}", "n")
    sampling = _sampling(request, request.logprobs)
    jobs = [replace(_job(request, prompt, info, timeout_s), raw=True, sampling=sampling) for prompt in prompts]
    return _asked(request, [choice for job in jobs for choice in _choices(job, request.n or 1)], None)


def _asked(request: ChatRequest | CompletionRequest, jobs: list[Job], calling: Calling | None) -> Asked:
    if request.stream_options and not request.stream:
        raise bad_request("stream_options: only with stream", "stream_options")
    include_usage = bool(request.stream_options and request.stream_options.include_usage)
    return Asked(tuple(jobs), request.model, bool(request.stream), include_usage, calling)


def _job(request: ChatRequest | CompletionRequest, prompt: str, info: RequestInfo, timeout_s: float) -> Job:
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if any("\0" in one for one in stop):
        raise bad_request("stop: must not contain U+0000", "stop")
    return Job(
        request_id=info.request_id,
        prompt=prompt,
        context=None,
        max_tokens=request.max_tokens or DEFAULT_MAX_TOKENS,
        sampling=_sampling(request, None),
        stop=stop,
        deadline_s=info.arrived_s + timeout_s,
        owner=info.owner,
    )


def _sampling(request: ChatRequest | CompletionRequest, num_logprobs: int | None) -> Sampling:
    temperature = 1.0 if request.temperature is None else request.temperature
    biases = {int(token): value for token, value in (request.logit_bias or {}).items()}
    return Sampling(
        temperature=temperature if temperature >= _GREEDY_BELOW else 0,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=0,
        repetition_penalty=1,
        seed=None if request.seed is None else request.seed % 2**63,
        frequency_penalty=request.frequency_penalty or 0,
        presence_penalty=request.presence_penalty or 0,
        logit_bias=tuple(biases.items()),
        num_logprobs=num_logprobs,
    )


def _choices(job: Job, count: int) -> Iterator[Job]:
    seed = job.sampling.seed
    for index in range(count):
        yield job if seed is None else replace(job, sampling=replace(job.sampling, seed=(seed + index) % 2**63))


def _schema_of(request: ChatRequest) -> str | None:
    match request.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema=named):
            return _read(named.schema_)
        case _:
            return None


def _read(schema: dict[str, Any]) -> str:
    where = "response_format.json_schema.schema"
    try:
        return json_schema.read(schema)
    except InvalidRequest as refusal:
        raise bad_request(refusal.message.replace("json_schema", where, 1), where, code=refusal.code) from None
