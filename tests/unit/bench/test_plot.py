"""Plots are small SVG files, the same for the same records; without matplotlib one sentence says how to get it."""

import importlib.util
import random
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from zopilot_gpu.bench import plot
from zopilot_gpu.bench.client import Record


def records(num: int, *, error: str | None = None) -> list[Record]:
    rng = random.Random(1)
    made = []
    for number in range(num):
        due_s = 100 + 0.01 * number
        first_s = due_s + rng.lognormvariate(-3, 0.5)
        made.append(Record(due_s, due_s, ended_s=first_s + rng.random(), first_text_s=first_s, num_texts=2, error=error))
    return made


@pytest.mark.parametrize("run", [records(5000) + records(50, error="cut"), records(1), records(3, error="cut"), []])
def test_a_plot_is_a_small_svg(tmp_path: Path, run: list[Record]) -> None:
    plot.draw_run(run, tmp_path / "a.svg")
    plot.draw_run(run, tmp_path / "b.svg")
    content = (tmp_path / "a.svg").read_bytes()
    assert ET.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314  (our own file)
    assert b"whole answer" in content
    assert len(content) < 60_000
    assert content == (tmp_path / "b.svg").read_bytes()


def test_without_matplotlib_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(plot.PlotUnavailable, match=r"zopilot-gpu\[bench\]"):
        plot.require()
