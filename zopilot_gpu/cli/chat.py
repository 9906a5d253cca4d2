"""`zopilot-gpu chat`: a conversation with a running service, in a terminal or from a pipe.

Talks to `/v1/chat/completions` as any client does, and keeps the conversation here: the service remembers nothing. An answer
that is interrupted or fails is not part of it.

    /system TEXT   instructions for the whole conversation      /undo   forgets the last question and answer
    /clear         begins anew                                  /exit   or Ctrl-D: leaves
"""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

from zopilot_gpu.cli.common import fail

_TIMEOUT_S = 600
_HELP = (
    "/system TEXT sets instructions, /undo forgets the last answer, /clear begins anew, /exit leaves; Ctrl-C stops an answer."
)


class ChatError(Exception):
    """The service refused or broke off; the text is its sentence."""


class Conversation:
    """What was said so far, and how to go on."""

    def __init__(self, client: httpx.Client, fields: dict[str, Any], system: str | None) -> None:
        self._client, self._fields = client, fields
        self.system = system
        self.turns: list[dict[str, str]] = []

    def model(self) -> str:
        """The name of the served model, which is also whether the service answers."""
        found = self._client.get("/v1/models")
        _refuse_error(found)
        name = str(found.json()["data"][0]["id"])
        self._fields["model"] = name
        return name

    def ask(self, text: str) -> Iterator[str]:
        """The pieces of the answer to `text`; both are kept once it is whole."""
        asked = {"role": "user", "content": text}
        first = [{"role": "system", "content": self.system}] if self.system else []
        body = self._fields | {"messages": [*first, *self.turns, asked], "stream": True}
        answer = ""
        with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.is_error:
                response.read()
            _refuse_error(response)
            for piece in _pieces(response):
                answer += piece
                yield piece
        if answer:  # a turn of the model that is empty could not be sent again
            self.turns += [asked, {"role": "assistant", "content": answer}]

    def undo(self) -> None:
        """Forgets the last question and its answer."""
        del self.turns[-2:]


def _pieces(response: httpx.Response) -> Iterator[str]:
    for line in response.iter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise ChatError(chunk["error"]["message"])
        for choice in chunk["choices"]:
            if piece := choice["delta"].get("content"):
                yield piece
    raise ChatError("The answer was cut.")


def _refuse_error(response: httpx.Response) -> None:
    if response.is_error:
        raise ChatError(response.json()["error"]["message"])


def chat(
    *,
    system: Annotated[str | None, typer.Option(help="Instructions for the whole conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens in an answer.")] = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.1,
    seed: Annotated[int | None, typer.Option(help="For repeatable answers.")] = None,
    url: Annotated[str, typer.Option(help="Where the service is.", envvar="ZOPILOT_GPU_URL")] = "http://127.0.0.1:3000",
    key: Annotated[str, typer.Option(help="The API key.", envvar="ZOPILOT_GPU_API_KEY")] = "",
) -> None:
    """Talk with a running service. From a pipe, each line is a question, and answers are all that is printed."""
    chosen = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    fields = {name: value for name, value in chosen.items() if value is not None}
    headers = {"X-API-Key": key.split(",")[0].strip()} if key else {}
    console = Console(highlight=False)
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            conversation = Conversation(client, fields, system)
            name = conversation.model()
            if sys.stdin.isatty():
                console.print(f"[bold]{name}[/bold] at {url}\n[dim]{_HELP}[/dim]")
            while (text := _read(console)) is not None:
                _turn(conversation, text, console)
    except ChatError as error:
        fail(str(error))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"No answer from {url}: {error}")
    except (KeyError, IndexError, ValueError):
        fail(f"What answers at {url} is not this service, or the key is not one.")


def _read(console: Console) -> str | None:
    """The next line of the person, without blanks around it; None at the end."""
    try:
        text = console.input("[bold cyan]> [/bold cyan]" if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if text == "/exit" else text


def _turn(conversation: Conversation, text: str, console: Console) -> None:
    command, _, rest = text.partition(" ")
    match command:
        case "":
            return
        case "/clear":
            conversation.turns.clear()
        case "/undo":
            conversation.undo()
        case "/system":
            conversation.system = rest.strip() or None
        case _ if command.startswith("/") and sys.stdin.isatty():
            console.print(f"[dim]{_HELP}[/dim]")
        case _:
            _answer(conversation, text, console)


def _answer(conversation: Conversation, text: str, console: Console) -> None:
    """Prints the answer as it comes. In a terminal a refusal or Ctrl-C ends the answer, not the conversation."""
    try:
        for piece in conversation.ask(text):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
    except KeyboardInterrupt:
        console.print("\n[dim]Stopped.[/dim]")
    except ChatError as error:
        if not sys.stdin.isatty():
            raise
        console.print(f"\n[red]{error}[/red]", markup=True)
