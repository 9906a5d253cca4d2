"""`zopilot-gpu jobs`: submits prompts to be answered later, and sees after them."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import httpx
import typer

from zopilot_gpu.cli.common import events, fail, read_object

app = typer.Typer(no_args_is_help=True, help="Prompts that are answered later.")
_TIMEOUT_S = 600
Url = Annotated[str, typer.Option(help="Where the service is.", envvar="ZOPILOT_GPU_URL")]
Key = Annotated[str, typer.Option(help="The API key.", envvar="ZOPILOT_GPU_API_KEY")]
JobId = Annotated[str, typer.Argument(metavar="ID")]
_HERE = "http://127.0.0.1:3000"


@app.command()
def submit(  # noqa: PLR0913  (one parameter an option)
    text: Annotated[str | None, typer.Argument(metavar="PROMPT", help="The instruction or question.")] = None,
    *,
    body: Annotated[typer.FileText | None, typer.Option(help="A file with a whole body instead; - for standard input.")] = None,
    context: Annotated[typer.FileText | None, typer.Option(help="A file with a JSON object.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Most tokens to generate.")] = None,
    callback_url: Annotated[str | None, typer.Option(help="Where to send the result.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="The same key and body are the same job.")] = None,
    url: Url = _HERE,
    key: Key = "",
) -> None:
    """Submit a prompt, or a body with many; prints the id of each job."""
    if (text is None) == (body is None):
        raise typer.BadParameter("Give either a prompt or --body.")
    asked: dict[str, Any] = {"prompt": text} if body is None else read_object(body)
    asked |= {"context": read_object(context)} if context else {}
    chosen = {"max_tokens": max_tokens, "callback_url": callback_url}
    asked |= {name: value for name, value in chosen.items() if value is not None}
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    with _service(url, key) as client:
        taken = _read(client.post("/jobs", json=asked, headers=headers))
    for job in taken.get("jobs", [taken]):
        typer.echo(job["id"])


@app.command()
def get(job_id: JobId, *, url: Url = _HERE, key: Key = "") -> None:
    """Print a job with its result; status 1 when it failed."""
    with _service(url, key) as client:
        job = _read(client.get(f"/jobs/{job_id}"))
    typer.echo(json.dumps(job, indent=2))
    raise typer.Exit(int(job["state"] == "failed"))


@app.command()
def cancel(job_id: JobId, *, url: Url = _HERE, key: Key = "") -> None:
    """Cancel a job unless it has ended, and print its state."""
    with _service(url, key) as client:
        typer.echo(_read(client.delete(f"/jobs/{job_id}"))["state"])


@app.command("ls")
def list_(
    *,
    state: Annotated[str | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="At most so many, the newest first.")] = 50,
    url: Url = _HERE,
    key: Key = "",
) -> None:
    """List the jobs of this key."""
    with _service(url, key) as client:
        page = _read(client.get("/jobs", params={"limit": limit} | ({"state": state} if state else {})))
    for job in page["jobs"]:
        typer.echo(f"{job['id']}  {job['state']:9}  {job['created_at']}")


@app.command()
def watch(job_id: JobId, *, url: Url = _HERE, key: Key = "") -> None:
    """Print the answer of a job as it is written, from its beginning; states go to standard error."""
    with _service(url, key) as client, client.stream("GET", f"/jobs/{job_id}/events") as response:
        if response.is_error:
            response.read()
            _read(response)
        _print_events(response)


def _print_events(response: httpx.Response) -> None:
    told = ""
    for event, data in events(response):
        match event:
            case "text":
                told += data["text"]
                sys.stdout.write(data["text"])
                sys.stdout.flush()
            case "done":
                sys.stdout.write("\n" if told else f"{json.dumps(data['output'])}\n")
                return
            case "error":
                fail(data["error"]["message"])
            case "cancelled":
                fail("The job was cancelled.")
            case _:
                typer.echo(data["state"], err=True)
    fail("The stream was cut; watch again.")


@contextmanager
def _service(url: str, key: str) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": key.split(",", maxsplit=1)[0].strip()} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"No answer from {url}: {error}")
    except (KeyError, ValueError):
        fail(f"What answers at {url} is not this service, or the key is not one.")


def _read(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        fail(response.json()["error"]["message"])
    return dict(response.json())
