"""The JSON Schema of a request, from the caller's side: may it be asked for, and does the answer keep it?

Knows the limits and an independent validator (jsonschema-rs); nothing of how the answer was made to fit. Sizes are checked
before anything is compiled; references must stay inside the schema, and nothing is ever fetched.
"""

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import jsonschema_rs

from zopilot_gpu.errors import InvalidRequest, OutputInvalid, OutputTruncated
from zopilot_gpu.events import Done

MAX_BYTES = 64 * 1024
MAX_DEPTH = 32
MAX_NAMES = 2000  # properties and values of const and enum in all
MAX_PATTERNS = 100
MAX_REFERENCES = 200  # different ones; compiling goes as deep as they lead
MAX_OUTPUT_DEPTH = 200  # JSON libraries give up on more, each at its own depth
_DIALECTS = {
    "http://json-schema.org/draft-07/schema": jsonschema_rs.Draft7Validator,
    "https://json-schema.org/draft/2020-12/schema": jsonschema_rs.Draft202012Validator,
}
_DEFAULT_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_LENIENT = (
    "idn-email",
    "idn-hostname",
    "iri",
    "iri-reference",
    "json-pointer",
    "regex",
    "relative-json-pointer",
    "uri-reference",
    "uri-template",
)  # fmt: skip  (formats that the validator knows and an answer need not keep)


def read(schema: Mapping[str, Any]) -> str:
    """`schema` as JSON text, when it keeps the limits and is a schema at all.

    Raises:
        InvalidRequest: 422, with the reason.
    """
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except RecursionError:
        raise _refusal(f"may be nested at most {MAX_DEPTH} deep") from None
    except ValueError:
        raise _refusal("must be plain JSON, without NaN, Infinity or integers of thousands of digits") from None
    if len(text.encode()) > MAX_BYTES:
        raise _refusal(f"may have at most {MAX_BYTES} bytes")
    _refuse_beyond_limits(schema)
    try:
        _validator(text)
    except InvalidRequest:
        raise
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError) as error:
        reason = getattr(error, "message", str(error))
        raise _refusal(f"is no valid schema: {' '.join(reason.split())[:200]}") from None
    return text


def _refuse_beyond_limits(schema: Mapping[str, Any]) -> None:
    num_names = num_patterns = 0
    references = set[str]()
    for part, depth in _walk(schema):
        num_names += _size(part.get("properties")) + _size(part.get("patternProperties"))
        num_names += sum(_num_values(part[keyword]) for keyword in ("const", "enum") if keyword in part)
        num_patterns += ("pattern" in part) + _size(part.get("patternProperties"))
        if depth > MAX_DEPTH:
            raise _refusal(f"may be nested at most {MAX_DEPTH} deep")
        if num_names > MAX_NAMES:
            raise _refusal(f"may have at most {MAX_NAMES} properties and values of const and enum")
        if num_patterns > MAX_PATTERNS:
            raise _refusal(f"may have at most {MAX_PATTERNS} patterns")
        found = {part[keyword] for keyword in ("$ref", "$dynamicRef") if isinstance(part.get(keyword), str)}
        if not all(reference.startswith("#") for reference in found):
            raise _refusal("a $ref must point inside the schema")
        references |= found
        if len(references) > MAX_REFERENCES:
            raise _refusal(f"may refer to at most {MAX_REFERENCES} places")


def conform(text: str, schema: str, done: Done) -> Any:
    """The value of an answer, proven to keep `schema`.

    Raises:
        OutputTruncated: it ended before it was whole.
        OutputInvalid: it does not keep the schema: a fault of ours.
    """
    if done.finish_reason == "length":
        raise OutputTruncated
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise OutputInvalid from None
    if any(depth > MAX_OUTPUT_DEPTH for _, depth in _walk(value)):
        raise OutputInvalid
    if not _validator(schema).is_valid(value):
        raise OutputInvalid
    return value


@lru_cache(maxsize=64)
def _validator(text: str) -> jsonschema_rs.Validator:
    schema = json.loads(text)
    dialect = str(schema.get("$schema", _DEFAULT_DIALECT)).rstrip("#")
    if dialect not in _DIALECTS:
        raise _refusal("$schema must be Draft 7 or 2020-12")
    return _DIALECTS[dialect](
        schema,
        formats=dict.fromkeys(_LENIENT, _anything),
        validate_formats=True,
        pattern_options=jsonschema_rs.RegexOptions(size_limit=1 << 20, dfa_size_limit=1 << 20),
        offline=True,
    )


def _anything(_: str) -> bool:
    return True


def _walk(value: Any) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Every JSON object in `value`, with its depth; an array is one without members. Data in a schema is walked too."""
    left: list[tuple[Any, int]] = [(value, 1)]
    while left:
        part, depth = left.pop()
        if isinstance(part, Mapping | list):
            yield part if isinstance(part, Mapping) else {}, depth
            left += [(one, depth + 1) for one in (part.values() if isinstance(part, Mapping) else part)]


def _num_values(data: Any) -> int:
    """The values in `data` that hold no others."""
    num, left = 0, [data]
    while left:
        part = left.pop()
        if isinstance(part, Mapping | list):
            left += part.values() if isinstance(part, Mapping) else part
        else:
            num += 1
    return num


def _size(group: object) -> int:
    return len(group) if isinstance(group, Mapping | list) else 0


def _refusal(reason: str) -> InvalidRequest:
    return InvalidRequest(422, "json_schema_invalid", f"json_schema: {reason}")
