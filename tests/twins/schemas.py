"""JSON Schemas of many shapes: by hand, one idea each; drawn by composing shapes; and documents as an accountant knows them."""

# ruff: noqa: E501
import random
from collections.abc import Iterator
from typing import Any

Schema = dict[str, Any]
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
_WORD = {"type": "string", "maxLength": 12}
_MONEY = {"type": "number", "minimum": 0, "maximum": 100000, "multipleOf": 0.01}
_DATE = {"type": "string", "format": "date"}
_CURRENCY = {"enum": ["EUR", "USD", "GBP", "CHF"]}


def record(required: int | None = None, /, **properties: Any) -> Schema:
    """An object with `properties`, of which the first `required`, or all, must be there."""
    return {"type": "object", "properties": properties, "required": list(properties)[:required], "additionalProperties": False}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def several(items: Schema, most: int = 3, least: int = 0) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


_ADDRESS = record(
    2, street=_WORD, city=_WORD, zip={"type": "string", "pattern": r"^\d{5}$"}, country={"enum": ["DE", "AT", "CH"]}
)
_PARTY = record(1, name=_WORD, vat_id={"type": "string", "pattern": "^[A-Z]{2}[0-9]{9}$"}, address=_ADDRESS)
_LINE = record(
    3, text=_WORD, quantity={"type": "integer", "minimum": 1, "maximum": 99}, amount=_MONEY, rate={"enum": [0, 7, 19]}
)

DOCUMENTS: dict[str, Schema] = {
    "invoice": record(4, number=_WORD, date=_DATE, seller=_PARTY, lines=several(_LINE, 3, 1), due=nullable(_DATE), total=_MONEY),
    "invoice by reference": {
        "$ref": "#/$defs/invoice",
        "$defs": {
            "invoice": record(2, number=_WORD, total={"$ref": "#/$defs/money"}, lines=several({"$ref": "#/$defs/line"})),
            "line": record(text=_WORD, amount={"$ref": "#/$defs/money"}),
            "money": record(value=_MONEY, currency=_CURRENCY),
        },
    },
    "receipt": record(3, shop=_WORD, at={"type": "string", "format": "date-time"}, total=_MONEY, tip=nullable(_MONEY)),
    "bank statement": record(
        iban={"type": "string", "pattern": "^[A-Z]{2}[0-9]{2}[A-Z0-9]{11,30}$"},
        opening={"type": "number", "minimum": -1e6, "maximum": 1e6},
        entries=several(record(2, booked=_DATE, amount={"type": "number", "multipleOf": 0.01}, kind={"enum": ["debit", "credit"]})),
    ),
    "credit note": record(2, refers_to=_WORD, reason={"enum": ["return", "discount", "error"]}, amount=_MONEY),
    "purchase order": record(2, order={"type": "string", "pattern": "^PO-[0-9]{4,6}$"}, lines=several(_LINE, 2), delivery=_DATE),
    "payslip": record(month={"type": "string", "pattern": "^20[0-9]{2}-(0[1-9]|1[0-2])$"}, gross=_MONEY, net=_MONEY, hours=nullable(_MONEY)),
    "expense report": record(2, employee=_WORD, items=several({"oneOf": [
        record(kind={"const": "meal"}, amount=_MONEY, guests={"type": "integer", "minimum": 1, "maximum": 20}),
        record(kind={"const": "mileage"}, km={"type": "number", "minimum": 0, "maximum": 5000}),
    ]}), approved={"type": "boolean"}),
    "journal entry": record(date=_DATE, lines=several(record(account={"type": "integer", "minimum": 1000, "maximum": 9999},
                                                      side={"enum": ["D", "C"]}, amount=_MONEY), 4, 2)),
    "vat return": record(period={"enum": [f"2026-Q{n}" for n in range(1, 5)]}, base_19={"type": "integer"}, base_7={"type": "integer"}),
    "dunning letter": record(level={"type": "integer", "minimum": 1, "maximum": 3}, fee=_MONEY, deadline=_DATE),
    "contact": record(1, name=_WORD, email={"type": "string", "format": "email"}, site={"type": "string", "format": "uri"}),
    "time sheet": record(day=_DATE, begin={"type": "string", "format": "time"}, pause={"type": "string", "format": "duration"}),
    "stock list": {"type": "object", "patternProperties": {"^SKU[0-9]{3}$": {"type": "integer", "minimum": 0, "maximum": 999}},
                   "additionalProperties": False, "maxProperties": 4},
    "classification": {"type": "string", "enum": ["invoice", "receipt", "contract", "other"]},
    "extraction with confidence": record(**{name: record(value=nullable(_WORD), confidence={"type": "number", "minimum": 0, "maximum": 1})
                                            for name in ("vendor", "total", "due_date")}),
    "chart of accounts": {"$ref": "#/$defs/account", "$defs": {"account": record(
        2, code={"type": "string", "pattern": "^[0-9]{4}$"}, name=_WORD, children=several({"$ref": "#/$defs/account"}, 2))}},
    "pydantic model": {"title": "Invoice", "type": "object", "$defs": {"Currency": {"enum": ["EUR", "USD"], "title": "Currency", "type": "string"}},
                       "properties": {"number": {"title": "Number", "type": "string", "maxLength": 9}, "currency": {"$ref": "#/$defs/Currency"},
                                      "total": {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None, "title": "Total"}},
                       "required": ["number", "currency"]},
}  # fmt: skip

