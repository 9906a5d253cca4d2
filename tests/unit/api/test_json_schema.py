"""The schema of a request: exactly at its limits and one beyond, dialects, references; and answers that do not keep it."""

import json
import socket
from typing import Any

import pytest

from zopilot_gpu.api import json_schema
from zopilot_gpu.errors import InvalidRequest, OutputInvalid, OutputTruncated
from zopilot_gpu.events import Done, FinishReason, Usage


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth - 1):
        schema = {"items": schema}
    return schema


def sized(num_bytes: int) -> dict[str, Any]:
    filled = num_bytes - len(json.dumps({"description": ""}))
    return {"description": "ü" * (filled // 2) + "x" * (filled % 2)}


def named(properties: int, enum: int, const: int) -> dict[str, Any]:
    return {
        "properties": {str(n): {} for n in range(properties)},
        "items": {"enum": list(range(enum))},
        "not": {"const": [[0] * const]},
    }


def patterned(count: int) -> dict[str, Any]:
    return {"allOf": [{"pattern": "a"}] * (count - 1), "patternProperties": {"b": {}}}


def referring(count: int) -> dict[str, Any]:
    return {"$defs": {str(n): {} for n in range(count)}, "anyOf": [{"$ref": f"#/$defs/{n}"} for n in range(count)] * 2}


@pytest.mark.parametrize(
    ("within", "beyond", "reason"),
    [
        (sized(65536), sized(65537), "at most 65536 bytes"),
        (nested(32), nested(33), "at most 32 deep"),
        (nested(32), nested(100_000), "at most 32 deep"),
        (named(1000, 600, 400), named(1000, 600, 401), "at most 2000 properties"),
        (patterned(100), patterned(101), "at most 100 patterns"),
        (referring(200), referring(201), "at most 200 places"),
    ],
    ids=["bytes", "depth", "depth beyond recursion", "names", "patterns", "references"],
)
def test_limits(within: dict[str, Any], beyond: dict[str, Any], reason: str) -> None:
    assert json.loads(json_schema.read(within)) == within
    with pytest.raises(InvalidRequest) as refusal:
        json_schema.read(beyond)
    assert (refusal.value.status, refusal.value.code) == (422, "json_schema_invalid")
    assert reason in refusal.value.message


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "objet"}, "is no valid schema"),
        ({"pattern": "("}, "is no valid schema"),
        ({"minLength": -1}, "is no valid schema"),
        ({"$ref": "#/$defs/none"}, "is no valid schema"),
        ({"$ref": "https://example.com/schema.json"}, "inside the schema"),
        ({"$ref": "file:///etc/passwd"}, "inside the schema"),
        ({"items": {"$ref": "other.json#/a"}}, "inside the schema"),
        ({"$dynamicRef": "https://example.com"}, "inside the schema"),
        ({"$schema": "http://json-schema.org/draft-04/schema#"}, "Draft 7 or 2020-12"),
        ({"$schema": 7}, "Draft 7 or 2020-12"),
        ({"minimum": float("nan")}, "plain JSON"),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "exclusiveMinimum": True}, "is no valid schema"),
    ],
)
def test_what_is_no_schema_or_leads_elsewhere_is_refused(
    schema: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("it asked for a host"))
    with pytest.raises(InvalidRequest) as refusal:
        json_schema.read(schema)
    assert (refusal.value.status, refusal.value.code) == (422, "json_schema_invalid")
    assert reason in refusal.value.message
    assert len(refusal.value.message) < 300


@pytest.mark.parametrize(
    "schema",
    [
        {"$schema": "http://json-schema.org/draft-07/schema"},
        {"$schema": "http://json-schema.org/draft-07/schema#"},
        {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"properties": {"$ref": {"type": "string"}}},
        {},
    ],
)
def test_dialects_and_odd_names_are_taken(schema: dict[str, Any]) -> None:
    assert json.loads(json_schema.read(schema)) == schema


def conform(text: str, schema: dict[str, Any], finish: FinishReason = "stop") -> Any:
    return json_schema.conform(text, json_schema.read(schema), Done(finish, Usage(1, 0, 1)))


def test_an_answer_that_keeps_its_schema_comes_as_its_value() -> None:
    assert conform('{"a": [1, null]}', {"type": "object", "required": ["a"]}) == {"a": [1, None]}
    assert conform("[" * 199 + "]" * 199, {}) != []


@pytest.mark.parametrize("text", ['{"a": 1', '{"a": 1}', ""])
def test_an_answer_that_was_cut_is_never_given_out(text: str) -> None:
    with pytest.raises(OutputTruncated):
        conform(text, {"type": "object"}, "length")


DEEP = "[" * 5000
UNKEPT = ["{", "", "1", '{"a": 1e999}', '{"a": NaN}', '{"a": "2023-02-29"}', DEEP, DEEP + "]" * 5000, "[" * 202 + "]" * 202]


@pytest.mark.parametrize("text", UNKEPT, ids=range(len(UNKEPT)))
def test_an_answer_that_does_not_keep_it_is_withheld(text: str) -> None:
    schema = {"type": ["object", "array"], "properties": {"a": {"type": ["number", "array", "string"], "format": "date"}}}
    with pytest.raises(OutputInvalid):
        conform(text, schema)


def test_formats_that_are_not_promised_are_not_held_against_an_answer() -> None:
    assert conform('"no pointer"', {"type": "string", "format": "json-pointer"}) == "no pointer"


def test_a_draft_7_schema_is_checked_as_one() -> None:
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}], "additionalItems": False}
    assert conform("[null]", schema) == [None]
    with pytest.raises(OutputInvalid):
        conform("[null, 1]", schema)
