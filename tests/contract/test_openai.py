"""The official `openai` client against a served demo model: every call, every refusal, and what happens when it leaves."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import jsonschema
import openai
import pytest
from pydantic import BaseModel, ConfigDict

from tests.conftest import KEY, Serve, Server, free_port

MODEL = "demo"
INVOICE = '{"vendor": "Acme", "invoice_number": "INV-1042", "total": "118.40", "due_date": "2026-12-01"}'
QUESTION: Any = {"role": "user", "content": f"What is the total?\n\nContext:\n{INVOICE}"}
TALKATIVE: Any = {
    "role": "user",
    "content": "Return all fields as JSON.\n\nContext:\n" + json.dumps({f"f{n}": n for n in range(12)}),
}
OPEN_BRACE = {"350": 100.0}  # the demo model's token for `{`
PAY: Any = {
    "type": "function",
    "function": {
        "name": "pay",
        "description": "Pays an invoice.",
        "parameters": {
            "type": "object",
            "properties": {"currency": {"enum": ["EUR", "USD"]}, "cents": {"$ref": "#/$defs/cents"}},
            "required": ["currency", "cents"],
            "additionalProperties": False,
            "$defs": {"cents": {"type": "integer", "minimum": 1, "maximum": 99999}},
        },
    },
}
WAIT: Any = {"type": "function", "function": {"name": "wait"}}


@pytest.fixture(scope="module", params=["mixtral", "plain"])
def server(request: pytest.FixtureRequest, demo_of: Callable[[str], Server]) -> Server:
    return demo_of(request.param)


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with client_of(server) as client:
        yield client


def client_of(server: Server, key: str = KEY, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=60, **options)


def ask(client: openai.OpenAI, *messages: Any, **fields: Any) -> Any:
    """A chat completion, greedy unless told otherwise."""
    return client.chat.completions.create(**({"model": MODEL, "messages": messages or [QUESTION], "temperature": 0} | fields))


def text_of(chunks: Any) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def idle(health: dict[str, Any]) -> bool:
    return bool(health["queue"]["num_running"] == health["queue"]["num_waiting"] == 0)


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError) as refusal:
        client.models.retrieve("org/other")
    assert (refusal.value.code, refusal.value.param) == ("model_not_found", "model")


def test_chat_says_what_prompt_says(client: openai.OpenAI, server: Server) -> None:
    answer = ask(client)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "118.40", "stop")
    assert (answer.object, answer.model) == ("chat.completion", MODEL)
    with server.client() as http:
        asked = {"prompt": "What is the total?", "context": json.loads(INVOICE), "temperature": 0, "repetition_penalty": 1}
        usage = http.post("/prompt", json=asked).json()["metadata"]["usage"]
    assert answer.usage.prompt_tokens == usage["prompt_tokens"]
    assert answer.usage.completion_tokens == usage["completion_tokens"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id
    assert answer.id.endswith(answer._request_id)


def test_a_conversation_goes_on_from_its_own_answer(client: openai.OpenAI) -> None:
    first = ask(client)
    vendor = {"role": "user", "content": f"Who is the vendor?\n\nContext:\n{INVOICE}"}
    second = ask(
        client,
        {"role": "system", "content": [{"type": "text", "text": "Be exact."}]},
        QUESTION,
        first.choices[0].message,
        vendor,
    )
    assert "Acme" in second.choices[0].message.content
    assert second.usage.prompt_tokens > 2 * first.usage.prompt_tokens


def test_a_stream_tells_the_same_and_the_usage_at_its_end(client: openai.OpenAI) -> None:
    whole = ask(client)
    *chunks, last = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == whole.choices[0].message.content
    assert len(chunks) > 4
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert all(chunk.choices for chunk in ask(client, stream=True))  # no usage, no last chunk


async def test_the_async_client(server: Server) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        assert [model.id async for model in client.models.list()] == [MODEL]
        asked: Any = {"model": MODEL, "messages": [QUESTION], "temperature": 0}
        answers = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(4)))
        assert {answer.choices[0].message.content for answer in answers} == {"118.40"}
        stream = await client.chat.completions.create(**asked, stream=True)
        assert text_of([chunk async for chunk in stream]) == "118.40"


def test_json_schema_is_kept(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"total": {"type": "string", "pattern": "^[0-9]{1,5}\\.[0-9]{2}$"}},
        "required": ["total"],
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "total", "schema": schema, "strict": True}}
    answer = ask(client, response_format=form, max_tokens=60)
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    assert text_of(ask(client, response_format=form, max_tokens=60, stream=True)) == answer.choices[0].message.content


class Total(BaseModel):
    model_config = ConfigDict(extra="forbid")
    paid: bool
    cents: int


def test_the_clients_own_parsing(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "messages": [QUESTION], "temperature": 0, "response_format": Total}
    parsed = client.chat.completions.parse(**asked, max_tokens=60).choices[0].message.parsed
    assert isinstance(parsed, Total)
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**asked, max_tokens=3)


def test_json_object(client: openai.OpenAI) -> None:
    asked = {"role": "user", "content": f"Return the vendor and the total as JSON.\n\nContext:\n{INVOICE}"}
    answer = ask(client, asked, response_format={"type": "json_object"})
    assert isinstance(json.loads(answer.choices[0].message.content), dict)
    assert ask(client, response_format={"type": "text"}).choices[0].message.content == "118.40"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "pay"}}])
@pytest.mark.parametrize("temperature", [0, 2])
def test_a_forced_call_keeps_its_schema(client: openai.OpenAI, choice: Any, temperature: float) -> None:
    tools = [PAY] if choice == "required" else [WAIT, PAY]
    answer = ask(client, tools=tools, tool_choice=choice, max_tokens=80, temperature=temperature, seed=3)
    (one,) = answer.choices
    assert (one.finish_reason, one.message.content) == ("tool_calls", None)
    (call,) = one.message.tool_calls
    assert (call.type, call.function.name) == ("function", "pay")
    jsonschema.validate(json.loads(call.function.arguments), PAY["function"]["parameters"])
    chunks = list(ask(client, tools=tools, tool_choice=choice, max_tokens=80, temperature=temperature, seed=3, stream=True))
    calls = [each for chunk in chunks for each in chunk.choices[0].delta.tool_calls or ()]
    assert [(each.index, each.function.name, each.function.arguments) for each in calls] == [
        (0, "pay", call.function.arguments)
    ]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_one_of_several_tools_is_called_when_a_call_is_required(client: openai.OpenAI) -> None:
    answer = ask(client, tools=[PAY, WAIT], tool_choice="required", max_tokens=80)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name in {"pay", "wait"}


def test_a_call_that_is_cut_is_no_call(client: openai.OpenAI) -> None:
    (choice,) = ask(client, tools=[PAY], tool_choice="required", max_tokens=5).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls is None


@pytest.mark.parametrize("stream", [False, True])
def test_with_auto_the_model_begins_a_call_or_a_text(client: openai.OpenAI, stream: bool) -> None:  # noqa: FBT001
    def finish(**fields: Any) -> tuple[str, bool]:
        answer = ask(client, tools=[PAY], max_tokens=80, stream=stream, **fields)
        if not stream:
            return answer.choices[0].finish_reason, bool(answer.choices[0].message.tool_calls)
        chunks = list(answer)
        return chunks[-1].choices[0].finish_reason, any(chunk.choices[0].delta.tool_calls for chunk in chunks)

    assert finish(logit_bias=OPEN_BRACE) == ("tool_calls", True)
    assert finish(logit_bias={"350": -100, "409": -100})[1] is False
    assert finish(logit_bias=OPEN_BRACE, tool_choice="none")[1] is False


def test_what_a_tool_gave_is_part_of_the_conversation(client: openai.OpenAI) -> None:
    called = ask(client, tools=[PAY], tool_choice="required", max_tokens=80).choices[0].message
    gave = {"role": "tool", "tool_call_id": called.tool_calls[0].id, "content": INVOICE}
    answer = ask(
        client, QUESTION, called, gave, {"role": "user", "content": "What is the total?"}, tools=[PAY], tool_choice="none"
    )
    assert answer.choices[0].message.content is not None
    with pytest.raises(openai.BadRequestError, match="tool_call_id") as refusal:
        ask(client, QUESTION, called, gave | {"tool_call_id": "call_other"})
    assert refusal.value.param == "messages[2]"


def test_log_probabilities(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content == "118.40"
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token  # greedy
        values = [top.logprob for top in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert values[0] == token.logprob <= 0
    assert ask(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs == []
    assert ask(client).choices[0].logprobs is None
    chunks = list(ask(client, logprobs=True, top_logprobs=3, stream=True))
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert [token.token for token in streamed] == [token.token for token in tokens]


def test_log_probabilities_under_a_schema_are_of_what_it_allows(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["yes", "no"]}}}
    choice = ask(client, response_format=form, logprobs=True, top_logprobs=5).choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == choice.message.content
    assert all(token.logprob <= 0 for token in tokens)
    assert any(token.logprob == 0 and len(token.top_logprobs) == 1 for token in tokens)  # what has to follow is certain


def test_choices_share_the_prompt(client: openai.OpenAI) -> None:
    answer = ask(client, TALKATIVE, n=4, temperature=2, seed=5, max_tokens=12)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage.completion_tokens <= 4 * 12
    again = ask(client, TALKATIVE, temperature=2, seed=6, max_tokens=12)
    assert again.choices[0].message.content == answer.choices[1].message.content  # its seed is the next
    chunks = list(ask(client, TALKATIVE, n=4, temperature=2, seed=5, max_tokens=12, stream=True))
    for choice in answer.choices:
        own = [chunk for chunk in chunks if chunk.choices[0].index == choice.index]
        assert text_of(own) == choice.message.content
        assert own[-1].choices[0].finish_reason == choice.finish_reason


def test_the_second_choice_finds_the_prompt_in_the_cache(server: Server, client: openai.OpenAI) -> None:
    if server.health()["model"]["runner"] != "mixtral":
        return  # the plain backend has no cache
    before = server.health()["engine"]["num_prefix_hits"]
    fresh = {"role": "user", "content": f"{time.monotonic_ns()} " * 8}
    answer = ask(client, fresh, n=3, max_tokens=4)
    assert answer.usage.prompt_tokens_details.cached_tokens == 0
    assert server.health()["engine"]["num_prefix_hits"] == before + 2


def test_seeds(client: openai.OpenAI) -> None:
    def say(seed: int) -> str:
        wild: Any = {"temperature": 2, "frequency_penalty": 2, "presence_penalty": 2, "logit_bias": {"2": -100}}
        return str(ask(client, seed=seed, max_tokens=40, **wild).choices[0].message.content)

    assert say(7) == say(7) != say(8)
    assert say(-1) == say(-1)


def test_bias_and_penalties(client: openai.OpenAI) -> None:
    assert ask(client, logit_bias=OPEN_BRACE, max_tokens=6).choices[0].message.content == "{" * 6
    assert (
        len(
            set(
                ask(client, logit_bias={"350": 20}, frequency_penalty=2, presence_penalty=2, max_tokens=40)
                .choices[0]
                .message.content
            )
        )
        > 1
    )
    with pytest.raises(openai.BadRequestError, match="there is no 999999"):
        ask(client, logit_bias={"999999": 1})


def test_stop_and_length(client: openai.OpenAI) -> None:
    stopped = ask(client, stop=".").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("118", "stop")
    assert ask(client, stop=["x", "8."]).choices[0].message.content == "11"
    for limit in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        cut = ask(client, **limit)
        assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("11", "length")
        assert cut.usage.completion_tokens == 2


def test_legacy_completions(client: openai.OpenAI) -> None:
    asked: Any = {"model": MODEL, "prompt": ["The total is", "Hello"], "temperature": 0, "max_tokens": 8, "n": 2, "logprobs": 2}
    answer = client.completions.create(**asked)
    assert (answer.object, len(answer.choices)) == ("text_completion", 4)
    assert answer.choices[0].text == answer.choices[1].text  # greedy
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert "".join(choice.logprobs.tokens or ()) == choice.text
        assert all(len(top) <= 2 for top in choice.logprobs.top_logprobs or ())
    *chunks, last = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    for choice in answer.choices:
        assert "".join(each.text for chunk in chunks for each in chunk.choices if each.index == choice.index) == choice.text
    assert last.usage is not None
    assert answer.usage is not None
    assert last.usage.total_tokens == answer.usage.total_tokens


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
NO_OBJECT = {"type": "function", "function": {"name": "x", "parameters": {"type": "string"}}}
NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "thing"}}}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"extra_body": {"top_k": 5}}, "top_k"),
    "reasoning_effort": ({"reasoning_effort": "low"}, "reasoning_effort"),
    "store": ({"store": True}, "store"),
    "no messages": ({"messages": []}, "messages"),
    "role": ({"messages": [{"role": "boss", "content": "Hi"}]}, "messages[0]"),
    "image": ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type"),
    "last is the model's": ({"messages": [QUESTION, {"role": "assistant", "content": "Hi"}]}, "messages[1]"),
    "empty": ({"messages": [{"role": "user", "content": " "}]}, "messages[0]"),
    "U+0000": ({"messages": [{"role": "user", "content": "a\0"}]}, "messages[0]"),
    "temperature": ({"temperature": 3}, "temperature"),
    "n": ({"n": 9}, "n"),
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs"),
    "top_logprobs": ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    "logit_bias": ({"logit_bias": {"5": 101}}, "logit_bias.5"),
    "logit_bias of a word": ({"logit_bias": {"word": 1}}, "logit_bias.word"),
    "301 biases": ({"logit_bias": {str(n): 1 for n in range(301)}}, "logit_bias"),
    "five stops": ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    "both limits": ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
    "stream_options alone": ({"stream_options": {"include_usage": True}}, "stream_options"),
    "tool_choice alone": ({"tool_choice": "required"}, "tool_choice"),
    "tool that is not there": ({"tools": [PAY], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
    "two tools of a name": ({"tools": [PAY, PAY]}, "tools"),
    "tool without an object": ({"tools": [NO_OBJECT]}, "tools[0].function.parameters"),
    "tools and JSON": ({"tools": [PAY], "response_format": {"type": "json_object"}}, "response_format"),
    "tools and logprobs": ({"tools": [PAY], "logprobs": True}, "logprobs"),
    "stop and JSON": ({"stop": "x", "response_format": {"type": "json_object"}}, "stop"),
    "no schema": ({"response_format": NO_SCHEMA}, "response_format.json_schema.schema"),
}  # fmt: skip


@pytest.fixture(scope="module")
def demo(serve: Serve) -> Iterator[Server]:
    """The demo model without a waiting line."""
    with serve(ZOPILOT_GPU_MODEL=MODEL, ZOPILOT_GPU_MAX_WAITING="0", ZOPILOT_GPU_REQUEST_TIMEOUT_S="30") as server:
        yield server


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_a_bad_request_with_its_field(demo: Server, case: str) -> None:
    fields, param = REFUSED[case]
    with client_of(demo) as client, pytest.raises(openai.BadRequestError) as refusal:
        ask(client, **fields)
    assert (refusal.value.type, refusal.value.param) == ("invalid_request_error", param)
    assert refusal.value.code
    assert param.rpartition(".")[2].partition("[")[0] in str(refusal.value)


def test_each_error_class_of_the_client(demo: Server) -> None:
    raised: dict[type[openai.APIError], Any] = {}

    def fails(kind: type[openai.APIError], client: openai.OpenAI, **fields: Any) -> None:
        with client, pytest.raises(kind) as refusal:
            ask(client, **fields)
        raised[type(refusal.value)] = refusal.value

    fails(openai.BadRequestError, client_of(demo), messages=[{"role": "user", "content": "word " * 3000}])
    fails(openai.PermissionDeniedError, client_of(demo, "wrong"))
    fails(openai.NotFoundError, client_of(demo), model="gpt-9")
    fails(openai.APITimeoutError, client_of(demo).with_options(timeout=0.001))
    nowhere = openai.OpenAI(base_url=f"http://127.0.0.1:{free_port()}/v1", api_key="k", max_retries=0)
    fails(openai.APIConnectionError, nowhere)
    bare = openai.OpenAI(base_url=f"{demo.url}/v1", api_key=KEY, max_retries=0, default_headers={"Authorization": ""})
    fails(openai.AuthenticationError, bare)
    codes = {kind: error.code for kind, error in raised.items() if isinstance(error, openai.APIStatusError)}
    assert codes == {
        openai.BadRequestError: "context_length_exceeded",
        openai.PermissionDeniedError: "api_key_invalid",
        openai.NotFoundError: "model_not_found",
        openai.AuthenticationError: "api_key_missing",
    }


async def test_a_full_line_is_a_rate_limit_error_and_the_client_tries_again(demo: Server) -> None:
    async def one(retries: int) -> Any:
        async with openai.AsyncOpenAI(base_url=f"{demo.url}/v1", api_key=KEY, max_retries=retries) as client:
            asked: Any = {"model": MODEL, "messages": [TALKATIVE], "n": 8, "max_tokens": 200, "logit_bias": {"2": -100}}
            return await client.chat.completions.create(**asked)

    results = await asyncio.gather(*(one(0) for _ in range(16)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, openai.RateLimitError)]
    assert refused
    assert {error.code for error in refused} == {"overloaded"}
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refused)
    assert len(refused) < 16
    assert len((await one(3)).choices) == 8
    await asyncio.to_thread(demo.wait_for, idle)


def test_loading_or_failed_is_an_internal_server_error(serve: Serve) -> None:
    with serve(ready=False, ZOPILOT_GPU_MODEL="nobody/nothing") as server, client_of(server) as client:
        server.wait_for(lambda health: health["status"] == "unavailable")
        with pytest.raises(openai.InternalServerError) as refusal:
            ask(client, model="nothing")
    assert (refusal.value.code, refusal.value.type, refusal.value.status_code) == ("model_unavailable", "server_error", 503)


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "code"),
    [
        ("POST", "/v1/unknown", {"json": {}}, 404, "not_found"),
        ("GET", "/v1/chat/completions", {}, 405, "method_not_allowed"),
        ("POST", "/v1/chat/completions", {"content": b"{"}, 400, "invalid_json"),
        (
            "POST",
            "/v1/chat/completions",
            {"content": b"a", "headers": {"Content-Type": "text/plain"}},
            415,
            "unsupported_media_type",
        ),
        ("POST", "/v1/chat/completions", {"content": b" " * 2_000_000}, 413, "body_too_large"),
        ("POST", "/v1/models/", {}, 405, "method_not_allowed"),
    ],
)
def test_the_gate_speaks_openais_shape_below_v1(
    demo: Server, method: str, path: str, sent: dict[str, Any], status: int, code: str
) -> None:
    with demo.client() as http:
        response = http.request(method, path, **{"headers": {"Content-Type": "application/json"}} | sent)
    assert response.status_code == status
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.json()["error"]["code"] == code


@pytest.mark.parametrize("n", [1, 4])
def test_a_stream_that_is_closed_frees_the_engine(server: Server, client: openai.OpenAI, n: int) -> None:
    endless = ask(client, TALKATIVE, n=n, stream=True, max_tokens=1500, logit_bias={"2": -100.0})
    for _, chunk in zip(range(3), endless, strict=False):
        assert chunk.choices
    assert not idle(server.health())
    endless.close()
    server.wait_for(idle)


def test_the_openapi_document_is_served_and_describes_what_is_answered(demo: Server) -> None:
    with demo.client() as http:
        document = http.get("/openapi.json").json()
        for asked, operation in (
            ("/v1/chat/completions", "post"),
            ("/v1/completions", "post"),
            ("/v1/models", "get"),
            ("/prompt", "post"),
        ):
            told = document["paths"][asked][operation]
            body = told.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            answer = http.request(operation.upper(), asked, json=body)
            assert answer.status_code == 200, answer.text
            schema = told["responses"]["200"]["content"]["application/json"]["schema"]
            jsonschema.validate(answer.json(), schema | {"components": document["components"]})
        for path, methods in document["paths"].items():
            if "{" not in path:
                assert (
                    httpx.request(next(iter(methods)), f"{demo.url}{path}", headers=demo.headers, timeout=30).status_code != 404
                ), path
