"""The tables of docs/ say what the code says: fields, settings, series, routes, targets. A failure prints the rows."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from tests.contract.test_gate import OPEN, ROUTES
from zopilot_gpu.api import metrics, openapi
from zopilot_gpu.api.openai.shapes import ChatRequest, CompletionRequest
from zopilot_gpu.api.schemas import Metadata, PromptRequest, Usage
from zopilot_gpu.doctor.checks import CHECKS
from zopilot_gpu.errors import ServiceError
from zopilot_gpu.process.exits import Exit
from zopilot_gpu.settings import Settings, variable_name

ROOT = Path(__file__).parents[2]
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def bounds(field: FieldInfo) -> str:
    found = ((sign, getattr(rule, name, None)) for rule in field.metadata for name, sign in BOUNDS.items())
    return ", ".join(
        f"{sign} {value:,}" if isinstance(value, int) else f"{sign} {value:g}" for sign, value in found if value is not None
    )


def default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value: Any = field.default
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "none" if value in (None, (), []) else f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def kind(field: FieldInfo) -> str:
    name = str(field.annotation)
    for part, word in {
        "dict": "object",
        "list": "list of strings",
        "str": "string",
        "float": "number",
        "int": "integer",
        "bool": "boolean",
    }.items():
        if part in name:
            return word
    raise AssertionError(name)


def limits(field: FieldInfo) -> str:
    return f" {bounds(field)}." if bounds(field) else ""


def request_rows() -> Iterator[str]:
    for name, field in PromptRequest.model_fields.items():
        yield f"| `{name}` | {kind(field)} | {default(field)} | {field.description}{limits(field)} |"


def openai_rows() -> Iterator[str]:
    fields = dict(ChatRequest.model_fields) | dict(CompletionRequest.model_fields)
    for name in [*ChatRequest.model_fields, *(set(CompletionRequest.model_fields) - set(ChatRequest.model_fields))]:
        where = ["chat"] * (name in ChatRequest.model_fields) + ["completions"] * (name in CompletionRequest.model_fields)
        if name == "logprobs":  # a boolean in one, a number in the other
            yield f"| `{name}` | chat | {ChatRequest.model_fields[name].description} |"
            where.remove("chat")
        yield f"| `{name}` | {', '.join(where)} | {fields[name].description}{limits(fields[name])} |"


def metadata_rows() -> Iterator[str]:
    for prefix, model in (("", Metadata), ("usage.", Usage)):
        for name, field in model.model_fields.items():
            if field.description:
                yield f"| `{prefix}{name}` | {field.description} |"


def settings_rows() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        yield f"| `{variable_name(name)}` | {default(field)} | {field.description}{limits(field)} |"


def series_rows() -> Iterator[str]:
    for series in metrics.REGISTRY.collect():
        yield f"| `{series.name}` | {series.type} | {series.documentation} |"


def exit_rows() -> Iterator[str]:
    yield "| 0 | A stop. |"
    yield "| 2 | A setting is wrong; the last line says which. |"
    for status in Exit:
        yield f"| {int(status)} | {status.meaning} |"


def check_rows() -> Iterator[str]:
    for entry in CHECKS:
        yield f"| `{entry.name}` | {'yes' if entry.build else 'no'} | {entry.what} |"


TABLES = {
    "docs/operations.md: doctor": ("docs/operations.md", check_rows),
    "docs/api.md: request": ("docs/api.md", request_rows),
    "docs/api.md: OpenAI-compatible routes": ("docs/api.md", openai_rows),
    "docs/api.md: metadata": ("docs/api.md", metadata_rows),
    "docs/settings.md": ("docs/settings.md", settings_rows),
    "docs/operations.md: exit statuses": ("docs/operations.md", exit_rows),
    "docs/operations.md: series": ("docs/operations.md", series_rows),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_of_the_docs_is_what_the_code_says(table: str) -> None:
    name, rows = TABLES[table]
    expected = "\n".join(rows())
    assert f"---|\n{expected}\n\n" in page(name) + "\n", f"{name} should have this table and no other row:\n{expected}"


def test_every_route_and_every_error_code_is_in_the_docs() -> None:
    text = page("docs/api.md")
    routes = set(ROUTES) - {"/unknown", "/v1/unknown", "/healthz", "/static_content/index.css"}
    codes = {error.code for error in ServiceError.__subclasses__()}
    codes |= set(re.findall(r'InvalidRequest\(\d+, "(\w+)"', "".join(path.read_text() for path in ROOT.glob("*/**/*.py"))))
    assert not [name for name in routes | codes if f"`{name}`" not in text and f"{name}`" not in text]


def test_the_openapi_document_and_the_docs_name_the_same_routes() -> None:
    documented = set()
    for cell in re.findall(r"^\| (`(?:GET|POST|PUT|DELETE) /.*?) \|", page("docs/api.md"), re.MULTILINE):
        method = ""
        for named, path in re.findall(r"`(?:(GET|POST|PUT|DELETE) )?(/[^`]*)`", cell):
            method = named.lower() or method
            documented.add((method, path))
    assert documented == set(openapi.OPERATIONS)
    assert {path for _, path in openapi.OPERATIONS} <= set(ROUTES)


def test_the_openapi_document_holds_together() -> None:
    document = openapi.document()
    text = json.dumps(document)
    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert set(re.findall(r'"\$ref": "([^"]*)"', text)) <= known
    names = [operation["operationId"] for methods in document["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names)) == len(openapi.OPERATIONS)
    open_paths = {path for path, methods in document["paths"].items() for one in methods.values() if not one["security"]}
    assert open_paths == OPEN
    for (method, path), operation in openapi.OPERATIONS.items():
        told = document["paths"][path][method]
        assert told["responses"]["200"]
        assert ("requestBody" in told) == (operation.body is not None)
        if operation.body:
            operation.body.model_validate(operation.example)


def test_the_make_targets_of_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "docs/operations.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page(name), re.MULTILINE))
        assert named <= targets, name


def test_links_of_the_docs_lead_somewhere() -> None:
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file.name}: {link}"
