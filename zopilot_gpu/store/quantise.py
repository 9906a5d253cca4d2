"""Weights to NF4, at the speed of the cores. Knows one tensor at a time; refuses files.

The result is bitwise that of `bitsandbytes.functional.quantize_4bit`, which takes 6 to 8 times as long on a CPU: it walks
whole tensors with a binary search for each value. Here a piece stays in the cache of its core, and the interval of a value is
looked up: between -1 and 1 there are 256 cells, none with more than one boundary between codes, so that a value's code is
that of the left end of its cell, or the next one if it lies above the boundary in it.

On a GPU it is bitsandbytes' own kernel. Double quantisation is bitsandbytes' own on both.
"""

import logging
import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import torch

from zopilot_gpu.model.nf4 import BLOCK, CODES

GROUP = 256  # blocks that share a scale of their absmax
_CELLS = 256
_PIECE = 511 * BLOCK  # values; torch works on fewer than 32,768 without threads of its own
_PIECES_A_TASK = 32
_ZEROS = CODES.index(0) * 17  # two codes of zero in a byte


def _boundaries() -> torch.Tensor:
    codes = torch.tensor(CODES)
    return (codes[1:] + codes[:-1]) / 2


def _cells(scaled: torch.Tensor, space: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Which cell each value of [-1, 1] lies in; it never falls as the value grows, which is all that the lookup needs."""
    return cells.copy_(torch.mul(scaled, (_CELLS - 1) / 2, out=space).add_(_CELLS / 2))


def _tables() -> tuple[torch.Tensor, torch.Tensor]:
    """For each cell, the boundary in it (or 2, which no value exceeds) and the code of a value that does not exceed it."""
    boundaries = _boundaries()
    cells = _cells(boundaries, torch.empty(15), torch.empty(15, dtype=torch.int32))
    boundary = torch.full((_CELLS,), 2.0)
    boundary[cells.long()] = boundaries
    code = torch.searchsorted(cells, torch.arange(_CELLS, dtype=torch.int32)).to(torch.uint8)
    return boundary, code


class Quantiser:
    """Quantises tensor after tensor; `device` names where. Close it to end its threads."""

    def __init__(self, device: str = "cpu", num_threads: int | None = None) -> None:
        self._device = torch.device(device)
        self._pool: Executor = ThreadPoolExecutor(num_threads or len(os.sched_getaffinity(0)), "quantise")
        self._boundary, self._code = _tables()
        self._local = threading.local()

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, weight: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor) -> None:
        """Fills `packed` [n / 2] uint8 and `absmax` [n / 64] float32 from `weight`, of any shape with n values.

        Raises:
            ValueError: n is no multiple of 64, or a value is no number.
        """
        flat = weight.reshape(-1)
        if flat.numel() % BLOCK:
            raise ValueError(f"{flat.numel()} values are not a whole number of blocks of {BLOCK}")
        if self._device.type == "cpu":
            step = _PIECE * _PIECES_A_TASK
            tasks = [
                self._pool.submit(self._pieces, flat[begin : begin + step], packed[begin // 2 :], absmax[begin // BLOCK :])
                for begin in range(0, flat.numel(), step)
            ]
            for task in tasks:
                task.result()
        else:
            _on_gpu(flat.to(self._device), packed, absmax)
        if not bool(absmax.isfinite().all()):
            raise ValueError("holds values that are no numbers")

    @torch.inference_mode()
    def _pieces(self, flat: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor) -> None:
        for begin in range(0, flat.numel(), _PIECE):
            piece = flat[begin : begin + _PIECE]
            self._piece(piece, packed[begin // 2 :][: len(piece) // 2], absmax[begin // BLOCK :][: len(piece) // BLOCK])

    def _piece(self, piece: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor) -> None:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = _Scratch()
        left: _Scratch = self._local.scratch
        size = piece.numel()
        scaled, space, cells, above = left.scaled[:size], left.space[:size], left.cells[:size], left.above[:size]
        inverse, codes = left.inverse[: size // BLOCK], left.codes[:size]
        blocks = scaled.copy_(piece).view(-1, BLOCK)
        torch.amax(torch.abs(blocks, out=space.view(-1, BLOCK)), dim=1, out=absmax)
        torch.clamp(absmax, min=1e-38, out=inverse).reciprocal_()
        blocks.mul_(inverse.unsqueeze(1)).clamp_(-1, 1)
        _cells(scaled, space, cells).clamp_(0, _CELLS - 1)  # NaN is no cell; it is refused by its absmax, later
        torch.gt(scaled, torch.index_select(self._boundary, 0, cells, out=space), out=above)
        pairs = torch.index_select(self._code, 0, cells, out=codes).add_(above).view(-1, 2)
        torch.add(pairs[:, 1], pairs[:, 0], alpha=16, out=packed)


class _Scratch:
    """One thread's room for a piece. Fresh memory for each step would cost as much as the work."""

    def __init__(self) -> None:
        self.scaled, self.space = torch.empty(_PIECE), torch.empty(_PIECE)
        self.cells = torch.empty(_PIECE, dtype=torch.int32)
        self.above = torch.empty(_PIECE, dtype=torch.bool)
        self.inverse = torch.empty(_PIECE // BLOCK)
        self.codes = torch.empty(_PIECE, dtype=torch.uint8)


def _on_gpu(flat: torch.Tensor, packed: torch.Tensor, absmax: torch.Tensor) -> None:
    codes, state = _bitsandbytes().quantize_4bit(flat, blocksize=BLOCK, quant_type="nf4")
    packed.copy_(codes.view(-1))
    absmax.copy_(state.absmax)
    # NOTE: the kernel divides by the absmax. For zeros alone that is no number, whose codes are not those of zero.
    packed.view(-1, BLOCK // 2)[absmax == 0] = _ZEROS


def compress(absmax: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, offsets: torch.Tensor) -> None:
    """Double quantisation of `absmax` [n / 64]: fills `codes` [n / 64], `scales` and `offsets` [n / 64 / 256]."""
    offset = absmax.mean()
    quantised, state = _bitsandbytes().quantize_blockwise(absmax - offset, blocksize=GROUP)
    codes.copy_(quantised)
    scales.copy_(state.absmax)
    offsets.fill_(offset)


def double_table() -> torch.Tensor:
    """The 256 values that bitsandbytes' codes of an absmax stand for, [256] float32."""
    table: torch.Tensor = _bitsandbytes().create_dynamic_map()
    return table


def _bitsandbytes() -> Any:
    """The library; heavy, and full of advice for developers."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes.functional  # noqa: PLC0415

    return bitsandbytes.functional
