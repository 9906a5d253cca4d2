"""Tools: told to the model as text, and as the schema that a call keeps. Knows schemas as data.

A call is the JSON object `{"name": ..., "arguments": {...}}` under a schema made of the tools' parameters, so a forced call
can't be anything else. With `auto` the model chooses by how it begins: `{` is a call, which is then written under that schema;
anything else is text. Why so: docs/decisions/010-tools.md.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from zopilot_gpu.api import json_schema
from zopilot_gpu.api.openai.errors import bad_request
from zopilot_gpu.api.openai.shapes import ChatRequest, Function, NamedToolChoice
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.events import Job

_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
_DATA = frozenset({"const", "enum", "default", "examples"})  # what is in them is no schema
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})
_BEGINNING = "{"


@dataclass(frozen=True, slots=True)
class Calling:
    """How an answer may call: under `schema`, and only so where `forced`. `preamble` tells the model."""

    schema: str
    forced: bool
    preamble: str


def calling_of(request: ChatRequest) -> Calling | None:
    """How the answer to `request` may call; None where it may not.

    Raises:
        InvalidRequest: tools or choice are wrong.
    """
    functions = [tool.function for tool in request.tools or ()]
    choice = request.tool_choice or ("auto" if functions else "none")
    _refuse_wrong(functions, choice)
    if choice == "none":
        return None
    if isinstance(choice, NamedToolChoice):
        functions = [one for one in functions if one.name == choice.function.name]
    forced = choice != "auto"
    return Calling(_schema_of(functions), forced, _preamble(functions, forced=forced))


def _refuse_wrong(functions: Sequence[Function], choice: object) -> None:
    names = [one.name for one in functions]
    if len(set(names)) < len(names):
        raise bad_request("tools: two functions have the same name", "tools")
    if choice != "none" and not functions:
        raise bad_request("tool_choice: needs tools", "tool_choice")
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        raise bad_request("tool_choice: there is no such function in tools", "tool_choice")
    for at, one in enumerate(functions):
        where = f"tools[{at}].function.parameters"
        parameters = _parameters(one)
        if parameters.get("type") != "object":
            raise bad_request(f"{where}: must be a schema of type 'object'", where)
        try:
            json_schema.read(parameters)
        except InvalidRequest as refusal:
            raise bad_request(refusal.message.replace("json_schema", where, 1), where, code=refusal.code) from None


def _parameters(function: Function) -> dict[str, Any]:
    return _NO_PARAMETERS if function.parameters is None else function.parameters


def _schema_of(functions: Sequence[Function]) -> str:
    """The schema of a call of one of `functions`. Each one's own references are made to lead into its own place."""
    forms = []
    definitions = {}
    for at, one in enumerate(functions):
        place = f"function_{at}"
        definitions[place] = _moved(
            {name: part for name, part in _parameters(one).items() if name != "$schema"}, f"#/$defs/{place}"
        )
        forms.append(
            {
                "type": "object",
                "properties": {"name": {"const": one.name}, "arguments": {"$ref": f"#/$defs/{place}"}},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    form = forms[0] if len(forms) == 1 else {"anyOf": forms}
    return json_schema.read({**form, "$defs": definitions})


def _moved(part: Any, place: str) -> Any:
    """`part` of a schema whose root is now at `place`."""
    if isinstance(part, list):
        return [_moved(one, place) for one in part]
    if not isinstance(part, dict):
        return part
    moved = dict[str, Any]()
    for name, value in part.items():
        if name in _BY_NAME and isinstance(value, dict):
            moved[name] = {key: _moved(schema, place) for key, schema in value.items()}
        elif name == "$ref" and (value == "#" or str(value).startswith("#/")):
            moved[name] = place + value[1:]
        else:
            moved[name] = value if name in _DATA else _moved(value, place)
    return moved


def _preamble(functions: Sequence[Function], *, forced: bool) -> str:
    described = [
        {"name": one.name, **({"description": one.description} if one.description else {}), "parameters": _parameters(one)}
        for one in functions
    ]
    listed = "\n".join(json.dumps(one, ensure_ascii=False) for one in described)
    form = '{"name": "...", "arguments": {...}}'
    if forced:
        return f"Call one of these functions. Answer with the call only, as JSON: {form}\n{listed}"
    how = f"To call, answer with the call only, as JSON: {form}\nElse answer with text."
    return f"You can call one of these functions. {how}\n{listed}"


def begins_a_call(text: str) -> bool | None:
    """Whether an answer that begins with `text` is to be a call; None where that is not known yet."""
    begun = text.lstrip()
    return begun.startswith(_BEGINNING) if begun else None


def job_of_call(job: Job, calling: Calling) -> Job:
    """The job that writes a call."""
    return replace(job, json_schema=calling.schema, stop=(), sampling=replace(job.sampling, min_tokens=0))


def new_id() -> str:
    """An id for a call."""
    return f"call_{uuid.uuid4().hex[:24]}"
