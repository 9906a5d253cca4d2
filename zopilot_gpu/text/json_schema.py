r"""A JSON Schema narrowed to what a grammar can hold. Knows both sides' dialects; refuses what neither form can promise.

llguidance follows a schema token by token, but reads some keywords more widely than a validator does: `\s` as Unicode's, a
date as any three numbers, a number as long as it likes, the same key twice in an object. `narrow` gives a schema that it can
follow and whose every instance is one of the original (JSON Schema, Draft 7 and 2020-12):

- numbers stay within what every JSON reader holds exactly: integers within 2^53, others within 10^15;
- known formats become patterns, unknown ones are dropped; patterns lose Unicode's wider classes (ECMA-262 is the dialect);
- objects that name their properties and do not speak of others get no others;
- what may be anything is anything that keeps these rules.

Where two schemas speak of the same value (`allOf`, or keywords beside `$ref`, `anyOf`, `oneOf`), what one leaves open is the
other's to say: there the third is left out, and the last holds six levels deep (whoever sends a value checks it whole).

Try it: `python -m pytest tests/unit/text/test_json_schema.py`.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any
from urllib.parse import unquote

from zopilot_gpu.text.patterns import FORMATS, KEPT_FORMATS, Unsupported, to_ascii

Schema = Mapping[str, Any]

_LARGEST_INTEGER = 2**53 - 1  # RFC 8259, section 6
_LARGEST_NUMBER = 10**15
_LARGEST_MULTIPLE = 10**12  # beyond, validators' arithmetic blurs what is a multiple of 0.01
_LARGEST_COMMON_FACTOR = 2**16 - 1  # the library multiplies two of them in 32 bits
_UNWRITABLE = frozenset(map(chr, [*range(32), 127])) - frozenset("\b\f\n\r\t")  # without \u escapes, see engine.grammar
_SUBSCHEMA = ("items", "additionalItems", "additionalProperties")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_COMBINERS = ("allOf", "anyOf", "oneOf", "$ref")
_SAYS_NOTHING = frozenset({"$schema", "$id", "$defs", "definitions", "title", "description", "default", "examples", "$comment"})
_MOST_MIXED_PATTERNS = 30  # of 100 for one value, the library needs seconds to see that they leave nothing
_SMALLEST_STEP = 1e-9


def _anything(inner: object) -> Schema:
    """Any value, whose members are `inner`."""
    return {
        "anyOf": [
            {"type": "object", "additionalProperties": inner},
            {"type": "array", "items": inner},
            {"type": "string"},
            {"type": "number", "minimum": -_LARGEST_NUMBER, "maximum": _LARGEST_NUMBER},
            {"type": "boolean"},
            {"type": "null"},
        ]
    }


# NOTE: the library intersects schemas that speak of the same value, and never ends with two that contain themselves.
_MIXED_LEVELS = 6
_NAMES = ["zopilot_gpu.any", *(f"zopilot_gpu.any.{level}" for level in range(2, _MIXED_LEVELS + 1))]
_REFERENCE, *_INNER_REFERENCES = ({"$ref": f"#/$defs/{name}"} for name in _NAMES)
_ANY = {_NAMES[0]: _anything(_REFERENCE)}
_ANY_OF_MIXED = {name: _anything(inner) for name, inner in zip(_NAMES, [*_INNER_REFERENCES, {}], strict=True)}


def narrow(schema: Schema) -> dict[str, Any]:
    """The narrowed form of `schema`, which is valid and plain JSON; the original is not changed.

    Raises:
        Unsupported: it has no form that keeps its promise.
    """
    _refuse_circles(schema)
    mixed = any(map(_is_mixed, _parts(schema)))
    if mixed:
        _refuse_costly_mixtures(schema)
    narrowed = _narrow(schema, mixed=mixed)
    narrowed.pop("x-guidance", None)  # llguidance's own options: ours to set
    narrowed["$defs"] = {**narrowed.get("$defs", {}), **(_ANY_OF_MIXED if mixed else _ANY)}
    return narrowed


def _narrow(schema: Schema, *, mixed: bool) -> dict[str, Any]:
    def deeper(part: Any) -> Any:
        if part is True:
            return dict(_REFERENCE)
        if isinstance(part, Mapping) and "$id" in part:
            raise Unsupported("$id is understood at the top only")
        return _narrow(part, mixed=mixed) if isinstance(part, Mapping) else part

    narrowed = {keyword: _map_subschemas(keyword, value, deeper) for keyword, value in schema.items()}
    if narrowed.get("uniqueItems") is False:
        del narrowed["uniqueItems"]
    _narrow_strings(narrowed)
    _refuse_unwritable([schema.get("const"), schema.get("enum")])
    if not schema.keys() & {"const", "enum"}:
        _narrow_numbers(narrowed)
        _narrow_arrays(narrowed)
        _narrow_objects(narrowed, mixed=mixed)
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


def _is_mixed(schema: Schema) -> bool:
    """Whether two schemas speak of the same value."""
    combiners = schema.keys() & set(_COMBINERS)
    has_two_names = schema.keys() >= {"properties", "patternProperties"}  # of one member
    return (
        has_two_names
        or "allOf" in combiners
        or len(combiners) > 1
        or bool(combiners and schema.keys() - combiners - _SAYS_NOTHING)
    )


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
    for lower, upper in (("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")):
        if schema.get(lower, 0) > largest or schema.get(upper, 0) < -largest:
            raise Unsupported(f"numbers are only written up to {largest:,}")
        if lower in schema and schema[lower] < -largest:
            del schema[lower]
        if upper in schema and schema[upper] > largest:
            del schema[upper]
    if not schema.keys() & {"minimum", "exclusiveMinimum"}:
        schema["minimum"] = -largest
    if not schema.keys() & {"maximum", "exclusiveMaximum"}:
        schema["maximum"] = largest


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
        schema.setdefault(rest, dict(_REFERENCE))


def _narrow_objects(schema: dict[str, Any], *, mixed: bool) -> None:
    if "patternProperties" in schema:
        patterns = {to_ascii(pattern): part for pattern, part in schema["patternProperties"].items()}
        if len(patterns) < len(schema["patternProperties"]):
            raise Unsupported("two patternProperties are the same")
        schema["patternProperties"] = patterns
    if not _admits(schema, "object"):
        return
    named = schema.get("properties", {})
    is_complete = "patternProperties" not in schema and set(schema.get("required", [])) <= set(named)
    if named and is_complete and not mixed:
        schema.setdefault("additionalProperties", False)
    schema.setdefault("additionalProperties", dict(_REFERENCE))


def _refuse_counting(schema: Schema) -> None:
    """The grammar would count a property that comes twice as two."""
    is_open = schema.get("additionalProperties") is not False or "patternProperties" in schema
    if is_open and schema.get("minProperties", 0) > len(schema.get("required", [])):
        raise Unsupported("minProperties needs additionalProperties: false and no patternProperties")


def _refuse_unwritable(data: Any) -> None:
    """Data of `const` and `enum` that would be written as something else, or not at all."""
    if isinstance(data, str):
        if not _UNWRITABLE.isdisjoint(data):
            raise Unsupported("const and enum can't hold control characters")
    elif isinstance(data, int | float):
        if abs(data) > _LARGEST_INTEGER:
            raise Unsupported(f"const and enum can't hold numbers beyond {_LARGEST_INTEGER:,}")
    elif isinstance(data, Mapping | list):
        for part in data.values() if isinstance(data, Mapping) else data:
            _refuse_unwritable(part)


def _refuse_costly_mixtures(schema: Schema) -> None:
    """Several `multipleOf` for one value become their least common multiple, which must not overflow; and see above."""
    factors: set[float] = set()
    num_patterns = 0
    for part in _parts(schema):
        factors.update([part["multipleOf"]] if "multipleOf" in part else [])
        num_patterns += ("pattern" in part) + ("format" in part)
    if num_patterns > _MOST_MIXED_PATTERNS:
        raise Unsupported(
            f"next to allOf, or keywords beside $ref, anyOf or oneOf, at most {_MOST_MIXED_PATTERNS} patterns can be kept"
        )
    if len(factors) > 1 or not all(_coefficient(factor) <= _LARGEST_COMMON_FACTOR for factor in factors):
        raise Unsupported("next to allOf, or keywords beside $ref, anyOf or oneOf, there can be one small multipleOf only")


def _coefficient(factor: float) -> float:
    """25 of 0.25; infinity where it is not that simple."""
    digits = str(factor).removesuffix(".0").replace(".", "")
    return int(digits) if digits.isdigit() else math.inf


def _refuse_circles(schema: Schema) -> None:
    """A `$ref` that leads back to itself, with no value in between, is kept by nothing."""
    leads_to: dict[str, set[str]] = {}
    left = [part["$ref"] for part in _parts(schema) if isinstance(part.get("$ref"), str)]
    while left:
        reference = left.pop()
        if reference not in leads_to:
            target = _parts(_at(schema, reference), _COMBINERS)
            leads_to[reference] = {part["$ref"] for part in target if isinstance(part.get("$ref"), str)}
            left += leads_to[reference]
    try:
        TopologicalSorter(leads_to).prepare()
    except CycleError:
        raise Unsupported("a $ref leads back to itself") from None


def _parts(schema: Any, keywords: Collection[str] = (*_SUBSCHEMA, *_LISTS, *_MAPS)) -> Iterator[Schema]:
    """`schema` and every schema in it that `keywords` lead to."""
    left = [schema]
    while left:
        part = left.pop()
        if isinstance(part, Mapping):
            yield part
            for keyword in part.keys() & set(keywords):
                _map_subschemas(keyword, part[keyword], left.append)


def _at(schema: Any, reference: str) -> Any:
    """What a JSON pointer leads to; None where it leads nowhere, or is none."""
    if reference.strip("#") and not reference.startswith("#/"):
        return None
    for name in map(unquote, reference.removeprefix("#").split("/")[1:]):
        key = name.replace("~1", "/").replace("~0", "~")
        if isinstance(schema, list):
            schema = schema[int(key)] if key.isdigit() and int(key) < len(schema) else None
        else:
            schema = schema.get(key) if isinstance(schema, Mapping) else None
    return schema
