"""Narrowing, by meaning: what the grammar of the narrowed schema can write is valid under the original."""

# ruff: noqa: E501

import copy
import json
from typing import Any

import jsonschema_rs
import pytest

from zopilot_gpu.engine.grammar import Compiler
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.json_schema import narrow
from zopilot_gpu.text.patterns import Unsupported
from zopilot_gpu.text.tokenizer import Tokenizer

DRAFT_7 = "http://json-schema.org/draft-07/schema#"


@pytest.fixture(scope="module")
def compiler() -> Compiler:
    return Compiler(Tokenizer(locate("demo").directory).serialised(), 1024, [2])


def writes(compiler: Compiler, schema: dict[str, Any], text: str) -> bool:
    original = copy.deepcopy(schema)
    narrowed = narrow(schema)
    assert schema == original
    matcher = compiler.compile(json.dumps(narrowed)).matcher
    return all(map(matcher.consume_token, compiler._tokenizer.tokenize_str(text))) and matcher.is_accepting()


def is_valid(schema: dict[str, Any], text: str) -> bool:
    value = json.loads(text)
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return bool(jsonschema_rs.validator_for(schema, validate_formats=True, offline=True).is_valid(value))


_A = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
_OPEN = {"type": "object", "properties": {"a": {"type": "integer"}, "ü": {}}, "additionalProperties": {"type": "null"}}


