"""What the commands share: how they fail, and how they read a file that a person names or a stream of the service."""

import json
from collections.abc import Iterator
from typing import Any, NoReturn

import httpx
import typer


def fail(message: str) -> NoReturn:
    """Ends the command with one sentence on standard error and status 1."""
    typer.echo(f"zopilot-gpu: {message}", err=True)
    raise typer.Exit(1)


def read_object(file: typer.FileText) -> dict[str, Any]:
    """The JSON object in `file`; anything else ends the command."""
    try:
        content = json.load(file)
    except ValueError as error:
        fail(f"{file.name} is not JSON: {error}")
    if not isinstance(content, dict):
        fail(f"{file.name} must hold a JSON object.")
    return dict(content)


def events(response: httpx.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a stream of this service: the name and the data of each, which is one line of JSON.

    Raises:
        ValueError: the data is none.
    """
    event = ""
    for line in response.iter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)
