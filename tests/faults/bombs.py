"""JSON Schemas that mean harm: small to send, large to compile or to follow. Each has a name and is made when asked."""

import json
import random
from collections.abc import Callable
from typing import Any

Schema = dict[str, Any]


def _nest(keyword: str, depth: int, inner: Any) -> Any:
    for _ in range(depth):
        inner = {keyword: [inner]} if keyword in {"allOf", "anyOf", "oneOf", "prefixItems"} else {keyword: inner}
    return inner


def _properties(count: int, schema: Any, **more: Any) -> Schema:
    return {"type": "object", "properties": {f"p{n}": schema for n in range(count)}, **more}


def _text(pattern: str, **more: Any) -> Schema:
    return {"type": "string", "pattern": pattern, **more}


def _chain(count: int, link: Callable[[Schema], Schema], end: Schema) -> Schema:
    links = {str(n): link({"$ref": f"#/$defs/{n + 1}"}) for n in range(count)}
    return {"$ref": "#/$defs/0", "$defs": {**links, str(count): end}}


def _random_words(count: int, length: int) -> list[str]:
    dice = random.Random(15)
    return ["".join(dice.choices("abcdefghij", k=length)) for _ in range(count)]


_AB = [{"type": "object", "properties": {name: {"type": "integer"}}} for name in "abcdefghijklmnop"]
_TEXT = {"type": "string"}

