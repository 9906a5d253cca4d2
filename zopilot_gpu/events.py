"""What travels between the API and a runner: a job goes down, events come up. Plain values; no behaviour.

The stream of a job is any number of `Text`, then exactly one `Done`; or it raises a `ServiceError`.
`/prompt`, its stream and the command line are spellings of this one stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off.

    The end of the sequence is not drawn before `min_tokens`, unless a schema leaves nothing else.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
    min_tokens: int = 0


GREEDY = Sampling(temperature=0, top_p=1, top_k=0, repetition_penalty=1, seed=None)


@dataclass(frozen=True, slots=True)
class Job:
    """One validated request.

    `deadline_s` is a reading of `time.monotonic()`; what one `owner` leaves, no other finds; `json_schema` is the text of a
    JSON Schema that the answer keeps.
    """

    request_id: str
    prompt: str
    context: Mapping[str, Any] | None
    max_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    deadline_s: float
    owner: bytes = b""
    json_schema: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` are prompt tokens that needed no prefill."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer; never empty."""

    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the answer: `stop` (end of sequence or a stop string) or `length` (token limit or context window)."""

    finish_reason: FinishReason
    usage: Usage


Event = Text | Done
