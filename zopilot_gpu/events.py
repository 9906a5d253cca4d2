"""What travels between the API and a runner: a job goes down, events come up. Plain values; no behaviour.

The stream of a job is any number of `Text`, then exactly one `Done`; or it raises a `ServiceError`.
`/prompt`, its stream, the OpenAI routes and the command line are spellings of this one stream.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 switch those filters off.

    The end of the sequence is not drawn before `min_tokens`, unless a schema leaves nothing else. The last three are added to
    the logits: `logit_bias` to those of its tokens (id, value), the penalties taken from those of tokens already in the answer,
    once (presence) and for each time (frequency). With `num_logprobs` each token comes with its log probability and that
    many of the likeliest; None is off.
    """

    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
    min_tokens: int = 0
    frequency_penalty: float = 0
    presence_penalty: float = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    num_logprobs: int | None = None


GREEDY = Sampling(temperature=0, top_p=1, top_k=0, repetition_penalty=1, seed=None)


@dataclass(frozen=True, slots=True)
class Job:
    """One validated request.

    `deadline_s` is a reading of `time.monotonic()`; what one `owner` leaves, no other finds; `json_schema` is the text of a
    JSON Schema that the answer keeps. `history` are the turns before `prompt`, as pairs of what the user and what the model
    said. With `raw` the prompt is continued as it is, without a template; it has no context and no history then.
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
    history: tuple[tuple[str, str], ...] = ()
    raw: bool = False


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts. `cached_tokens` are prompt tokens that needed no prefill."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    """A token that was drawn, its log probability, and the likeliest tokens in its place with theirs, likeliest first.

    Of the model's own distribution over what a schema allows there: before temperature, penalties and `logit_bias`.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token as bytes, which need not be whole characters, and its log probability."""

    token: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob(Logprob):
    """A token of the answer, with the likeliest in its place."""

    top: tuple[Logprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer; never empty. `logprobs` are those of the tokens that became final with it, when asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """The end of the answer: `stop` (end of sequence or a stop string) or `length` (token limit or context window)."""

    finish_reason: FinishReason
    usage: Usage


Event = Text | Done