BOMBS: dict[str, Callable[[], Schema]] = {
    "nested 31 arrays": lambda: {"type": "array", **_nest("items", 30, {})},
    "nested 2,000 arrays": lambda: _nest("items", 2000, {}),
    "nested 31 objects": lambda: _nest("additionalProperties", 30, {"type": "null"}),
    "nested allOf": lambda: _nest("allOf", 15, {"type": "integer"}),
    "nested anyOf of two": lambda: _double("anyOf", 11),
    "nested allOf of two": lambda: _double("allOf", 11),
    "nested oneOf of two": lambda: _double("oneOf", 11),
    "4,000 enum values": lambda: {"enum": list(range(4000))},
    "2,000 enum words": lambda: {"enum": _random_words(2000, 20)},
    "2,000 enum numbers": lambda: {"enum": [n * 1.37 for n in range(2000)]},
    "enum of large objects": lambda: {"enum": [{str(n): [n] * 5} for n in range(1500)]},
    "giant const": lambda: {"const": "x" * 60_000},
    "giant const array": lambda: {"const": list(range(9000))},
    "giant const object": lambda: {"const": dict.fromkeys(_random_words(2500, 12), 1)},
    "minLength 10^5": lambda: {"type": "string", "minLength": 10**5},
    "minLength 10^9": lambda: {"type": "string", "minLength": 10**9},
    "maxLength 10^5": lambda: {"type": "string", "maxLength": 10**5},
    "maxLength 10^9": lambda: {"type": "string", "maxLength": 10**9},
    "maxLength 10^9 of a pattern": lambda: _text("^[a-z]+$", maxLength=10**9),
    "length 10^6 to 2 x 10^6 of a pattern": lambda: _text("^(ab|cd)*$", minLength=10**6, maxLength=2 * 10**6),
    "maxLength 2^70": lambda: {"type": "string", "maxLength": 2**70},
    "minItems 10^5": lambda: {"type": "array", "items": {"type": "null"}, "minItems": 10**5},
    "minItems 10^9": lambda: {"type": "array", "items": {"type": "null"}, "minItems": 10**9},
    "maxItems 10^5": lambda: {"type": "array", "items": {"type": "null"}, "maxItems": 10**5},
    "maxItems 10^9": lambda: {"type": "array", "items": {"type": "null"}, "maxItems": 10**9},
    "maxItems 1,000 in each other": lambda: _sized(6, 1000),
    "minProperties 10^9": lambda: _properties(3, {}, minProperties=10**9, additionalProperties=False),
    "maxProperties 10^9": lambda: {"type": "object", "maxProperties": 10**9},
    "minProperties 20 of 40": lambda: _properties(40, {"type": "null"}, minProperties=20, additionalProperties=False),
    "2,000 optional properties": lambda: _properties(2000, {"type": "null"}),
    "1,900 optional properties of any kind": lambda: _properties(1900, {}),
    "3,000 properties": lambda: _properties(3000, {}),
    "1,000 required properties": lambda: _properties(1000, {}, required=[f"p{n}" for n in range(1000)]),
    "3,000 required names": lambda: {"type": "object", "required": [f"p{n}" for n in range(3000)]},
    "60 x 30 optional properties": lambda: _properties(60, _properties(30, _TEXT)),
    "(a{1,1000}){1,1000}": lambda: _text("^(a{1,1000}){1,1000}$"),
    "((a{1,100}){1,100}){1,100}": lambda: _text("^((a{1,100}){1,100}){1,100}$"),
    "a{100000}": lambda: _text("^a{100000}$"),
    "(a+)+": lambda: _text("^(a+)+$"),
    "(a|a)*": lambda: _text("^((a|a)*)*b$"),
    "a?^n a^n": lambda: _text("^" + "a?" * 500 + "a" * 500 + "$"),
    "the 200th from the end": lambda: _text("(a|b)*a(a|b){200}"),
    "the 20th from the end": lambda: _text("(a|b)*a(a|b){20}"),
    "many alternatives": lambda: _text("^(" + "|".join(_random_words(3000, 16)) + ")$"),
    "many unanchored alternatives": lambda: _text("|".join(_random_words(1000, 12))),
    "unicode classes": lambda: _text(r"^(\p{L}\p{Lu}\p{N}\P{M}){1,50}$"),
    "classes without ASCII": lambda: _text(r"^(\W\D\S){1,100}$"),
    "a deep group": lambda: _text("(" * 240 + "a" + ")" * 240),
    "a very deep group": lambda: _text("(" * 20_000 + "a" + ")" * 20_000),
    "any text between": lambda: _text(".*a.*b.*c.*d.*e.*f.*g.*h.*i.*j.*"),
    "100 patterns": lambda: {"anyOf": [_text(f"^[a-z]*{word}[a-z]*$") for word in _random_words(100, 8)]},
    "100 patterns at once": lambda: {"allOf": [_text(f"{word}") for word in _random_words(100, 3)]},
    "12 patterns at once": lambda: {"allOf": [_text(f"(a|b)*{letter}(a|b){{9}}") for letter in "ababababab"]},
    "50 patternProperties": lambda: {
        "type": "object",
        "patternProperties": {f"^{word}": _TEXT for word in _random_words(50, 6)},
    },
    "a recursive tree of anything": lambda: {"type": "array", "items": {"anyOf": [{"$ref": "#"}, {}]}},
    "a recursive allOf": lambda: {"$defs": {"a": {"allOf": [{"items": {"$ref": "#/$defs/a"}}] * 2}}, "$ref": "#/$defs/a"},
    "a $ref to itself": lambda: {"$ref": "#"},
    "a loop of $ref": lambda: _chain(50, lambda reference: reference, {"$ref": "#/$defs/0"}),
    "a long chain of $ref": lambda: _chain(1000, lambda reference: {"properties": {"a": reference}}, {}),
    "a chain of 199 $ref": lambda: _chain(199, lambda reference: {"properties": {"a": reference, "b": reference}}, {}),
    "doubling by $ref": lambda: _chain(
        30, lambda reference: {"type": "array", "prefixItems": [reference] * 2, "minItems": 2}, {}
    ),
    "doubling allOf by $ref": lambda: _chain(22, lambda reference: {"allOf": [reference, reference]}, {"type": "object"}),
    "doubling anyOf by $ref": lambda: _chain(22, lambda reference: {"anyOf": [reference, reference]}, {"type": "object"}),
    "tripling anyOf beside a type": lambda: _chain(
        14, lambda one: {"type": "integer", "anyOf": [one] * 3}, {"type": "integer"}
    ),
    "anyOf times anyOf times anyOf": lambda: {"allOf": [{"anyOf": _AB} for _ in range(6)]},
    "oneOf times oneOf": lambda: {"allOf": [{"oneOf": [{"const": str(n)} for n in range(40)]} for _ in range(4)]},
    "wide oneOf": lambda: {"oneOf": [{"const": str(n)} for n in range(3000)]},
    "wide oneOf of objects": lambda: {"oneOf": [_properties(1, {"const": n}, required=["p0"]) for n in range(500)]},
    "wide anyOf of objects": lambda: {"anyOf": [_properties(2, {"const": n}) for n in range(500)]},
    "permutations": lambda: {
        "anyOf": [{"type": "array", "prefixItems": [{"const": w} for w in _shuffled(n)]} for n in range(200)]
    },
    "numbers with far bounds": lambda: {
        "anyOf": [{"type": "number", "minimum": n / 7, "maximum": 10**14 + n / 7} for n in range(400)]
    },
    "multiples of many": lambda: {"anyOf": [{"type": "integer", "multipleOf": n} for n in (9973, 65537, 999983, 4294967291)]},
    "a multiple of a large prime": lambda: {"type": "integer", "multipleOf": 4294967291},
    "long names": lambda: {"type": "object", "properties": {"x" * 3000 + str(n): _TEXT for n in range(20)}},
    "1,000 long descriptions": lambda: _properties(300, {"type": "null", "description": "d" * 150}),
}


def _double(keyword: str, depth: int) -> Schema:
    schema: Schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for _ in range(depth):
        schema = {keyword: [schema, schema]}
    return schema if len(json.dumps(schema)) < 10**6 else {}


def _sized(depth: int, most: int) -> Schema:
    schema: Schema = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": most}
    return schema


def _shuffled(seed: int) -> list[int]:
    return random.Random(seed).sample(range(10), 10)
