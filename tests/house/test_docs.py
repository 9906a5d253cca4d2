"""The tables of docs/ say what the code says: fields, settings, series, routes, targets. A failure prints the rows."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from tests.contract.test_gate import ROUTES
from zopilot_gpu.api import metrics
from zopilot_gpu.api.schemas import Metadata, PromptRequest, Usage
from zopilot_gpu.errors import ServiceError
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


TABLES = {
    "docs/api.md: request": ("docs/api.md", request_rows),
    "docs/api.md: metadata": ("docs/api.md", metadata_rows),
    "docs/settings.md": ("docs/settings.md", settings_rows),
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


def test_the_make_targets_of_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    for name in ("README.md", "CONTRIBUTING.md", "docs/operations.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z]+)", page(name), re.MULTILINE))
        assert named <= targets, name


def test_links_of_the_docs_lead_somewhere() -> None:
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", file.read_text()):
            assert (file.parent / link).exists(), f"{file.name}: {link}"
