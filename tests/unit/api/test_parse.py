"""Holds the border between bytes and requests: no JSON is 400, no request is 422 by the field's name, no value is quoted."""

import json
import time
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from zopilot_gpu.api.failures import Failures
from zopilot_gpu.api.parse import ParsePrompt, job_of, parse_prompt
from zopilot_gpu.api.request import RequestInfo
from zopilot_gpu.api.schemas import PARSED, PromptRequest
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.events import Job, Sampling

CANARY = "canary-7f3a"
DEFAULTS: dict[str, Any] = {
    "prompt": "x",
    "context": None,
    "max_tokens": 1024,
    "min_tokens": 0,
    "temperature": 0.1,
    "top_p": 0.95,
    "top_k": 50,
    "repetition_penalty": 1.1,
    "seed": None,
    "stop": [],
    "json_schema": None,
    "stream": False,
}
BOUNDS: list[tuple[str, list[Any], list[Any]]] = [
    ("prompt", ["x", "x" * 1_000_000, "\u6f22\U0001f9fe", " x\n"], ["", " \n\t", "x" * 1_000_001, "a\0b", 1, None, ["x"], {}]),
    ("context", [None, {}, {"a": {"b": [1, 2.5, None, True, "x"]}}, {"a\0": "\0"}], ["x", 1, [], [{}], True]),
    ("max_tokens", [1, 32_768], [0, -1, 32_769, 10**18, 10**30, 1.5, "5", None, True, [1]]),
    ("min_tokens", [0, 1, 1024], [-1, 32_769, 1025, 1.5, "1", None, True]),
    ("temperature", [0, 0.0, 1, 2, 2.0], [-0.1, 2.1, 1e308, "1", None, True]),
    ("top_p", [1e-9, 1, 1.0], [0, -1, 1.1, "1", None, True]),
    ("top_k", [0, 1000], [-1, 1001, 1.5, "1", None, True]),
    ("repetition_penalty", [0.1, 2], [0, 0.09, 1e-40, -1, 2.1, "1", None, True]),
    ("seed", [None, 0, 2**63 - 1], [-1, 2**63, 1.5, "1", True]),
    ("stop", [[], ["a"], ["a"] * 4, ["x" * 64]], [["a"] * 5, [""], ["x" * 65], [1], [None], ["a\0"], "a", None, {}]),
    ("stream", [True, False], ["true", 1, 0, None]),
    ("json_schema", [None, {}, {"type": "object"}], ["x", True, [], 1]),
]


def body_of(**fields: Any) -> bytes:
    return json.dumps({"prompt": "x"} | fields).encode()


def refusal_of(body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        parse_prompt(body)
    assert refusal.value.__cause__ is None
    return refusal.value


def test_a_prompt_alone_gets_the_documented_defaults() -> None:
    assert parse_prompt(b'{"prompt": "x"}').model_dump() == DEFAULTS


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, good, _ in BOUNDS for value in good])
def test_values_up_to_a_bound_are_taken_as_they_are(field: str, value: Any) -> None:
    assert parse_prompt(body_of(**{field: value})).model_dump() == DEFAULTS | {field: value}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, _, bad in BOUNDS for value in bad])
def test_anything_else_is_422_by_the_fields_name(field: str, value: Any) -> None:
    refusal = refusal_of(body_of(**{field: value}))
    assert refusal.status == 422
    assert refusal.code == "invalid_request"
    assert field in refusal.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b'{"prompt": "x"',
        b'{"prompt": "x"} {}',
        b"{'prompt': 'x'}",
        b'{"prompt": "x",}',
        b"prompt=x",
        b'{"prompt": "\xff"}',
        b'{"prompt": "\xc3"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a\nb"}',
        b'\xef\xbb\xbf{"prompt": "x"}',
        '{"prompt": "x"}'.encode("utf-16"),
        b'{"prompt": "x", "context": ' + b'{"a":' * 100_000,
        b'{"prompt": "x", "context": {"a": ' + b"[" * 5000 + b"]" * 5000 + b"}}",
    ],
    ids=lambda body: repr(body[:24]),
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    refusal = refusal_of(body)
    assert (refusal.status, refusal.code) == (400, "invalid_json")


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"1", b"true", b'[{"prompt": "x"}]', b"{}", b'{"context": {}}'])
def test_json_that_is_no_request_is_422(body: bytes) -> None:
    assert refusal_of(body).status == 422


