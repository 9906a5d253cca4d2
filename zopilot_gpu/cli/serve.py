"""`zopilot-gpu serve`: starts `bentoml serve` on this machine, says when it is ready and how to call it.

Knows processes; refuses to serve other machines without being told to (`--host`).
"""

import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import httpx
import typer
from rich.console import Console

from zopilot_gpu.settings import DEMO_MODEL, NO_KEY, SettingsError, load_settings

_ROOT = Path(__file__).parents[2]
_EXAMPLE = {
    "prompt": "What is the total?",
    "context": {"vendor": "Acme", "invoice_number": "INV-1042", "total": "118.40", "due_date": "2026-12-01"},
}
_console = Console(highlight=False, soft_wrap=True)


def serve(
    demo: Annotated[bool, typer.Option("--demo", help="Serve the embedded demo model on the CPU.")] = False,  # noqa: FBT002
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", envvar="PORT")] = 3000,
) -> None:
    """Start the service; without ZOPILOT_GPU_API_KEY in the environment it gets a freshly made key."""
    if demo:
        os.environ |= {"ZOPILOT_GPU_MODEL": DEMO_MODEL, "ZOPILOT_GPU_DEVICE": "cpu", "BENTOML_DISABLE_GPU_ALLOCATION": "1"}
        os.environ.setdefault("ZOPILOT_GPU_LOG_LEVEL", "warning")
    os.environ.setdefault("BENTOML_DO_NOT_TRACK", "True")
    key = _key()
    command = [sys.executable, "-m", "bentoml", "serve", "service:ZopilotGPU", "--host", host, "--port", str(port)]
    server = subprocess.Popen(command, cwd=_ROOT)  # noqa: S603  (our own command)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    reached_at = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    try:
        with httpx.Client(base_url=f"http://{reached_at}:{port}", headers={"X-API-Key": key} if key else {}) as client:
            ready = _wait_until_ready(client, server)
            if ready:
                _introduce(client, ask=demo)
        raise typer.Exit(server.wait() or int(not ready))
    except KeyboardInterrupt:
        raise typer.Exit(server.wait()) from None
    finally:
        server.terminate()


def _key() -> str | None:
    """The key to call with: the first that is set, or a fresh one; None where anonymous use is allowed."""
    try:
        settings = load_settings()
    except SettingsError as error:
        if str(error) != NO_KEY:
            typer.echo(f"zopilot-gpu: {error}", err=True)
            raise typer.Exit(2) from None
    else:
        if settings.api_key:
            return settings.api_key[0].get_secret_value()
        if settings.keys_file is None:
            return None
    os.environ["ZOPILOT_GPU_API_KEY"] = secrets.token_urlsafe(24)
    return os.environ["ZOPILOT_GPU_API_KEY"]


def _wait_until_ready(client: httpx.Client, server: "subprocess.Popen[bytes]") -> bool:
    """True once the model answers; False when the process ended or the model can't be loaded."""
    with _console.status("starting") as status:
        while server.poll() is None:
            try:
                health = client.get("/health").json()
            except (httpx.TransportError, ValueError):
                health = {"status": "starting", "model": {"step": "starting", "progress": 0}}
            if health["status"] == "ok":
                return True
            if "problem" in health:
                _console.print(f"[red]The model is not available.[/red] {health['problem']}", markup=True)
                server.terminate()
                return False
            status.update(f"{health['model']['step']} ({health['model']['progress']:.0%})")
            time.sleep(0.1)
    return False


def _introduce(client: httpx.Client, *, ask: bool) -> None:
    body = json.dumps(_EXAMPLE)
    key = client.headers.get("X-API-Key")
    key_header = f"-H {shlex.quote(f'X-API-Key: {key}')} " if key else ""
    _console.print(f"Ready on {client.base_url}. Ask it, for example:\n")
    _console.print(f"curl {client.base_url}/prompt {key_header}-H 'Content-Type: application/json' -d '{body}'\n", markup=False)
    if ask:
        answer = client.post("/prompt", json=_EXAMPLE, timeout=60).json()
        _console.print(f"{_EXAMPLE['prompt']} -> {answer.get('output', answer)}", markup=False)
    _console.print("Press Ctrl-C to stop.")
