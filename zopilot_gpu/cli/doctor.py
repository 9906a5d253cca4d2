"""`zopilot-gpu doctor`: what will work on this machine and what will not, as a table or as JSON.

Exit status: 0 when nothing fails (warnings are none), 1 when a check fails, 2 when the settings are wrong.
"""

import json
import logging
import os
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from runners.environment import set_before_torch
from zopilot_gpu import log
from zopilot_gpu.cli.prepare import settings_without_key
from zopilot_gpu.doctor.report import Check, as_json, worst
from zopilot_gpu.settings import DEMO_MODEL, NO_KEY, Settings, SettingsError, load_settings

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_SAYS = {
    "ok": "All that was checked will work.",
    "warn": "It will work; look at the warnings.",
    "fail": "It will not work like this.",
}


def doctor(
    *,
    as_data: Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")] = False,
    build: Annotated[bool, typer.Option("--build", help="Only what an image can be checked for while it is built.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Without what takes seconds: kernels, and the speed of reading.")
    ] = False,
    demo: Annotated[bool, typer.Option("--demo", help="Check for the embedded demo model on the CPU.")] = False,
) -> None:
    """Check this machine: versions, driver, card, libraries, memory, volume, model, keys. Status 1 when a check fails."""
    if demo:
        os.environ |= {"ZOPILOT_GPU_MODEL": DEMO_MODEL, "ZOPILOT_GPU_DEVICE": "cpu"}
    set_before_torch()
    log.configure("error")
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    settings, keys_problem = _settings()
    from zopilot_gpu.doctor.checks import examine  # noqa: PLC0415  (torch takes seconds)
    from zopilot_gpu.doctor.facts import Depth, gather  # noqa: PLC0415

    depth: Depth = "build" if build else "quick" if quick else "all"
    checks = examine(gather(settings, depth, keys_problem=keys_problem))
    if as_data:
        typer.echo(json.dumps(as_json(checks), indent=2))
    else:
        show(checks, Console(highlight=False))
    raise typer.Exit(int(worst(checks) == "fail"))


def show(checks: Sequence[Check], console: Console) -> None:
    """The table for people."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("check", "", "measured", "which means"):
        table.add_column(name, overflow="fold")
    for check in checks:
        verdict = Text(check.verdict, style=_STYLES[check.verdict])
        table.add_row(check.name, verdict, Text(check.value), Text(check.sentence))
    console.print(table)
    console.print(Text(f"\n{_SAYS[worst(checks)]}", style=_STYLES[worst(checks)]))


def _settings() -> tuple[Settings, str | None]:
    """The settings, and what is wrong with the keys: without one everything else can still be checked."""
    try:
        return load_settings(), None
    except SettingsError as error:
        if str(error) == NO_KEY:
            return settings_without_key(), NO_KEY
        typer.echo(f"zopilot-gpu: {error}", err=True)
        raise typer.Exit(2) from None