@pytest.mark.parametrize(
    ("schema", "written", "never"),
    [
        ({"type": "number"}, ["0", "-1.5", "1000000000000000"], ["1e3", "1000000000000001", "1" + "0" * 400]),
        ({"type": "integer"}, ["9007199254740991", "-9007199254740991"], ["9007199254740992", "1.0", "1e2"]),
        ({"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}, ["9007199254740991"], ["9007199254740992"]),
        ({"type": "number", "maximum": 1e308}, ["5"], ["1" + "0" * 300]),
        ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5", "0.9990"], ["0", "1", "0.99999999999999999999", "0.00"]),
        ({"type": "number", "minimum": 0, "exclusiveMaximum": 10, "maximum": 5}, ["5", "0"], ["5.01", "9", "-0.1"]),
        ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, ["1", "2"], ["0", "3"]),
        ({"type": "number", "multipleOf": 0.01}, ["0.29", "-1.1", "7"], ["0.291", "1" + "0" * 14]),
        ({"type": ["integer", "null"], "minimum": 3}, ["3", "null"], ["2"]),
        ({"minimum": 3}, ["3", '"a"', "[]"], ["2", "1e999"]),
        ({}, ["1", '{"a": [null]}'], ["1e999", '{"a": [1e999]}', '{"\\u0061": 1}', '"\\u0000"', '"\\ud800"']),
        ({"type": "object", "properties": {"a": {}}}, ['{"a": 1}', "{}"], ['{"b": 1}', '{"a": 1e999}', '{"a": 1, "a": 2}']),
        ({"type": "object", "properties": {"a": True}, "additionalProperties": True}, ['{"b": [1]}'], ['{"b": [1e999]}']),
        ({"type": "object", "required": ["a"]}, ['{"a": 1}'], ["{}"]),
        (_OPEN, ['{"b": null}', '{"a": 1, "c": null}'], ['{"\\u0061": null}', '{"a": null}', '{"\\u00fc": null}', '{"a": 1, "a": null}']),
        ({"type": "array"}, ['[1, "a", {"b": []}]'], ["[1e999]"]),
        ({"type": "array", "prefixItems": [{"type": "null"}]}, ["[]", "[null, 1]"], ["[1]", "[null, 1e999]"]),
        ({"$schema": DRAFT_7, "type": "array", "items": [{"type": "null"}]}, ["[null, 1]"], ["[1]", "[null, 1e999]"]),
        ({"type": "array", "uniqueItems": False, "items": {"type": "null"}}, ["[null, null]"], ["[1]"]),
        ({"allOf": [_A, {"required": ["b"], "properties": {"b": {"type": "null"}}}]}, ['{"a": true, "b": null}'], ['{"a": true}', '{"a": true, "b": null, "c": [1e999]}']),
        ({**_A, "anyOf": [{"required": ["b"]}, {"required": ["c"]}]}, ['{"a": true, "b": 1}'], ['{"a": true}', '{"a": true, "b": 1e999}']),
        ({"$ref": "#/$defs/a", "properties": {"c": {"type": "null"}}, "$defs": {"a": _A}}, ['{"a": true, "c": null}'], ['{"a": true, "c": 1}']),
        ({"allOf": [{"type": "number", "multipleOf": 0.01}, {"multipleOf": 0.01, "maximum": 9}]}, ["0.25"], ["0.255", "9.01"]),
        ({"type": "object", "properties": {"a": {"type": "null"}, "b": {}}, "minProperties": 1, "additionalProperties": False}, ['{"a": null}'], ["{}"]),
        ({"type": "object", "patternProperties": {r"^\s$": {"type": "null"}}, "additionalProperties": False}, ['{" ": null}'], ['{"\u00a0": null}', '{"a": null}']),
        ({"type": "object", "patternProperties": {"a": {"type": "integer"}}, "properties": {"ba": {"minimum": 5}}, "additionalProperties": False}, ['{"ba": 6, "xa": 1}'], ['{"ba": 4}', '{"xa": null}']),
        ({"enum": ["é", "e"], "pattern": r"^\w$"}, ['"e"'], ['"é"', '"a"']),
        ({"enum": [{"format": "date", "minimum": True, "pattern": "["}, 1.5]}, ['{"format": "date", "minimum": true, "pattern": "["}', "1.5"], ["1"]),
        ({"const": {"$ref": "x", "items": [{}]}}, ['{"$ref": "x", "items": [{}]}'], ["{}"]),
        ({"type": "string", "format": "date", "pattern": "^20"}, ['"2024-02-29"'], ['"2023-02-29"', '"1999-01-01"']),
        ({"type": "string", "format": "made-up"}, ['"x"'], ["1"]),
        ({"type": ["string", "null"], "format": "date"}, ['"2024-02-29"', "null"], ['"x"']),
        ({"properties": {"pattern": {"type": "null"}, "format": {"const": "date"}}, "type": "object"}, ['{"pattern": null, "format": "date"}'], ['{"format": "x"}']),
        ({"$ref": "#x", "$defs": {"x": {"$anchor": "x", "type": "null"}}}, ["null"], ["1"]),
        ({"type": "object", "properties": {"n": {"$ref": "#"}}}, ['{"n": {"n": {}}}'], ['{"n": 1}']),
        ({"type": "null", "x-guidance": {"lenient": True}}, ["null"], ["1"]),
    ],
)  # fmt: skip
def test_what_is_written_is_valid_under_the_original(
    compiler: Compiler, schema: dict[str, Any], written: list[str], never: list[str]
) -> None:
    assert [text for text in written if not writes(compiler, schema, text)] == []
    assert [text for text in written if not is_valid(schema, text)] == []
    assert [text for text in never if writes(compiler, schema, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [{"type": "array"}, {"maxItems": 3}]},
        {"allOf": [{}, {"type": ["array", "object"]}]},
        {"$ref": "#/$defs/a", "maxItems": 2, "$defs": {"a": {"type": "array"}}},
    ],
)
@pytest.mark.parametrize("levels", range(1, 7))
def test_numbers_are_finite_where_mixed_schemas_say_nothing_of_them(
    compiler: Compiler, schema: dict[str, Any], levels: int
) -> None:
    around = [("[", "]"), ("[", "]"), ('{"a": ', "}"), ("[", "]"), ('{"a": ', "}"), ("[", "]")][:levels]
    opening, closing = "".join(begin for begin, _ in around), "".join(end for _, end in reversed(around))
    assert writes(compiler, schema, f"{opening}7.5{closing}")
    assert not writes(compiler, schema, f"{opening}{10**400}{closing}")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "object", "minProperties": 1}, "minProperties"),
        ({"type": "object", "patternProperties": {"^a": {}}, "minProperties": 1, "additionalProperties": False}, "minProperties"),
        ({"type": "object", "patternProperties": {r"^\d$": {}, "^[0-9]$": {}}}, "the same"),
        ({"type": "integer", "minimum": 2**53}, "9,007,199,254,740,991"),
        ({"type": "number", "exclusiveMaximum": -1e16}, "1,000,000,000,000,000"),
        ({"const": 2**53}, "const"),
        ({"enum": [[{"a": 1e300}]]}, "const"),
        ({"const": "\u0001"}, "control characters"),
        ({"enum": ["a", ["\u007f"]]}, "control characters"),
        ({"type": "string", "pattern": r"\bword"}, "not understood"),
        ({"allOf": [{"multipleOf": 65537}, {"multipleOf": 65539}]}, "multipleOf"),
        ({"allOf": [{"multipleOf": 100_000}]}, "multipleOf"),
        ({"allOf": [{"multipleOf": 1e-7}]}, "multipleOf"),
        ({"allOf": [{"pattern": f"{n}"} for n in range(31)]}, "30 patterns"),
        ({"$defs": {"a": {"$id": "https://example.com/a"}}}, "$id"),
        ({"$ref": "#"}, "back to itself"),
        ({"$ref": "#/$defs/a%20b", "$defs": {"a b": {"allOf": [{"$ref": "#/$defs/c~1/0"}]}, "c/": [{"$ref": "#/$defs/a%20b"}]}}, "back to itself"),
    ],
)  # fmt: skip
def test_what_can_not_be_promised_is_refused(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(Unsupported) as refusal:
        narrow(schema)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("reference", ["#/nowhere", "#/$defs/0/x", "#/allOf/7", "#none"])
def test_a_reference_that_leads_nowhere_is_for_others_to_refuse(reference: str) -> None:
    assert narrow({"allOf": [{"$ref": reference}], "$defs": {"0": {}}})["allOf"] == [{"$ref": reference}]
