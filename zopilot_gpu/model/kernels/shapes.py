"""Which shape of program for how many tokens, on which card. Knows measured tables; measures nothing, and needs no Triton.

In this order: the table that `zopilot-gpu tune` has left on the volume for this card and this Triton, one that is shipped for
the card, one that runs on any. A wrong shape costs time, never a wrong answer, so any table will do; none is made at a request.
"""

import json
from dataclasses import dataclass
from typing import Any

import torch

from zopilot_gpu.model.kernels import INTERPRETED


@dataclass(frozen=True, slots=True)
class Shape:
    """A program: R tiles a warp (pairs of them for gate and up), Q eighths of tokens, WK * WR warps.

    `registers` of a thread at most, where more would leave room for fewer programs; `wgmma` is of `warpgroup`, for sm_90.
    """

    r: int
    q: int
    wk: int
    wr: int
    early: bool = False
    registers: int | None = None
    wgmma: bool = False

    @property
    def constants(self) -> tuple[int | bool, ...]:
        """What the kernels over weights end with."""
        return self.r, self.q, self.wk, self.wr, self.early, INTERPRETED

    @property
    def num_warps(self) -> int:
        """Of a program."""
        return self.wk * self.wr

    def programs(self, rows: int) -> int:
        """That cover `rows` rows, or pairs of rows."""
        return -(-rows // (16 * self.r * self.wr))


@dataclass(frozen=True, slots=True)
class Table:
    """Rungs of (most tokens, shapes), in ascending order; the last one serves all beyond."""

    experts: tuple[tuple[int, Shape, Shape], ...]  # for gate and up, and for down: both with the same Q
    linear: tuple[tuple[int, Shape], ...]

    def of_experts(self, num_tokens: int) -> tuple[Shape, Shape]:
        """For gate and up, and for down."""
        return next((rung[1:] for rung in self.experts if num_tokens <= rung[0]), self.experts[-1][1:])

    def of_linear(self, num_tokens: int) -> Shape:
        """For one matrix."""
        return next((rung[1] for rung in self.linear if num_tokens <= rung[0]), self.linear[-1][1])

    @property
    def most_tokens(self) -> int:
        """For which experts have a shape: beyond, a dense product of dequantised weights is faster."""
        return self.experts[-1][0]

    def to_json(self) -> str:
        """What `from_json` reads."""

        def row(most: int, *several: Shape) -> list[Any]:
            return [most, *([one.r, one.q, one.wk, one.wr, one.early, one.registers, one.wgmma] for one in several)]

        rows = {"experts": [row(*rung) for rung in self.experts], "linear": [row(*rung) for rung in self.linear]}
        return json.dumps(rows, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> "Table":
        """A table that somebody has written.

        Raises:
            ValueError: it is none, or has a shape that no kernel takes.
        """
        try:
            found = json.loads(text)
            experts = tuple((int(most), _shape(up), _shape(down)) for most, up, down in found["experts"])
            linear = tuple((int(most), _shape(one)) for most, one in found["linear"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no table of shapes: {error}") from error
        for rungs in (experts, linear):
            if not rungs or [rung[0] for rung in rungs] != sorted({rung[0] for rung in rungs}):
                raise ValueError("its rungs do not ascend")
        if any((up.q, up.wgmma) != (down.q, down.wgmma) for _, up, down in experts):
            raise ValueError("gate and up have another number or order of tokens than down")
        if experts[0][1].wgmma or any(up.wgmma and up.r != 1 for _, up, _ in experts):
            raise ValueError("by warpgroups, gate and up have one tile of each, and are for more tokens than one")
        return cls(experts, linear)


def _shape(parts: list[Any]) -> Shape:
    r, q, wk, wr, early, registers, wgmma = parts
    if any(type(one) is not int or one not in (1, 2, 4, 8, 16) for one in (r, q, wk, wr)):
        raise ValueError(f"{parts} is no shape")
    if any(type(one) is not bool for one in (early, wgmma)) or (registers is not None and registers not in range(32, 256)):
        raise ValueError(f"{parts} is no shape")
    if wk * wr > 16 or r * q > 16:
        raise ValueError(f"{parts} takes more warps or registers than there are")
    if wgmma and not (r in (1, 2) and q in (4, 8) and wk == 1 and wr in (4, 8)):
        raise ValueError(f"{parts} is no shape of a warpgroup")
    return Shape(r, q, wk, wr, early, registers, wgmma)


def _wgmma(r: int, q: int, wr: int, registers: int | None = None) -> Shape:
    return Shape(r, q, 1, wr, early=True, registers=registers, wgmma=True)


# `zopilot-gpu tune` on an H100 SXM (132 multiprocessors), 2026-11-25, by `mma`: what runs on any card from sm_80 on.
_ANY = Table(
    experts=(
        (2, Shape(1, 1, 2, 2), Shape(1, 1, 8, 1)),
        (8, Shape(2, 1, 4, 1), Shape(2, 1, 8, 1)),
        (16, Shape(1, 1, 2, 2), Shape(2, 1, 4, 1)),
        (48, Shape(1, 2, 2, 2, early=True), Shape(2, 2, 4, 1, early=True)),
        (128, Shape(2, 4, 2, 2, early=True), Shape(2, 4, 4, 1, early=True)),
        (256, Shape(2, 4, 2, 2, early=True), Shape(2, 4, 2, 2, early=True)),
        (1024, Shape(2, 4, 2, 2, early=True), Shape(2, 4, 1, 4, early=True)),
    ),
    linear=(
        (4, Shape(1, 1, 8, 1)),
        (8, Shape(1, 1, 4, 1)),
        (16, Shape(1, 2, 4, 1, early=True)),
        (32, Shape(2, 2, 4, 1, early=True)),
        (64, Shape(2, 4, 4, 1, early=True)),
        (128, Shape(2, 4, 2, 2, early=True)),
    ),
)
# On an H200 (132 multiprocessors), 2026-11-26: docs/benchmarks/h200.md. An H100 has 3.35 for 4.8 TB/s, else the same.
_HOPPER = Table(
    experts=(
        (1, Shape(2, 1, 4, 1, registers=128), Shape(2, 1, 8, 1)),
        (16, Shape(2, 1, 4, 1), Shape(2, 1, 4, 1, registers=128)),
        (32, Shape(1, 2, 2, 2, early=True, registers=96), Shape(2, 2, 4, 1, early=True, registers=128)),
        (48, Shape(1, 2, 2, 2, early=True, registers=128), Shape(2, 2, 4, 1, early=True, registers=128)),
        (96, _wgmma(1, 4, 4, 128), _wgmma(1, 4, 4)),
        (128, _wgmma(1, 4, 4, 128), _wgmma(2, 4, 4)),
        (256, _wgmma(1, 8, 4, 128), _wgmma(2, 8, 4)),
        (2048, _wgmma(1, 8, 4), _wgmma(2, 8, 4)),  # at 4,096 cuBLAS is as fast
    ),
    linear=(
        (4, Shape(1, 1, 8, 1)),
        (8, Shape(1, 1, 4, 1, registers=128)),
        (16, Shape(2, 2, 4, 1, early=True, registers=128)),
        (32, Shape(2, 2, 4, 1, early=True)),
        (64, Shape(2, 4, 4, 1, early=True)),
        (128, Shape(2, 4, 2, 2, early=True)),
    ),
)
SHIPPED = {"sm90-132": _HOPPER}
_current = [_ANY]


def card(device: torch.device) -> str:
    """How tables are named: what decides a shape is the generation and the number of multiprocessors."""
    found = torch.cuda.get_device_properties(device)
    return f"sm{found.major}{found.minor}-{found.multi_processor_count}"


def choose(name: str, tuned: bytes | None, what: str) -> tuple[Table, str]:
    """The table for the card `name`, and why; `tuned` is the content of the file `what`, None where there is none."""
    problem = ""
    if tuned is not None:
        try:
            return Table.from_json(tuned), f"measured on this card, {what}"
        except ValueError as error:
            problem = f"; {what} can't be used: {error}"
    if name in SHIPPED:
        return SHIPPED[name], f"measured on such a card ({name}){problem}"
    unknown = f"{name} was not measured, which `zopilot-gpu tune` does{problem}"
    return (_HOPPER, f"an H200's: {unknown}") if name.startswith("sm90-") else (_ANY, f"an H100's without wgmma: {unknown}")


def use(table: Table) -> None:
    """From now on, for all models of this process; before the first of them is run."""
    _current[0] = table


def use_shipped(device: torch.device) -> str:
    """Takes the shipped table for a GPU, for measuring. Gives why that one."""
    table, why = choose(card(device), None, "")
    use(table)
    return why


def current() -> Table:
    """The table in use."""
    return _current[0]
