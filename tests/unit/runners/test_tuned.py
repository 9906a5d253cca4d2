"""Tables of shapes: from a volume where it has one for the card, else those that are shipped; never a reason not to start."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from runners import tuned
from zopilot_gpu.cli import app
from zopilot_gpu.model.kernels import shapes, tune
from zopilot_gpu.model.kernels.shapes import SHIPPED, Shape, Table, choose

GPU = torch.device("cuda")
MINE = Table(
    ((4, Shape(2, 1, 4, 1), Shape(1, 1, 8, 1)), (64, Shape(1, 2, 2, 2, early=True), Shape(2, 2, 4, 1))),
    ((8, Shape(1, 1, 8, 1)),),
)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One that is not in the table."""
    before = shapes.current()
    monkeypatch.setattr(shapes, "card", lambda device: "sm86-84")
    yield
    shapes.use(before)


def test_a_table_serves_every_number_of_tokens() -> None:
    for table in (*SHIPPED.values(), MINE):
        assert Table.from_json(table.to_json()) == table
        for num_tokens in (1, 2, 3, 8, 17, 64, 65, 512):
            up, down = table.of_experts(num_tokens)
            assert up.q == down.q
            assert table.of_linear(num_tokens).q >= 1
    assert MINE.of_experts(5)[0] == Shape(1, 2, 2, 2, early=True)
    assert MINE.of_experts(1000) == MINE.of_experts(64)


@pytest.mark.usefixtures("card")
def test_a_table_on_the_volume_is_taken_and_one_that_is_damaged_is_not(tmp_path: Path) -> None:
    path = tuned.file_for(tmp_path, GPU)
    assert path.name.startswith("sm86-84-triton3.")
    why = tuned.use_for(GPU, [tmp_path])
    assert why == "an H100's without wgmma: sm86-84 was not measured, which `zopilot-gpu tune` does"
    tuned.save(MINE, path)
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert tuned.use_for(GPU, [tmp_path / "empty", tmp_path]) == f"measured on this card, {path}"
    assert shapes.current() == MINE
    path.write_text("{")
    assert f"; {path} can't be used: " in tuned.use_for(GPU, [tmp_path])
    assert not any(shape.wgmma for _, *both in shapes.current().experts for shape in both)


def test_wgmma_is_for_sm_90_alone() -> None:
    for name, there in {"sm90-132": True, "sm90-114": True, "sm80-108": False, "sm100-148": False, "sm120-170": False}.items():
        table, _ = choose(name, None, "")
        assert any(shape.wgmma for _, *both in table.experts for shape in both) == there, name


def row(**changes: object) -> list[object]:
    """A shape in a file."""
    return list(({"r": 1, "q": 1, "wk": 8, "wr": 1, "early": False, "registers": None, "wgmma": False} | changes).values())


def by_warpgroups(**changes: object) -> list[object]:
    """Likewise."""
    return row(**({"q": 4, "wk": 1, "wr": 4, "early": True, "wgmma": True} | changes))


@pytest.mark.parametrize(
    ("experts", "linear"),
    [
        ([[4, row(), row(q=2)]], [[8, row()]]),  # two numbers of tokens
        ([[4, row(r=3), row()]], [[8, row()]]),  # no power of two
        ([[4, row(wk=16, wr=2), row()]], [[8, row()]]),  # 32 warps
        ([[4, row(r=True), row()]], [[8, row()]]),
        ([[4, row(early=1), row()]], [[8, row()]]),
        ([[4, row(registers=512), row()]], [[8, row()]]),
        ([[4, row()[:5], row()]], [[8, row()]]),  # an older version's
        ([[4, [1, 4, 4, 1, True, None, True], row(q=4)]], [[8, row()]]),  # four warps of a warpgroup have the same columns
        (
            [[4, row(), row()], [64, by_warpgroups(), row(q=4)]],
            [[8, row()]],
        ),  # one writes what the other reads, in another order
        ([[4, row(), row()], [64, row(q=4), by_warpgroups()]], [[8, row()]]),
        (
            [[4, row(), row()], [64, by_warpgroups(r=2), by_warpgroups()]],
            [[8, row()]],
        ),  # half of the rows would not be computed
        ([[64, by_warpgroups(), by_warpgroups()]], [[8, row()]]),  # a token alone is in no block
        ([[4, row(), row()]], [[8, row()], [8, row()]]),
        ([], [[8, row()]]),
        (None, None),
    ],
)
def test_what_no_kernel_takes_is_no_table(experts: object, linear: object) -> None:
    sound = [[4, row(), row()], [64, by_warpgroups(), by_warpgroups(r=2)]]
    Table.from_json(json.dumps({"experts": sound, "linear": [[8, row()]]}))
    with pytest.raises(ValueError, match=r".+"):
        Table.from_json(json.dumps({"experts": experts, "linear": linear}))


def test_tuning_measures_the_rungs_that_are_shipped_for_the_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of fewer, found on the volume, would take the place of the shipped one: of wgmma for long prompts, for one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(shapes, "card", lambda device: "sm90-132")
    monkeypatch.setattr(tune, "measure", lambda config, device, tell: shapes.current())
    before = shapes.current()
    try:
        assert CliRunner().invoke(app, ["tune", "--volume", str(tmp_path)]).exit_code == 0
    finally:
        shapes.use(before)
    assert Table.from_json(tuned.file_for(tmp_path, GPU).read_bytes()) == SHIPPED["sm90-132"]


def test_the_shipped_one_says_where_it_was_measured() -> None:
    assert choose("sm90-132", None, "") == (SHIPPED["sm90-132"], "measured on such a card (sm90-132)")
