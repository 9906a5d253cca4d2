"""`zopilot-gpu prompt`: asks a running service and prints the answer as it is written."""

import json
import sys
from typing import Annotated, Any

import httpx
import typer

from zopilot_gpu.cli.common import events, fail, read_object

_TIMEOUT_S = 600


def prompt(  # noqa: PLR0913  (one parameter an option)
    text: Annotated[str, typer.Argument(metavar="PROMPT", help="The instruction or question.")],
    *,
    context: Annotated[typer.FileText | None, typer.Option(help="A file with a JSON object; - for standard input.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="For a repeatable answer.")] = None,
    metadata: Annotated[bool, typer.Option("--metadata", help="Print the metadata to standard error.")] = False,
    url: Annotated[str, typer.Option(help="Where the service is.", envvar="ZOPILOT_GPU_URL")] = "http://127.0.0.1:3000",
    key: Annotated[str, typer.Option(help="The API key.", envvar="ZOPILOT_GPU_API_KEY")] = "",
) -> None:
    """Ask a running service; the answer goes to standard output while it is generated."""
    body: dict[str, Any] = {"prompt": text, "stream": True}
    if context is not None:
        body["context"] = read_object(context)
    chosen = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    body |= {name: value for name, value in chosen.items() if value is not None}
    headers = {"X-API-Key": key.split(",")[0].strip()} if key else {}
    try:
        with httpx.stream("POST", f"{url.rstrip('/')}/prompt", json=body, headers=headers, timeout=_TIMEOUT_S) as response:
            if response.is_error:
                response.read()
                fail(response.json()["error"]["message"])
            if not _print_events(response, show_metadata=metadata):
                fail("The answer was cut.")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"No answer from {url}: {error}")
    except (KeyError, ValueError):
        fail(f"What answers at {url} is not this service, or the key is not one.")


def _print_events(response: httpx.Response, *, show_metadata: bool) -> bool:
    """Prints the pieces as they come; whether the answer was complete."""
    for event, data in events(response):
        if event == "text":
            sys.stdout.write(data["text"])
            sys.stdout.flush()
        elif event == "error":
            sys.stdout.write("\n")
            fail(data["error"]["message"])
        elif event == "done":
            sys.stdout.write("\n")
            if show_metadata:
                typer.echo(json.dumps(data["metadata"], indent=2), err=True)
            return True
    return False
