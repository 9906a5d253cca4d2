"""`zopilot-gpu store`: what is packed on the volumes, whether it is sound, and what can go."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from zopilot_gpu.cli.bars import bars
from zopilot_gpu.cli.prepare import settings_without_key, verify_all
from zopilot_gpu.store import files
from zopilot_gpu.store.locate import search_roots
from zopilot_gpu.store.manifest import READY, Damaged
from zopilot_gpu.store.published import directories, leftovers, open_published

store = typer.Typer(no_args_is_help=True, help="What is packed on the volumes.")
_console = Console(highlight=False, soft_wrap=True)
_Volume = Annotated[Path | None, typer.Option(help="Look here first.")]


def _roots(volume: Path | None) -> list[Path]:
    settings = settings_without_key()
    return search_roots(volume or settings.volume, settings.hf_home)


@store.command("ls")
def list_packed(volume: _Volume = None) -> None:
    """List the packed models, and what `gc` would remove."""
    roots = _roots(volume)
    for directory in directories(roots):
        try:
            made = open_published(directory).manifest
        except Damaged as problem:
            _console.print(f"[red]damaged[/red] {problem.detail}")
            continue
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(files.status(directory / READY).st_mtime))
        revision = f" at {made.revision[:12]}" if made.revision else ""
        _console.print(f"{made.model}{revision}, {made.num_bytes / 1e9:.2f} GB, absmax {made.absmax}, {when}\n  {directory}")
    if left := list(leftovers(roots)):
        _console.print(f"{len(left)} leftovers, {_size(left) / 1e9:.2f} GB: `zopilot-gpu store gc` removes them.")


@store.command()
def verify(volume: _Volume = None) -> None:
    """Hash every file of every packed model; status 1 when one is damaged."""
    damaged = False
    for directory in directories(_roots(volume)):
        try:
            with bars(_console) as told:
                verify_all(open_published(directory), told)
        except Damaged as problem:
            damaged = True
            _console.print(f"[red]damaged[/red] {problem.detail}")
        else:
            _console.print(f"sound   {directory}")
    if damaged:
        raise typer.Exit(1)


@store.command()
def gc(volume: _Volume = None) -> None:
    """Remove damaged models that were set aside, and builds that nobody has touched for an hour. Packed models stay."""
    left = list(leftovers(_roots(volume)))
    size = _size(left)
    for path in left:
        if path.is_dir():
            files.remove_tree(path)
        else:
            files.remove(path)
    gone = sum(not path.exists() for path in left)
    _console.print(f"Removed {gone} of {len(left)}, {size / 1e9:.2f} GB.")


def _size(paths: list[Path]) -> int:
    inside = [file for path in paths for file in (path.iterdir() if path.is_dir() else [path])]
    return sum(file.stat().st_size for file in inside if file.is_file())
