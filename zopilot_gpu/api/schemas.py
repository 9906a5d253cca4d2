"""The shapes on the wire of `POST /prompt`. Knows names, types, defaults and bounds; nothing of how they are served."""

from typing import Annotated, Any, Literal, Self

from bentoml import IODescriptor
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request

PARSED = "zopilot_gpu.prompt_request"
StopString = Annotated[str, StringConstraints(min_length=1, max_length=64)]


class PromptRequest(IODescriptor):
    """The body of `POST /prompt`. Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    prompt: str = Field(
        min_length=1, max_length=1_000_000, description="The instruction or question.", examples=["What is the total?"]
    )
    context: dict[str, Any] | None = Field(
        default=None,
        description="A JSON object that the prompt is about; it is put under the prompt as JSON.",
        examples=[{"vendor": "Acme", "total": "118.40"}],
    )
    max_tokens: int = Field(default=1024, ge=1, le=32_768, description="Most tokens to generate.")
    min_tokens: int = Field(
        default=0, ge=0, le=32_768, description="Fewest tokens before the model may end. No use with a schema."
    )
    temperature: float = Field(default=0.1, ge=0, le=2, description="Below 0.01: greedy.")
    top_p: float = Field(default=0.95, gt=0, le=1, description="Nucleus sampling; 1 is off.")
    top_k: int = Field(default=50, ge=0, le=1000, description="Draw from the k likeliest tokens; 0 is off.")
    repetition_penalty: float = Field(default=1.1, ge=0.1, le=2, description="Above 1 discourages tokens already seen.")
    seed: int | None = Field(
        default=None, ge=0, lt=2**63, description="The same seed and request give the same answer. Unset: a fresh one."
    )
    stop: list[StopString] = Field(
        default=[], max_length=4, description="Up to four strings that end the answer; they are not part of it."
    )
    json_schema: dict[str, Any] | None = Field(
        default=None,
        description="A JSON Schema that the answer keeps; `output` is then the value itself. See below.",
        examples=[{"type": "object", "properties": {"total": {"type": "number"}}, "required": ["total"]}],
    )
    stream: bool = Field(default=False, description="`true` answers as server-sent events.")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:  # noqa: ARG003
        """The request that the gate has parsed already (`api.parse`); BentoML would parse the body again."""
        parsed: Self = request.scope[PARSED]
        return parsed


class Usage(BaseModel):
    """Token counts."""

    prompt_tokens: int = Field(description="Tokens of the template, prompt and context.")
    cached_tokens: int = Field(description="Prompt tokens that needed no prefill.")
    completion_tokens: int = Field(description="Tokens generated.")


class Metadata(BaseModel):
    """What is known about an answer."""

    request_id: str = Field(description="Also in the `X-Request-ID` header and in the log.")
    model: str = Field(description="The model that answered.")
    generated_at: str = Field(description="UTC, ISO 8601.")
    prompt_length: int = Field(description="Characters of `prompt`.")
    context_provided: bool = Field(description="Whether a context was sent.")
    output_type: Literal["text", "json"] = Field(description="`json` when a schema was given.")
    finish_reason: Literal["stop", "length"] = Field(description="`length`: cut by `max_tokens` or the context window.")
    processing_time_seconds: float = Field(description="Arrival to last token.")
    usage: Usage


class PromptResponse(IODescriptor):
    """The answer of `POST /prompt`."""

    success: Literal[True] = True
    output: Any = Field(description="The answer: a string, or with `json_schema` the value that keeps it.")
    metadata: Metadata
