"""`zopilot-gpu serve`: starts `bentoml serve` on this machine, says when it is ready and how to call it.

Knows processes; refuses to serve other machines without being told to (`--host`).
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console

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
    key = os.environ.get("ZOPILOT_GPU_API_KEY", "").split(",")[0].strip() or secrets.token_urlsafe(24)
    env = {"BENTOML_DO_NOT_TRACK": "True", "ZOPILOT_GPU_API_KEY": key, **_without_empty(os.environ)}
    if demo:
        env |= {"ZOPILOT_GPU_MODEL": "demo", "ZOPILOT_GPU_DEVICE": "cpu", "BENTOML_DISABLE_GPU_ALLOCATION": "1"}
        env.setdefault("ZOPILOT_GPU_LOG_LEVEL", "warning")
    command = [sys.executable, "-m", "bentoml", "serve", "service:ZopilotGPU", "--host", host, "--port", str(port)]
    server = subprocess.Popen(command, cwd=_ROOT, env=env)  # noqa: S603  (our own command)
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": key}) as client:
            ready = _wait_until_ready(client, server)
            if ready:
                _introduce(client, key, ask=demo)
        raise typer.Exit(server.wait() or int(not ready))
    except KeyboardInterrupt:
        raise typer.Exit(server.wait()) from None
    finally:
        server.terminate()


def _without_empty(env: Any) -> dict[str, str]:
    return {name: value for name, value in env.items() if value}


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


def _introduce(client: httpx.Client, key: str, *, ask: bool) -> None:
    body = json.dumps(_EXAMPLE)
    _console.print(f"Ready on {client.base_url}. Ask it, for example:\n")
    _console.print(
        f"curl {client.base_url}/prompt -H 'X-API-Key: {key}' -H 'Content-Type: application/json' -d '{body}'\n", markup=False
    )
    if ask:
        answer = client.post("/prompt", json=_EXAMPLE, timeout=60).json()
        _console.print(f"{_EXAMPLE['prompt']} -> {answer.get('output', answer)}", markup=False)
    _console.print("Press Ctrl-C to stop.")
