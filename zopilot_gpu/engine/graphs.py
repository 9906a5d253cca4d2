"""Decode steps at a ladder of sizes, each captured once as a CUDA graph and then launched as a whole. Knows no sequence.

A step that every running sequence decodes in is the same work each time: only its numbers change. A *form* is that work for n
sequences and block tables of w blocks; its numbers are at fixed addresses, and a smaller step fills the form up.

    numbers of a step ──one copy──▶ memory of the forms ──▶ replay: last tokens, model ──▶ logits [n, V]

All forms have the same memory for numbers and for logits, and one pool for all between: only one runs at a time, and what reads
a form's logits is launched before the next form.
"""

import gc
import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field

import torch

from zopilot_gpu import log
from zopilot_gpu.engine.chained import chain
from zopilot_gpu.engine.inputs import Sizes, Views, num_bytes, on_device, on_host, pad_rows, padding_slots
from zopilot_gpu.engine.seats import Seats
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.mixtral import Mixtral

_log = log.get(__name__)
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
_BLOCKS = (64, 256, 1024)  # of 16 tokens; the kernels split a context by the width of its table, not by its length
TOKENS = (*_ROWS, 384, 512, 768, 1024)  # of a step that is no form; above, kernels depend on its next power of two at most
_STEPS_BETWEEN_CAPTURES = 8
# NOTE: torch's cache of memory, one for all GPUs, can't be emptied while any thread captures.
no_capture = threading.Lock()
_MOST_SPARE = 4  # a form so many times larger than the step is slower than no form

Run = Callable[[], None]
Capture = Callable[[Run], Run]  # takes work, and gives what does the same work again


@dataclass(slots=True)
class Form:
    """One size. `contexts` are for a model that computes on the host, see `Batch.runs`."""

    sizes: Sizes
    memory: torch.Tensor
    views: Views
    logits: torch.Tensor  # [n, V] float32
    replay: Run
    contexts: list[int] = field(default_factory=list)


class Forms:
    """The decode steps of one engine.

    Args:
        model: whose steps they are.
        pools: as the model takes them; the last block is for padding.
        seats: where the last tokens are.
        max_rows: most sequences of a step.
        max_blocks: most blocks of a sequence.
        capture: makes a form; see `capture_graphs` and `twin`.
    """

    def __init__(
        self, model: Mixtral, pools: Rows[torch.Tensor], seats: Seats, max_rows: int, max_blocks: int, capture: Capture
    ) -> None:
        self._model, self._pools, self._seats, self._capture = model, pools, seats, capture
        self.ladder, self.widths = row_counts(max_rows), table_widths(max_blocks)
        device = model.device
        largest = Sizes(self.ladder[-1], self.ladder[-1], self.widths[-1], self.ladder[-1])
        self._memory = torch.zeros(num_bytes(largest), dtype=torch.uint8, device=device)
        self._logits = torch.zeros(largest.num_rows, model.config.vocab_size, device=device)
        self._padding_block = pools[0].shape[1] - 1
        self._made: dict[tuple[int, int], Form] = {}
        self._asked: Counter[tuple[int, int]] = Counter()
        self._failed = False
        self._num_steps = 0

    def find(self, num_rows: int, num_blocks: int) -> Form | None:
        """The form for a step of this size, perhaps a larger one; None where there is none yet.

        What is asked for again and again is captured on the way, now and then one.
        """
        if num_blocks > self.widths[-1]:
            return None
        wanted = _at_least(self.ladder, num_rows), _at_least(self.widths, num_blocks)
        self._num_steps += 1
        if wanted not in self._made:
            self._asked[wanted] += 1
            if self._asked[wanted] > 1 and self._num_steps >= _STEPS_BETWEEN_CAPTURES:
                self._make(*wanted)
        if wanted in self._made:
            return self._made[wanted]
        larger = [size for size in self._made if size >= wanted and size[1] >= wanted[1] and size[0] <= wanted[0] * _MOST_SPARE]
        return self._made[min(larger)] if larger else None

    def capture_next(self) -> bool:
        """Captures one form that is missing, the small ones first; False where none is."""
        left = [(rows, blocks) for blocks in self.widths for rows in self.ladder if (rows, blocks) not in self._made]
        return bool(left) and not self._failed and self._make(*left[0])

    def width(self, num_blocks: int) -> int:
        """The width of block tables for steps that are no form: few widths, so that few kernels have to be compiled."""
        return max(num_blocks, _at_least(self.widths, num_blocks))

    @torch.inference_mode()
    def _make(self, rows: int, blocks: int) -> bool:
        if self._failed:
            return False
        self._num_steps = 0
        sizes = Sizes(rows, rows, blocks, rows)
        memory = self._memory[: num_bytes(sizes)]
        form = Form(sizes, memory, on_device(memory, sizes), self._logits[:rows], _nothing)
        self._fill_with_padding(form)
        batch_of, model, pools = self._batch, self._model, self._pools

        def run() -> None:
            form.logits.copy_(model.forward(batch_of(form), pools))

        self._failed = True
        try:
            form.replay = self._capture(run)
        except RuntimeError as error:  # out of memory, or what this torch can't capture: steps go on without
            _log.warning("capture_failed", rows=rows, blocks=blocks, problem=str(error.__context__ or error)[:300])
            if form.memory.is_cuda:
                torch.cuda.synchronize(form.memory.device)  # raises where the device itself is lost
            return False
        self._failed = False
        self._made[rows, blocks] = form
        return True

    def _batch(self, form: Form) -> Batch:
        views = form.views
        return Batch(
            self._seats.feed(views.token_ids, views.feeds),
            views.positions,
            views.slots,
            list(range(form.sizes.num_sequences + 1)),
            form.contexts,
            views.tables,
            views.logit_rows,
            views.runs,
        )

    def _fill_with_padding(self, form: Form) -> None:
        """The numbers of a step of nobody's: capturing runs it once."""
        host = torch.zeros(form.memory.numel(), dtype=torch.uint8)
        views = on_host(host, form.sizes)
        views.tables[:] = self._padding_block
        pad_rows(views, 0, self._padding_block)
        views.slots[:] = padding_slots(self._padding_block, len(views.slots))
        form.memory.copy_(host)
        form.contexts = [1] * form.sizes.num_rows


