"""A run of the benchmark fails when something is wrong, and loses nothing else by it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from zopilot_gpu.bench.gpu import baseline, check, kernels, report, roofline, run, subject
from zopilot_gpu.bench.gpu.sizes import MIXTRAL, TINY
from zopilot_gpu.model.mixtral import Mixtral

CPU = torch.device("cpu")


def measure(*sections: str, file: Path | None = None) -> dict[str, Any]:
    return run.run(TINY, CPU, sections, file, None, Console(quiet=True))


@pytest.mark.parametrize(
    "harm",
    [
        lambda y: y * 1.05,
        lambda y: torch.empty_like(y),  # noqa: PLW0108  (never written; poisoned by the time that it is called)
        lambda y: y.index_fill(-1, torch.tensor([7]), 9),  # one column is wrong
    ],
    ids=["scaled", "unwritten", "one column"],
)
def test_a_wrong_kernel_fails_the_run(monkeypatch: pytest.MonkeyPatch, harm: Callable[[torch.Tensor], torch.Tensor]) -> None:
    make = subject.make_model

    def harmed(*args: Any, **keywords: Any) -> Mixtral:
        model = make(*args, **keywords)
        layer = model.layers[0]
        return replace(model, layers=[replace(layer, qkv=lambda x: harm(layer.qkv(x)))])

    monkeypatch.setattr(subject, "make_model", harmed)
    found = measure("check")
    assert set(found["failures"]) == {"qkv, M=1", "qkv, M=3", "qkv, M=20", "qkv, nested, M=1", "qkv, nested, M=3"}
    json.dumps(found, allow_nan=False)


def test_what_fails_is_in_the_report_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("the card fell off")

    def leave_out(*_: object) -> Any:
        raise baseline.LeftOut("it is not here")

    monkeypatch.setitem(kernels.PARTS, "dense", fail)
    monkeypatch.setattr(baseline, "by_transformers", leave_out)
    monkeypatch.setattr(baseline, "by_plain_parts", fail)
    found = measure("kernels", "baseline", file=tmp_path / "run.json")
    assert found["failures"] == {"kernels dense": "RuntimeError: the card fell off"}
    assert found["left_out"]["baseline transformers"] == "it is not here"
    assert found["left_out"]["baseline plain_parts"] == "RuntimeError: the card fell off"
    assert {"experts M=1", "head R=1"} <= set(found["kernels"])
    assert json.loads((tmp_path / "run.json").read_text()) == found


def test_poison_is_taken_away_again() -> None:
    empty = torch.empty
    with check.poisoned():
        assert torch.empty(3).isnan().all()
        assert torch.empty_like(torch.ones(2)).isnan().all()
        assert torch.empty(2, dtype=torch.int32).dtype == torch.int32
    assert torch.empty is empty


def test_verdicts_know_which_way_is_better() -> None:
    decode = {"1": {"tokens_per_s": 399.0}, "8": {"tokens_per_s": 1000.0}}
    prefill = {"512": {"ms": 60.5}}
    rows = report.verdicts({"model": {"decode": decode, "prefill": prefill}, "kernels": {"experts M=1": {"ms": 0.09}}})
    met = {row["name"]: row["met"] for row in rows}
    assert (met["decode, B=1"], met["decode, B=8"], met["decode, B=32"]) == (False, True, None)
    assert (met["first token, 512 tokens"], met["layer of experts, M=1"]) == (False, True)


@pytest.mark.parametrize(("size", "tokens_per_s"), [(1, 709), (8, 1712), (32, 5826), (128, 18_727)])
def test_the_floor_of_a_step_is_the_documents(size: int, tokens_per_s: int) -> None:
    """Its table is for double quantisation, 3% less to read, at a context of 512."""
    floor = size / roofline.step_floor_s(MIXTRAL, size, 512, 4.8e12)
    assert 0.9 < floor / tokens_per_s < 1.1
