"""Holds the schema of a call: it takes the calls of the tools and no others, wherever their references lead."""

import json
from typing import Any

import jsonschema_rs
import pytest

from zopilot_gpu.api.openai.shapes import ChatRequest
from zopilot_gpu.api.openai.tools import begins_a_call, calling_of, job_of_call
from zopilot_gpu.events import GREEDY, Job

TREE = {
    "type": "object",
    "properties": {
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "default": {"$ref": "#/$defs/small"},
        "kind": {"const": {"$ref": "#/$defs/small"}},
    },
    "required": ["next"],
    "additionalProperties": False,
    "$defs": {"small": {"type": "integer", "maximum": 9}},
}


def request(*functions: dict[str, Any], **fields: Any) -> ChatRequest:
    tools = [{"type": "function", "function": one} for one in functions]
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "tools": tools, **fields}
    return ChatRequest.model_validate_json(json.dumps(body))


def validator(**fields: Any) -> jsonschema_rs.Validator:
    functions: list[dict[str, Any]] = [{"name": "tree", "parameters": TREE, "description": "A tree."}, {"name": "none"}]
    calling = calling_of(request(*functions, **fields))
    assert calling is not None
    return jsonschema_rs.validator_for(json.loads(calling.schema))


@pytest.mark.parametrize(
    ("call", "valid"),
    [
        ({"name": "tree", "arguments": {"next": {"next": None, "default": 9}}}, True),
        ({"name": "tree", "arguments": {"next": None, "kind": {"$ref": "#/$defs/small"}}}, True),
        ({"name": "none", "arguments": {}}, True),
        ({"name": "tree", "arguments": {"next": {"next": 5}}}, False),
        ({"name": "tree", "arguments": {"next": None, "default": 10}}, False),
        ({"name": "none", "arguments": {"next": None}}, False),
        ({"name": "other", "arguments": {}}, False),
        ({"name": "tree"}, False),
        ({"name": "none", "arguments": {}, "more": 1}, False),
    ],
)
def test_the_schema_takes_calls_of_the_tools_and_no_others(call: dict[str, Any], valid: bool) -> None:  # noqa: FBT001
    assert validator().is_valid(call) == valid


def test_a_named_function_is_the_only_one() -> None:
    named = validator(tool_choice={"type": "function", "function": {"name": "none"}})
    assert named.is_valid({"name": "none", "arguments": {}})
    assert not named.is_valid({"name": "tree", "arguments": {"next": None}})


def test_what_is_forced_and_what_the_model_is_told() -> None:
    function = {"name": "pay", "description": "Pays.", "parameters": {"type": "object"}}
    auto, required = calling_of(request(function)), calling_of(request(function, tool_choice="required"))
    assert auto is not None
    assert required is not None
    assert (auto.forced, required.forced) == (False, True)
    for calling in (auto, required):
        assert '{"name": "pay", "description": "Pays.", "parameters": {"type": "object"}}' in calling.preamble
    assert calling_of(request(function, tool_choice="none")) is None


@pytest.mark.parametrize(
    ("text", "known"), [("", None), (" \n", None), ("{", True), (' {"', True), ("I {", False), ("[", False)]
)
def test_how_an_answer_begins(text: str, known: bool | None) -> None:  # noqa: FBT001
    assert begins_a_call(text) is known


def test_the_job_of_a_call_ends_where_its_schema_does() -> None:
    calling = calling_of(request({"name": "pay"}))
    assert calling is not None
    job = job_of_call(Job("id", "Hi", None, 9, GREEDY, ("stop",), 0), calling)
    assert (job.json_schema, job.stop, job.max_tokens) == (calling.schema, (), 9)
