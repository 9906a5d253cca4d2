"""Steps of many sequences: schedule, launch, collect. Knows the model and the pools; runs on a thread it does not own.

schedule ──▶ launch: masks (on their own thread) ┐
                     logits (on the device)  ────┴──▶ draw ──▶ collect: read, append, move the grammars on, finish

On a GPU the next step is launched before the tokens of this one are read:

    host      launch 1  launch 2  collect 1  launch 3  collect 2 ...
    device         [ step 1       ][ step 2       ][ step 3 ...

A step that is launched ahead takes its tokens from where they were drawn (`seats`); the host counts on them (`num_pending`) and
knows no value. A sequence that turns out to have ended has one row in it that is nobody's. No step goes ahead of a token whose
value is needed to draw the next (a grammar, a penalty by count), and none that has part of a prompt.
"""

from collections.abc import Sequence as Rows
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import torch

from zopilot_gpu import log
from zopilot_gpu.engine import graphs, inputs, sampler
from zopilot_gpu.engine.draws import Draws
from zopilot_gpu.engine.grammar import GrammarError, Mask, Masks, forbid, open_masks
from zopilot_gpu.engine.scheduler import Scheduled, Scheduler
from zopilot_gpu.engine.seats import Seats
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.transfer import Readback, host_memory
from zopilot_gpu.events import Score
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.mixtral import Mixtral

