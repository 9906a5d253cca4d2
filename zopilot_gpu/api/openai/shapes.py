"""What the OpenAI-compatible routes take. Knows names, types and bounds; what is not here is refused.

Source: https://platform.openai.com/docs/api-reference/chat/create and /completions/create. Fields without effect are taken on
purpose, each with the reason in its description.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from zopilot_gpu.api.schemas import StopString

MAX_CHOICES = 8
MAX_BIASES = 300
MAX_TOP_LOGPROBS = 20
DEFAULT_MAX_TOKENS = 1024
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=64)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenId = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]


class Strict(BaseModel):
    """Unknown keys are refused; nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class TextPart(Strict):
    """A piece of a message."""

    type: Literal["text"]
    text: str


Content = str | list[TextPart]


class SystemMessage(Strict):
    """Instructions; told to the model at the beginning of the first user turn, wherever they stand."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Strict):
    """What the user says."""

    role: Literal["user"]
    content: Content


class CalledFunction(Strict):
    """The function of a call, and its arguments as JSON text."""

    name: FunctionName
    arguments: str


class SentCall(Strict):
    """A call that the model made earlier."""

    id: CallId
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(Strict):
    """What the model said earlier. `refusal`, `audio`, `function_call` and `annotations` may be there, empty."""

    role: Literal["assistant"]
    content: Content | None = None
    tool_calls: list[SentCall] | None = Field(default=None, max_length=MAX_CHOICES)
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None


class ToolMessage(Strict):
    """What a call gave."""

    role: Literal["tool"]
    tool_call_id: CallId
    content: Content


Message = Annotated[SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON Schema. It is always kept, whatever `strict` says."""

    model_config = ConfigDict(populate_by_name=True)

    name: FunctionName
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Strict):
    """JSON that keeps a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Function(Strict):
    """A function that the model may call. `parameters` are always kept, whatever `strict` says."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Strict):
    """A tool: a function."""

    type: Literal["function"]
    function: Function


class FunctionChoice(Strict):
    """The name of a function."""

    name: FunctionName


class NamedToolChoice(Strict):
    """The tool to call."""

    type: Literal["function"]
    function: FunctionChoice


class StreamOptions(Strict):
    """What a stream has besides."""

    include_usage: bool = Field(default=False, description="A last chunk with the usage.")


class _Common(Strict):
    model: str = Field(description="The name in `/v1/models`, or its part after the last `/`.", examples=["demo"])
    max_tokens: int | None = Field(
        default=None, ge=1, le=32_768, description=f"Most tokens to generate. Unset: {DEFAULT_MAX_TOKENS}."
    )
    temperature: float | None = Field(default=None, ge=0, le=2, description="Below 0.01: greedy. Unset: 1.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus sampling. Unset: 1, which is off.")
    frequency_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Taken from a token's logit for each time that it is in the answer."
    )
    presence_penalty: float | None = Field(
        default=None, ge=-2, le=2, description="Taken from a token's logit once it is in the answer."
    )
    logit_bias: dict[TokenId, Bias] | None = Field(
        default=None,
        max_length=MAX_BIASES,
        description="Added to the logits of tokens, by id of the served model: up to 300, -100 to 100 each.",
    )
    seed: int | None = Field(
        default=None,
        ge=-(2**63),
        lt=2**63,
        description="The same seed and request give the same answer; choice `i` has seed + `i`.",
    )
    stop: StopString | Annotated[list[StopString], Field(max_length=4)] | None = Field(
        default=None,
        description="Up to four strings that end the answer; they are not part of it. Not with JSON or a forced call.",
    )
    n: int | None = Field(
        default=None, ge=1, le=MAX_CHOICES, description="Choices to make; they share the prompt's part of the cache."
    )
    stream: bool | None = Field(default=None, description="`true` answers as server-sent events.")
    stream_options: StreamOptions | None = Field(default=None, description="`include_usage`. Only with `stream`.")
    user: str | None = Field(default=None, max_length=512, description="No effect: there is nobody to report to.")


class ChatRequest(_Common):
    """The body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(
        min_length=1,
        max_length=1024,
        description="Roles `system`, `developer`, `user`, `assistant`, `tool`; text only; the last is the user's or a tool's.",
        examples=[[{"role": "user", "content": "What is the total?"}]],
    )
    max_completion_tokens: int | None = Field(default=None, ge=1, le=32_768, description="As `max_tokens`; send one of them.")
    logprobs: bool | None = Field(default=None, description="Log probabilities of the answer's tokens. Not with tools.")
    top_logprobs: int | None = Field(
        default=None, ge=0, le=MAX_TOP_LOGPROBS, description="So many likeliest tokens in each place. Only with `logprobs`."
    )
    response_format: Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")] | None = Field(
        default=None, description="`text`, `json_object` or `json_schema`, which is always strict. Not with tools."
    )
    tools: list[Tool] | None = Field(default=None, max_length=64, description="Functions that the model may call.")
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        default=None, description="`none`, `auto` (as with tools when unset), `required`, or a function by name."
    )
    parallel_tool_calls: bool | None = Field(default=None, description="No effect: an answer has at most one call.")
    store: Literal[False] | None = Field(default=None, description="Only `false`: nothing is stored.")
    metadata: dict[str, str] | None = Field(
        default=None, max_length=16, description="No effect: it is for stored answers, and nothing is stored."
    )


class CompletionRequest(_Common):
    """The body of `POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MAX_CHOICES)] = Field(
        description="Text to continue, as it is; or up to eight. Prompts times `n` is at most eight.",
        examples=["The invoice is"],
    )
    logprobs: int | None = Field(
        default=None, ge=0, le=5, description="Log probabilities of the answer's tokens, and of so many likeliest."
    )