def twin(run: Run) -> Run:
    """Captures nothing: the work itself, for any device. A form that was captured has to give the same bits."""
    return run


class capture_graphs:  # noqa: N801  (a `Capture` with state)
    """Captures CUDA graphs that share one pool of memory.

    NOTE: what a captured piece of work must keep to. Its tensors stay where they are: they are the forms' own, the model's, or
    of this pool. It waits for nothing and copies nothing from memory that is not pinned. All kernels are compiled and all
    libraries have their handles and workspaces by then: it runs once before, on the same stream, for cuBLAS keeps a workspace
    for each stream. The stream is not the default one, which can't be captured. Other threads may call CUDA meanwhile (memory
    in use, a model being packed): hence `thread_local`. What a garbage collection would end on this thread may be CUDA's own
    and not allowed in a capture, so there is none. `torch.cuda.graph` would empty torch's cache of memory each time.

    Args:
        model: whose steps they are.
        chained: whether its kernels begin before the one ahead of them has ended, where they can: see `chained`.
    """

    def __init__(self, model: Mixtral, *, chained: bool = True) -> None:
        self._device = device = model.device
        self._waiting = model.parts.waiting(device) if chained else frozenset[str]()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()  # type: ignore[no-untyped-call]

    def __call__(self, run: Run) -> Run:
        """See `Capture`."""
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            run()
        self._stream.synchronize()
        try:
            graph = self._capture(run)
        except RuntimeError as error:
            if not self._waiting:
                raise
            _log.warning("graphs_not_chained", problem=str(error.__context__ or error)[:300])
            self._waiting = frozenset()
            graph = self._capture(run)
        main.wait_stream(self._stream)
        replay: Run = graph.replay
        return replay

    def _capture(self, run: Run) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        collects = gc.isenabled()
        gc.disable()
        try:
            with no_capture, torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")  # type: ignore[no-untyped-call]
                try:
                    run()
                    if self._waiting and not chain(self._stream.cuda_stream, self._waiting):
                        self._waiting = frozenset()
                finally:
                    graph.capture_end()  # type: ignore[no-untyped-call]
        finally:
            if collects:
                gc.enable()
        return graph


def padded(num_tokens: int) -> int:
    """The size to which a step that is no form is filled up: few sizes, so that few kernels have to be compiled."""
    return _at_least(list(TOKENS), num_tokens) if num_tokens <= TOKENS[-1] else num_tokens


def row_counts(max_rows: int) -> list[int]:
    """The numbers of sequences that there are forms for."""
    return _ladder(_ROWS, max_rows)


def table_widths(max_blocks: int) -> list[int]:
    """The widths of block tables, up to one for sequences of `max_blocks`."""
    return _ladder(_BLOCKS, -(-max_blocks // 16) * 16)


def _nothing() -> None:
    """Of a form that is not made yet."""


def _ladder(steps: tuple[int, ...], top: int) -> list[int]:
    return [step for step in steps if step < top] + [top]


def _at_least(ladder: list[int], value: int) -> int:
    return ladder[min(bisect_left(ladder, value), len(ladder) - 1)]