_log = log.get(__name__)
Finish = Literal["stop", "length", "broken"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a sequence got in this step: the token drawn and those that its grammar forces after it; and whether it ended so.

    `broken` means that its logits were no numbers, or its grammar met a limit. `scores` are those of the tokens, if asked for.
    """

    sequence: Sequence
    token_ids: list[int]
    finish: Finish | None
    scores: list[Score] | None = None


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step on its way: who draws in it, and what comes back."""

    drawing: list[Sequence]
    drawn: Readback


class Engine:
    """A model, its KV pools and the sequences in them.

    Args:
        model: computes logits.
        pools: one a layer, of one block more than the scheduler's pool has: see `kv_cache.make_pools`.
        scheduler: decides what runs.
        steps_ahead: whether a step is launched before the one before it is read; None is on a GPU only. A CPU has computed a
            step when it is launched, so that going ahead would only hold up the answer.
        max_context: most tokens of a sequence, for which steps of decodes are made; None is the model's.
        decode: how steps of decodes run: as `graphs`, as their `twins`, which are the same steps launched piece by piece, or
            `plain`ly, without being filled up. None is graphs where the model's kernels can be captured, else plainly.

    Raises:
        ValueError: the pools have no block more than the scheduler's.
    """

    def __init__(
        self,
        model: Mixtral,
        pools: Rows[torch.Tensor],
        scheduler: Scheduler,
        *,
        steps_ahead: bool | None = None,
        max_context: int | None = None,
        decode: Literal["graphs", "twins", "plain"] | None = None,
    ) -> None:
        if pools[0].shape[1] <= scheduler.pool.num_blocks:
            raise ValueError("the pools have no block for padding: a step that is filled up would write into a sequence's")
        self._model = model
        self._pools = pools
        self.scheduler = scheduler
        self.num_steps = 0
        self._masks = Masks()
        self._device = model.device
        self._steps_ahead = self._device.type == "cuda" if steps_ahead is None else steps_ahead
        self._launched: _Launched | None = None
        self._scheduled: list[Scheduled] = []
        self._padding_block = pools[0].shape[1] - 1
        self._seats = Seats(scheduler.max_running, model.config.vocab_size, self._device)
        self._draws = Draws(self._seats, model.config.vocab_size, self._device)
        if decode is None:
            decode = "graphs" if model.parts.can_be_captured and self._device.type == "cuda" else "plain"
        self._forms: graphs.Forms | None = None
        width = scheduler.pool.num_blocks
        if decode != "plain":
            capture = graphs.twin if decode == "twins" else graphs.capture_graphs(model)
            most = scheduler.pool.blocks_for(max_context or model.config.max_position)
            self._forms = graphs.Forms(model, pools, self._seats, scheduler.max_running, most, capture)
            width = max(width, self._forms.widths[-1])
        self._tables = inputs.Tables(scheduler.max_running, width)

    def claim_device(self) -> None:
        """Makes the engine's GPU that of the calling thread: kernels are launched on the thread's."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    @torch.inference_mode()
    def step(self) -> list[Drawn]:
        """Brings the oldest step that is launched to its end, launching it first if none is, and the next one where it can.

        Gives what was drawn; nothing when there is nothing to run, or when a step drew nothing. A sequence that ended is out of
        the scheduler already.
        """
        oldest = self._launched or self._launch()
        if oldest is None:
            return []
        self._launched = None
        if self._steps_ahead and not any(one.waits_for_its_tokens and not one.ended for one in oldest.drawing):
            self._scheduled = self.scheduler.schedule()
            # A prompt is launched piece by piece and in part waited for, so long that what is drawn should be told before.
            if all(item.num_tokens == 1 for item in self._scheduled):
                self._launched = self._launch()
        return self._collect(oldest)

    def rest(self) -> bool:
        """While nothing is to be done: forgets a step that is nobody's and captures a form; False where none is missing."""
        if self._launched and all(one.ended for one in self._launched.drawing):
            self._launched = None
        return self._forms is not None and self._forms.capture_next()

    def reset(self) -> None:
        """Drops every sequence, all that is cached and what is launched, after the device has done it.

        Raises:
            RuntimeError: from torch, where the device is lost.
        """
        self._launched, self._scheduled = None, []
        self.scheduler.reset()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _launch(self) -> _Launched | None:
        """Sets a step going, the one that is scheduled, or schedules one; None where nothing can run."""
        step = [item for item in self._scheduled if not item.sequence.ended] or self.scheduler.schedule()
        self._scheduled = []
        if not step:
            return None
        drawing = [item.sequence for item in step if item.completes]
        masks = self._start_masks(drawing)
        logits, views = self._forward(step, drawing)
        drawn = self._draws(drawing, logits, views, masks)
        self.scheduler.advance(step)
        for sequence in drawing:
            sequence.num_pending += 1
        self.num_steps += 1
        return _Launched(drawing, Readback(drawn))

    def _collect(self, launched: _Launched) -> list[Drawn]:
        """What a step drew for those who are still there."""
        rows = launched.drawn.rows()
        drawn = []
        for sequence, row in zip(launched.drawing, rows, strict=True):
            sequence.num_pending -= 1
            if not sequence.ended:
                drawn.append(self._postprocess(sequence, row))
        return drawn

    def _forward(self, step: list[Scheduled], drawing: list[Sequence]) -> tuple[torch.Tensor, inputs.Views]:
        """Logits [R, V] of the rows that draw, and the step's numbers on the device."""
        tables = self._tables.update(step)
        num_blocks = max(len(item.sequence.block_ids) for item in step)
        if self._forms and len(drawing) == len(step) and all(item.num_tokens == 1 for item in step):
            form = self._forms.find(len(step), num_blocks)
            if form:
                host = host_memory(form.memory.numel(), self._device)
                views = inputs.on_host(host, form.sizes)
                _, contexts = inputs.write(views, step, tables)
                inputs.pad_rows(views, len(step), self._padding_block)
                inputs.write_drawing(views, drawing)
                form.contexts = contexts + contexts[:1] * (form.sizes.num_sequences - len(step))
                form.memory.copy_(host, non_blocking=True)
                form.replay()
                return form.logits[: len(step)], form.views
        return self._forward_plainly(step, drawing, tables, num_blocks)

    def _forward_plainly(
        self, step: list[Scheduled], drawing: list[Sequence], tables: list[inputs.Row], num_blocks: int
    ) -> tuple[torch.Tensor, inputs.Views]:
        """See `_forward`: any step. Beside forms it is filled up to one of few sizes, for which kernels are compiled."""
        num_tokens = sum(item.num_tokens for item in step)
        num_padding = 0
        if self._forms:
            num_padding = graphs.padded(num_tokens) - num_tokens
            num_blocks = self._forms.width(num_blocks)
        sizes = inputs.Sizes(num_tokens + num_padding, len(step) + num_padding, num_blocks, len(drawing))
        host = host_memory(inputs.num_bytes(sizes), self._device)
        views = inputs.on_host(host, sizes)
        starts, contexts = inputs.write(views, step, tables)
        inputs.write_padding(views, num_tokens, len(step), self._padding_block)
        inputs.write_drawing(views, drawing)
        starts += range(num_tokens + 1, num_tokens + num_padding + 1)
        contexts += [1] * num_padding
        views = inputs.on_device(host.to(self._device, non_blocking=True), sizes)
        token_ids = self._seats.feed(views.token_ids, views.feeds)
        batch = Batch(token_ids, views.positions, views.slots, starts, contexts, views.tables, views.logit_rows)
        return self._model.forward(batch, self._pools), views

    def _start_masks(self, drawing: list[Sequence]) -> "Future[Mask] | None":
        """Masks of the rows to come, where any of them has one."""
        if not any(one.grammar or one.is_too_short for one in drawing):
            return None
        masks = open_masks(len(drawing), self._model.config.vocab_size)
        for row, one in enumerate(drawing):
            if one.is_too_short and not one.grammar:
                forbid(masks, row, one.stop_ids)
        return self._masks.start(masks, [(row, one.grammar) for row, one in enumerate(drawing) if one.grammar])

    def _postprocess(self, sequence: Sequence, row: list[float]) -> Drawn:
        token = int(row[0])
        try:
            tokens = _follow(sequence, token) if token >= 0 else []
        except GrammarError as error:
            _log.warning("grammar_failed", request_id=sequence.request_id, reason=str(error)[:200])
            tokens = []
        sequence.output_ids += tokens
        finish = _finish(sequence, tokens)
        self.scheduler.seal(sequence)
        if finish:
            self.scheduler.remove(sequence)
        return Drawn(sequence, tokens, finish, _scores(sequence, tokens, row[1:]))


def _scores(sequence: Sequence, tokens: list[int], score: list[float]) -> list[Score] | None:
    """One for each token: the first was drawn, the others were certain."""
    num_top = sequence.sampling.num_logprobs
    if num_top is None or not tokens:
        return None
    certain = [Score(token, 0.0, ((token, 0.0),)[:num_top]) for token in tokens[1:]]
    return [sampler.read_score(tokens[0], score, num_top), *certain]


def _follow(sequence: Sequence, token: int) -> list[int]:
    """The token, and those that have to follow it.

    Raises:
        GrammarError: from the grammar.
    """
    if sequence.grammar is None:
        return [token]
    sequence.grammar.check()  # the mask of one that failed allows the end
    if token in sequence.stop_ids:
        return [token]
    sequence.grammar.accept([token])
    forced = sequence.grammar.forced()[: sequence.max_tokens - len(sequence.output_ids) - 1]
    sequence.grammar.accept(forced)
    return [token, *forced]


def _finish(sequence: Sequence, tokens: list[int]) -> Finish | None:
    if not tokens:
        return "broken"
    if tokens[-1] in sequence.stop_ids or (sequence.grammar and sequence.grammar.ended):
        return "stop"
    return "length" if len(sequence.output_ids) == sequence.max_tokens else None
