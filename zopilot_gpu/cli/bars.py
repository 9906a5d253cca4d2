"""Bars for work on files: bytes done, speed and time left. Knows terminals; where there is none, a line now and then."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_LINE_S = 10.0
Told = Callable[[str, int, int], None]  # a step, bytes done, bytes in all (0: not known)


@contextmanager
def bars(console: Console) -> Iterator[Told]:
    """Gives a function to tell of progress; each step gets a bar of its own."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def told(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step, total=total or None)
            progress.update(tasks[step], completed=done, total=total or None)

        yield told


def _lines(console: Console) -> Told:
    said: dict[str, float] = {}
    began_s = time.monotonic()

    def told(step: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if step in said and now_s - said[step] < _LINE_S and done < total:
            return
        said[step] = now_s
        rate = f", {done / 1e9 / max(now_s - began_s, 1e-3):.2f} GB/s" if done else ""
        console.print(f"{step}: {done / 1e9:.1f} of {total / 1e9:.1f} GB{rate}" if total else step)

    return told