@pytest.mark.parametrize("literal", [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"[[NaN]]", b'{"b": -1e999}'])
def test_numbers_that_json_has_not_are_refused_wherever_they_are(literal: bytes) -> None:
    in_context = refusal_of(b'{"prompt": "x", "context": {"a": ' + literal + b"}}")
    in_field = refusal_of(b'{"prompt": "x", "temperature": ' + literal + b"}")
    assert in_context.status in {400, 422}
    assert in_field.status in {400, 422}


@pytest.mark.parametrize("name", ["Prompt", "maxTokens", "max_new_tokens", "prompt ", "__class__"])
def test_an_unknown_field_is_refused_by_its_name(name: str) -> None:
    assert refusal_of(body_of(**{name: 1})).message == f"{name}: unknown field"


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [CANARY]},
        {"prompt": CANARY + "\0"},
        {"prompt": CANARY * 100_000},
        {"context": CANARY},
        {"max_tokens": CANARY},
        {"temperature": [CANARY]},
        {"seed": {CANARY: CANARY}},
        {"stop": CANARY},
        {"stop": [CANARY * 10]},
        {"stop": ["a", "b", [CANARY]]},
        {"stream": CANARY},
        {"json_schema": CANARY},
        {"unknown": CANARY},
        {"context": {CANARY: CANARY}, "max_tokens": 0},
        {"max_tokens": 424242424242},
    ],
    ids="+".join,
)
def test_no_refusal_quotes_a_value(fields: dict[str, Any]) -> None:
    message = refusal_of(body_of(**fields)).message
    assert CANARY not in message
    assert "4242" not in message
    assert len(message) < 200


def test_no_refusal_of_broken_json_quotes_it() -> None:
    assert CANARY not in refusal_of(f'{{"prompt": "{CANARY}", '.encode()).message


def test_several_problems_are_told_together_and_many_are_counted() -> None:
    assert refusal_of(body_of(max_tokens=0, top_p=7)).message.count(";") == 1
    message = refusal_of(body_of(**{f"unknown_{number}": 1 for number in range(1000)})).message
    assert message.endswith("and 995 more")
    assert len(message) < 300


def test_a_long_field_name_is_cut() -> None:
    assert len(refusal_of(body_of(**{"n" * 100_000: 1})).message) < 200


def test_a_job_carries_the_request_and_its_deadline_counts_from_arrival() -> None:
    fields = {
        "context": {"a": 1},
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.6,
        "top_k": 8,
        "repetition_penalty": 1.2,
        "seed": 9,
    }
    parsed = parse_prompt(body_of(**fields, stop=["a", "b"]))
    info = RequestInfo("rid-1", arrived_s=time.monotonic() - 3)
    assert job_of(parsed, info, 10) == Job(
        request_id="rid-1",
        prompt="x",
        context={"a": 1},
        max_tokens=7,
        sampling=Sampling(temperature=0.5, top_p=0.6, top_k=8, repetition_penalty=1.2, seed=9),
        stop=("a", "b"),
        deadline_s=info.arrived_s + 10,
    )


class Route:
    """What the app below saw."""

    def __init__(self) -> None:
        self.parsed: PromptRequest | None = None
        self.body: bytes | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.parsed = scope.get(PARSED)
        message: Message = await receive()
        self.body = message["body"]
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


async def test_the_route_gets_the_parsed_request_in_place_of_the_body(client: Any) -> None:
    route = Route()
    async with client(Failures(ParsePrompt(route))) as http:
        assert (await http.post("/prompt", content=body_of(seed=5))).status_code == 204
    assert route.parsed is not None
    assert (route.parsed.prompt, route.parsed.seed) == ("x", 5)
    assert route.body == b""


async def test_a_refused_request_reaches_no_route(client: Any) -> None:
    route = Route()
    async with client(Failures(ParsePrompt(route))) as http:
        assert (await http.post("/prompt", content=b"{")).status_code == 400
        assert (await http.post("/prompt", content=body_of(seed=-5))).status_code == 422
    assert route.body is None


@pytest.mark.parametrize(("method", "path"), [("GET", "/prompt"), ("POST", "/warmup"), ("POST", "/prompt/")])
async def test_other_routes_get_their_body_untouched(client: Any, method: str, path: str) -> None:
    route = Route()
    async with client(Failures(ParsePrompt(route))) as http:
        await http.request(method, path, content=b"not json")
    assert (route.parsed, route.body) == (None, b"not json")


@pytest.mark.parametrize("temperature", [0, 1e-300, 1e-40, 0.009])
def test_a_temperature_that_would_overflow_the_logits_is_greedy(temperature: float) -> None:
    job = job_of(parse_prompt(body_of(temperature=temperature)), RequestInfo("id"), 1)
    assert job.sampling.temperature == 0
