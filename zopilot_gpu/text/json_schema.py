r"""A JSON Schema narrowed to what a grammar can hold. Knows both sides' dialects; refuses what neither form can promise.

llguidance follows a schema token by token, but reads some keywords more widely than a validator does: `\s` as Unicode's, a
date as any three numbers, a number as long as it likes, the same key twice in an object. `narrow` gives a schema that it can
follow and whose every instance is one of the original (JSON Schema, Draft 7 and 2020-12):

- numbers without a bound get one: integers that every JSON reader holds exactly, other numbers up to 10^15;
- known formats become patterns, unknown ones are dropped; patterns lose Unicode's wider classes (ECMA-262 is the dialect);
- objects that name their properties and do not speak of others get no others;
- what may be anything is anything that keeps these rules.

Where two schemas speak of the same value (`allOf`, or keywords beside `$ref`, `anyOf`, `oneOf`), what one leaves open is the
other's to say: there the last two are left out.

Try it: `python -m pytest tests/unit/text/test_json_schema.py`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from zopilot_gpu.text.patterns import FORMATS, KEPT_FORMATS, to_ascii

Schema = Mapping[str, Any]

_LARGEST_INTEGER = 2**53 - 1  # RFC 8259, section 6
_LARGEST_NUMBER = 10**15
_LARGEST_MULTIPLE = 10**12  # beyond, validators' arithmetic blurs what is a multiple of 0.01
_ANY_NAME = "zopilot_gpu.any"
_SUBSCHEMA = ("items", "additionalItems", "additionalProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COMBINERS = ("allOf", "anyOf", "oneOf", "$ref")
_SAYS_NOTHING = frozenset({"$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples", "$comment"})
_SMALLEST_STEP = 1e-9
_REFERENCE_TO_ANY = {"$ref": f"#/$defs/{_ANY_NAME}"}
_ANY = {
    "anyOf": [
        {"type": "object", "additionalProperties": _REFERENCE_TO_ANY},
        {"type": "array", "items": _REFERENCE_TO_ANY},
        {"type": "string"},
        {"type": "number", "minimum": -_LARGEST_NUMBER, "maximum": _LARGEST_NUMBER},
        {"type": "boolean"},
        {"type": "null"},
    ]
}


class Unsupported(ValueError):
    """The schema asks for what can't be promised; the text says what."""


def narrow(schema: Schema) -> dict[str, Any]:
    """The narrowed form of `schema`, which is valid and plain JSON; the original is not changed.

    Raises:
        Unsupported: it counts properties that may come twice.
    """
    mixed = _is_mixed(schema)
    narrowed = _narrow(schema, mixed=mixed)
    narrowed.pop("x-guidance", None)  # llguidance's own options: ours to set
    if not mixed:
        narrowed["$defs"] = {**narrowed.get("$defs", {}), _ANY_NAME: _ANY}
    return narrowed


def _narrow(schema: Schema, *, mixed: bool) -> dict[str, Any]:
    def deeper(part: Any) -> Any:
        if part is True and not mixed:
            return dict(_REFERENCE_TO_ANY)
        return _narrow(part, mixed=mixed) if isinstance(part, Mapping) else part

    narrowed = {keyword: _map_subschemas(keyword, value, deeper) for keyword, value in schema.items()}
    if not schema.keys() & {"const", "enum"}:
        _narrow_strings(narrowed)
        _narrow_numbers(narrowed)
        if not mixed:
            _narrow_arrays(narrowed)
            _narrow_objects(narrowed)
        _refuse_counting(narrowed)
    return narrowed


def _map_subschemas(keyword: str, value: Any, change: Callable[[Any], Any]) -> Any:
    """`value` of `keyword` with `change` made to every schema directly in it."""
    if keyword in _SUBSCHEMA:
        return [change(part) for part in value] if isinstance(value, list) else change(value)
    if keyword in _LISTS:
        return [change(part) for part in value]
    if keyword in _MAPS:
        return {name: change(part) for name, part in value.items()}
    return value


def _is_mixed(schema: Any) -> bool:
    """Whether somewhere two schemas speak of the same value."""
    if not isinstance(schema, Mapping):
        return False
    combiners = schema.keys() & set(_COMBINERS)
    if "allOf" in combiners or len(combiners) > 1 or (combiners and schema.keys() - combiners - _SAYS_NOTHING):
        return True
    found: list[bool] = []
    for keyword, value in schema.items():
        _map_subschemas(keyword, value, lambda part: found.append(_is_mixed(part)))
    return any(found)


def _admits(schema: Schema, *types: str) -> bool:
    """Whether `schema` takes values of one of `types`. What refers to others leaves that to them."""
    if "type" not in schema:
        return not schema.keys() & set(_COMBINERS)
    named = schema["type"]
    return any(name in types for name in ([named] if isinstance(named, str) else named))


def _narrow_strings(schema: dict[str, Any]) -> None:
    patterns = []
    if "pattern" in schema:
        patterns.append(to_ascii(schema.pop("pattern")))
    if schema.get("format") not in KEPT_FORMATS and (known := FORMATS.get(schema.pop("format", ""))):
        patterns.append(known)
    if patterns:
        schema["pattern"] = patterns[0]
    if len(patterns) > 1:
        schema["allOf"] = [*schema.get("allOf", []), {"type": "string", "pattern": patterns[1]}]


def _narrow_numbers(schema: dict[str, Any]) -> None:
    if _admits(schema, "number"):
        largest = _LARGEST_NUMBER if "multipleOf" not in schema else _LARGEST_MULTIPLE
        _close_ends(schema)
    elif _admits(schema, "integer"):
        largest = _LARGEST_INTEGER
    else:
        return
    lower, upper = schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))
    if lower is None:
        schema["minimum"] = -largest if upper is None else -max(largest, 2 * abs(upper))
    if upper is None:
        schema["maximum"] = largest if lower is None else max(largest, 2 * abs(lower))


def _close_ends(schema: dict[str, Any]) -> None:
    """Ends that do not belong to the range become ends that do: 0.99999999999999999999 is below 1, but is read as 1."""
    if "exclusiveMaximum" in schema:
        end = schema.pop("exclusiveMaximum")
        end -= max(_SMALLEST_STEP, math.ulp(end))
        schema["maximum"] = min(end, schema.get("maximum", end))
    if "exclusiveMinimum" in schema:
        end = schema.pop("exclusiveMinimum")
        end += max(_SMALLEST_STEP, math.ulp(end))
        schema["minimum"] = max(end, schema.get("minimum", end))


def _narrow_arrays(schema: dict[str, Any]) -> None:
    if _admits(schema, "array"):
        rest = "additionalItems" if isinstance(schema.get("items"), list) else "items"
        schema.setdefault(rest, dict(_REFERENCE_TO_ANY))


def _narrow_objects(schema: dict[str, Any]) -> None:
    if not _admits(schema, "object"):
        return
    named = schema.get("properties", {})
    is_complete = "patternProperties" not in schema and set(schema.get("required", [])) <= set(named)
    if named and is_complete:
        schema.setdefault("additionalProperties", False)
    schema.setdefault("additionalProperties", dict(_REFERENCE_TO_ANY))


def _refuse_counting(schema: Schema) -> None:
    """The grammar would count a property that comes twice as two."""
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if is_open and schema.get("minProperties", 0) > len(schema.get("required", [])):
        raise Unsupported("minProperties needs additionalProperties: false and no patternProperties")