STRINGS: list[Schema] = [
    *({"type": "string", "format": name} for name in (
        "date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "regex", "idn-email", "made-up")),
    *({"type": "string", "pattern": pattern} for pattern in (
        r"^\d{3}-\d{2}$", r"^\w{1,5}$", r"^\s?\S\s?$", r"^\D\W\S$", r"^[^\d\s]{2}$", r"^[\w.-]{1,6}$", r"^[^\W_]{1,4}$", r"^[\D]$", r"^[^\S]$",
        "^a|b$", "ab?c", "^(foo|bar){1,3}$", "^(?:x|y)*$", "^(?<year>20[0-9]{2})$", "^.{0,4}$", "^[^a-c]$", "^[[a&&b~~c]$", r"^[a\]\\-]+$", r"^\u0041\x42$",
        r"^\p{Lu}{2}$", r"^[+\--]$", "^$", "", "^a*?b+?c??$", r"^\$\{[0-9]{1,3}\}$", r"^(\+\d{1,2} )?\d{3,6}$", "^[a-zäöü]{2,5}$", r"^\"'\\$", "^a{0}$", r"^\/\*$",
        "^[A-Z][a-z]*( [A-Z][a-z]*){0,2}$", r"^(0|[1-9]\d*)(\.\d{2})?$", "\U0001f600$", "^[^\"]{0,3}$")),
    {"type": "string"}, {"type": "string", "maxLength": 0}, {"type": "string", "minLength": 3, "maxLength": 3}, {"type": "string", "minLength": 20},
    {"type": "string", "format": "date", "pattern": "^20"}, {"type": "string", "format": "date-time", "maxLength": 20},
    {"type": "string", "pattern": "^[a-z]+$", "minLength": 2, "maxLength": 4}, {"format": "date"}, {"maxLength": 2}, {"pattern": "^x"},
    {"type": ["string", "null"], "format": "date"}, {"type": "string", "contentEncoding": "base64", "maxLength": 8},
]  # fmt: skip

NUMBERS: list[Schema] = [
    {"type": "number"}, {"type": "integer"}, {"type": "number", "minimum": 0}, {"type": "number", "maximum": -1}, {"type": "integer", "minimum": 5},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, {"type": "number", "minimum": 0.1, "maximum": 0.2},
    {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 2}, {"type": "integer", "minimum": -3, "maximum": 3},
    {"type": "integer", "minimum": 0.5, "maximum": 7.5}, {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1},
    {"type": "number", "minimum": -1e308, "maximum": 1e308}, {"type": "integer", "minimum": 999, "maximum": 1001}, {"type": "integer", "minimum": 2**60},
    {"type": "number", "minimum": -0.5, "maximum": 0}, {"type": "number", "exclusiveMaximum": -5.25}, {"type": "number", "minimum": 1e14},
    {"type": "number", "minimum": 3, "exclusiveMinimum": 4, "maximum": 6}, {"type": "number", "minimum": 1.005, "maximum": 1.0051},
    *({"type": "number", "multipleOf": step} for step in (0.01, 0.25, 0.1, 5, 1.5, 0.07, 1e-6, 1e-300, 12345678901)),
    *({"type": "integer", "multipleOf": step} for step in (1, 5, 7, 0.5, 1000)),
    {"type": "number", "multipleOf": 0.01, "minimum": 0, "maximum": 10}, {"type": "integer", "multipleOf": 5, "minimum": -10, "maximum": 10},
    {"type": "integer", "multipleOf": 10, "minimum": 1, "maximum": 9}, {"type": ["integer", "null"]}, {"type": ["number", "string"], "minimum": 1, "maxLength": 3},
    {"minimum": 3}, {"multipleOf": 3, "type": "integer", "exclusiveMinimum": -9, "maximum": 9}, {"type": "integer", "format": "int32"},
]  # fmt: skip

ARRAYS: list[Schema] = [
    several({"type": "integer", "minimum": 0, "maximum": 9}, 5), several({"type": "null"}, 2, 2), several(several({"type": "boolean"}), 2),
    {"type": "array", "maxItems": 2}, {"type": "array", "maxItems": 0}, {"type": "array"}, {"maxItems": 1, "type": ["array", "null"]},
    {"type": "array", "prefixItems": [{"type": "null"}, {"type": "integer", "maximum": 5}], "items": False},
    {"type": "array", "prefixItems": [{"const": 1}, {"const": "a"}], "minItems": 2, "maxItems": 3}, {"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}, "maxItems": 4},
    {"type": "array", "items": False}, {"type": "array", "items": True, "maxItems": 1}, {"type": "array", "uniqueItems": False, "items": _CURRENCY, "maxItems": 3},
    {"type": "array", "uniqueItems": True}, {"type": "array", "contains": {"type": "null"}}, {"type": "array", "items": {"enum": [1, "a", None, [2]]}, "maxItems": 3},
    {"$schema": DRAFT_7, "type": "array", "items": [{"type": "null"}, {"type": "boolean"}], "additionalItems": False},
    {"$schema": DRAFT_7, "type": "array", "items": [{"type": "null"}], "additionalItems": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"$schema": DRAFT_7, "type": "array", "items": [{"type": "null"}], "maxItems": 2}, {"$schema": DRAFT_7, "type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}, "maxItems": 2},
]  # fmt: skip

_TREE = {"type": "object", "properties": {"v": {"type": "integer"}, "next": {"$ref": "#"}}, "required": ["v"]}
OBJECTS: list[Schema] = [
    {}, {"type": "object"}, {"properties": {"a": {"type": "null"}}}, {"type": "object", "properties": {"a": True, "b": {}}, "required": ["b"]},
    {"type": "object", "properties": {"a": {"type": "boolean"}}, "additionalProperties": True}, {"type": "object", "additionalProperties": {"type": "null"}, "maxProperties": 2},
    {"type": "object", "properties": {"a": {"type": "integer"}, "a/b": {"type": "integer"}, "ü\"": {"type": "integer"}}, "additionalProperties": {"type": "null"}},
    {"type": "object", "required": ["x", "y"], "properties": {"y": {"type": "null"}}}, {"required": ["a"]}, {"type": "object", "properties": {"a": False, "b": {"type": "null"}}},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "null"}}, "minProperties": 1}, {"type": "object", "minProperties": 2},
    {"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"], "maxProperties": 1, "additionalProperties": True},
    {"type": "object", "patternProperties": {r"^\d$": {"type": "boolean"}, r"^\w\w$": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "patternProperties": {"^a": {"type": "integer", "maximum": 9}}, "additionalProperties": {"type": "null"}},
    {"type": "object", "patternProperties": {"a": {"type": "integer"}}, "properties": {"ba": {"minimum": 5}, "c": {"type": "null"}}, "additionalProperties": False},
    {"type": "object", "patternProperties": {"a": {}, "b": {}}}, {"type": "object", "properties": {"": {"type": "null"}, "\n\\": {"type": "null"}, "$ref": {"type": "null"}}, "required": ["", "$ref"]},
    {"type": "object", "propertyNames": {"maxLength": 3}}, {"type": "object", "dependentRequired": {"a": ["b"]}}, {"type": "object", "unevaluatedProperties": False},
    {"$schema": DRAFT_7, "type": "object", "dependencies": {"a": ["b"]}}, _TREE, {**_TREE, "$schema": DRAFT_7}, {"type": "object", "properties": {"a": _TREE | {"properties": {"v": _WORD}}}},
    record(a=record(b=record(c=record(d=record(e={"type": "null"}))))), record(0, **{f"p{n}": {"type": "boolean"} for n in range(30)}), {"x-guidance": {"lenient": True}, "not": {}},
    {"type": "object", "properties": {"a": {"$ref": "#/$defs/a~1b"}, "b": {"$ref": "#/$defs/c%25"}}, "$defs": {"a/b": {"type": "null"}, "c%": {"type": "boolean"}}},
    {"type": "object", "properties": {"a": {"$ref": "#x"}}, "$defs": {"x": {"$anchor": "x", "type": "null"}}}, {"$id": "https://example.com/a", "type": "object", "properties": {"a": {}}},
    {"$id": "https://example.com/a", "properties": {"a": {"$ref": "#/$defs/b"}}, "$defs": {"b": {"$id": "b", "type": "object"}}}, {"$ref": "#"}, {"$ref": "#/$defs/none"},
    {"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {"type": "null"}]}, "b": several({"$ref": "#/$defs/a"}, 2)}, "$ref": "#/$defs/a"},
    {"$defs": {"json": {"anyOf": [{"type": ["null", "boolean"]}, several({"$ref": "#/$defs/json"}, 2), {"type": "object", "additionalProperties": {"$ref": "#/$defs/json"}, "maxProperties": 2}]}}, "$ref": "#/$defs/json"},
    {"type": "object", "properties": {"x": {"$ref": "#/properties/y"}, "y": {"type": "null"}}}, {"$schema": DRAFT_7, "definitions": {"n": {"type": "null"}}, "properties": {"a": {"$ref": "#/definitions/n", "type": "string"}}, "type": "object"},
]  # fmt: skip

_A, _B = ({"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]} for name in "ab")
CHOICES: list[Schema] = [
    {"const": "x"}, {"const": None}, {"const": 0.1}, {"const": -0.0}, {"const": 1e22}, {"const": 2**53 + 1}, {"const": [1, {"a": [True, "ü\"\n"]}]}, {"const": {"b": 1, "a": {}}}, {"const": "\u0001"},
    {"enum": [1, 1.5, "1", True, None, [], {}]}, {"enum": ["a"] * 3}, {"enum": [[1, [2]], {"format": "date"}]}, {"type": "string", "enum": ["a", 1]}, {"enum": ["é", "e"], "pattern": r"^\w$"},
    {"type": "integer", "enum": [1, 2.0, 3.5]}, {"enum": [1, 5, 9], "minimum": 2, "exclusiveMaximum": 9}, {"enum": []}, {"enum": [f"value {n}" for n in range(300)]}, {"enum": [1, "1"], "type": ["string", "null"]},
    {"anyOf": [{"type": "integer", "maximum": 5}, {"type": "boolean"}]}, {"anyOf": [_A, _B]}, {"anyOf": [{"type": "string", "maxLength": 2}, {"type": "string", "format": "date"}]}, {"anyOf": [{}, {"type": "null"}]},
    {"oneOf": [{"type": "null"}, {"type": "boolean"}, _WORD]}, {"oneOf": [{"type": "integer"}, {"type": "number"}]}, {"oneOf": [{"const": "a"}, {"const": "b"}]}, {"oneOf": [_A, _B]}, {"oneOf": [{"const": 1}, {"const": 2}]},
    {"oneOf": [{"type": "object", "properties": {"k": {"const": name}, name: {"type": "null"}}, "required": ["k"]} for name in "ab"]}, {"oneOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]},
    {"allOf": [_A, _B]}, {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, {"allOf": [_A, {"additionalProperties": {"type": "boolean"}}]}, {"allOf": [{"type": "string"}, {"pattern": r"^\d"}, {"maxLength": 3}]},
    {"allOf": [{"enum": ["a", "b"]}, {"enum": ["b", "c"]}]}, {"allOf": [{}]}, {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": _A}, "properties": {"c": {"type": "null"}}}, {"allOf": [{"multipleOf": 0.01, "type": "number"}, {"minimum": 0, "maximum": 5}]},
    {"allOf": [{"type": "integer", "multipleOf": 65537}, {"multipleOf": 65539}]}, {"allOf": [{"type": "integer", "multipleOf": 3}, {"multipleOf": 3, "minimum": 0, "maximum": 9}]}, {"allOf": [{"type": "array", "maxItems": 2}, {"items": {"type": "null"}}]},
    {"allOf": [_A, {"type": "object", "properties": {"a": {"const": True}}, "additionalProperties": False}]}, {"type": "object", "properties": {"a": _WORD, "b": _WORD}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
    {"type": "object", "properties": {"a": _WORD}, "oneOf": [{"properties": {"b": {"type": "null"}}, "required": ["b"]}, {"properties": {"c": {"type": "null"}}, "required": ["c"]}]}, {"type": "string", "anyOf": [{"maxLength": 1}, {"pattern": "^z"}]},
    {"$ref": "#/$defs/a", "properties": {"c": {"type": "null"}}, "$defs": {"a": _A}}, {"$ref": "#/$defs/t", "required": ["w"], "$defs": {"t": {"type": "object", "properties": {"w": {"type": "null"}, "c": {"$ref": "#/$defs/t"}}}}},
    {"anyOf": [{"allOf": [{"type": "integer"}, {"minimum": 0}, {"maximum": 7}]}, {"oneOf": [{"const": "x"}, {"type": "null"}]}]}, {"anyOf": [{"type": "integer", "minimum": 5, "maximum": 1}, {"type": "null"}]}, {"type": "boolean", "deprecated": True, "readOnly": True},
    {"not": {"type": "string"}}, {"if": {"type": "string"}, "then": {"maxLength": 2}}, {"type": ["object", "null", "array", "boolean"], "maxProperties": 0, "maxItems": 0}, {"type": ["string", "integer"], "pattern": "^a{1,3}$", "minimum": 0, "maximum": 9}, {"type": "null"},
]  # fmt: skip


def drawn(seed: int, count: int) -> Iterator[Schema]:
    """`count` schemas, each of several shapes in one another."""
    dice = random.Random(seed)
    for _ in range(count):
        schema = dict(_shape(dice, 3))
        if "#/$defs/leaf" in str(schema):
            schema["$defs"] = {"leaf": dict(_leaf(dice))}
        yield schema


def _shape(dice: random.Random, depth: int) -> Schema:  # noqa: PLR0911
    if depth == 0 or dice.random() < 0.15:
        return {"$ref": "#/$defs/leaf"} if dice.random() < 0.1 else _leaf(dice)

    def inner() -> Schema:
        return _shape(dice, depth - 1)

    names = dice.sample(["id", "total", "näme", "a b", "date", "x/y", 'q"', "tax"], dice.randint(1, 4))
    match dice.randrange(8):
        case 0 | 1 | 2:
            schema = record(dice.randint(0, len(names)), **{name: inner() for name in names})
            schema["additionalProperties"] = dice.choice([False, False, {"type": "null"}])
            return schema
        case 3:
            return several(inner(), dice.randint(1, 3))
        case 4:
            return nullable(inner())
        case 5:
            return {"anyOf": [inner(), inner()]}
        case 6:
            return {
                "type": "array",
                "prefixItems": [inner(), inner()],
                "items": dice.choice([False, {"type": "null"}]),
                "maxItems": 3,
            }
        case _:
            parts = [{"type": "object", "properties": {name: inner()}, "required": [name]} for name in names[:2]]
            return {"allOf": parts} if dice.random() < 0.5 else {"oneOf": [{"type": "null"}, *parts[:1]]}


def _leaf(dice: random.Random) -> Schema:
    low = dice.choice([-1000, -1.5, 0, 0.01, 3, 12345])
    return dice.choice([
        {"type": "null"}, {"type": "boolean"}, _WORD, _MONEY, _DATE, _CURRENCY, {"const": dice.choice([1, "ü", None, [1.5]])},
        {"type": "integer", "minimum": int(low), "maximum": int(low) + dice.randint(0, 5000)}, {"type": "number", "minimum": low, "exclusiveMaximum": low + dice.choice([0.5, 7, 1e6])},
        {"type": "string", "pattern": dice.choice([r"^[A-Z]{2}\d{2,6}$", r"^\w+$", "^(yes|no|n/a)$", r"^[^\s]{1,4}$"]), "maxLength": 8},
        {"type": ["string", "null"], "minLength": 1, "maxLength": 5}, {"type": "string", "format": dice.choice(["time", "email", "uuid", "ipv4", "date-time"])},
    ])  # fmt: skip


def all_schemas() -> dict[str, Schema]:
    """Every schema, by a name."""
    groups = {
        "string": STRINGS,
        "number": NUMBERS,
        "array": ARRAYS,
        "object": OBJECTS,
        "choice": CHOICES,
        "drawn": list(drawn(14, 130)),
    }
    named = {f"{group} {index}": schema for group, schemas in groups.items() for index, schema in enumerate(schemas)}
    return DOCUMENTS | named
