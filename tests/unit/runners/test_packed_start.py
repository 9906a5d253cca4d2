"""A first start answers from the source and packs; the next reads what was packed; a damaged form is made anew. Same texts."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest

from runners import background
from runners.background import BackgroundRunner
from runners.base import RunnerState
from zopilot_gpu.events import GREEDY, Job, Text
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.published import FOLDER


@pytest.fixture(autouse=True)
def _pack_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LEAST_PACKED_BYTES", 0)


async def until(runner: BackgroundRunner, word: str) -> RunnerState:
    """The first state that says `word`."""
    deadline_s = time.monotonic() + 240
    while word not in f"{runner.state()}":
        assert time.monotonic() < deadline_s, runner.state()
        assert runner.state().phase != "failed", runner.state()
        await asyncio.sleep(0.05)
    return runner.state()


async def started(tiny_mixtral: Path, volume: Path, **changed: Any) -> tuple[BackgroundRunner, RunnerState, str]:
    """A runner, its state once it is ready, and what it says."""
    settings = Settings(allow_anonymous=True, model=str(tiny_mixtral), volume=volume, device="cpu", **changed)
    runner = BackgroundRunner(settings)
    state = await until(runner, "phase='ready'")
    job = Job("test", "Hello", None, 12, GREEDY, (), time.monotonic() + 240)
    text = "".join([event.text async for event in runner.generate(job) if isinstance(event, Text)])
    return runner, state, text


async def test_the_next_start_reads_what_the_first_has_packed(tiny_mixtral: Path, tmp_path: Path) -> None:
    first, state, text = await started(tiny_mixtral, tmp_path)
    assert state.source == "source"
    assert str(state.source_why).startswith("it has not been packed yet")  # packing may be done by now
    await until(first, "it was packed now")
    await first.close()
    second, state, again = await started(tiny_mixtral, tmp_path)
    assert (state.source, again) == ("packed", text)
    await second.close()
    [directory] = (path for path in (tmp_path / FOLDER).iterdir() if not path.name.startswith("."))
    weights = next(path for path in sorted(directory.iterdir()) if path.suffix == ".safetensors")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1])
    third, state, again = await started(tiny_mixtral, tmp_path)
    assert (state.source, again) == ("source", text)
    await until(third, "it was packed now")
    await third.close()


@pytest.mark.parametrize("changed", [{"pack": False}, {"runner": "plain"}])
async def test_nothing_is_packed_where_that_is_not_wanted(tiny_mixtral: Path, tmp_path: Path, changed: dict[str, Any]) -> None:
    runner, state, _ = await started(tiny_mixtral, tmp_path, **changed)
    await asyncio.sleep(0.5)
    await runner.close()
    assert state.source == "source"
    assert os.listdir(tmp_path) == []  # noqa: PTH208  (the loop has nothing else to do)
