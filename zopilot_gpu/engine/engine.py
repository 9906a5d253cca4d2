"""One step of many sequences: schedule, run, postprocess. Knows the model and the pools; runs on a thread it does not own.

schedule ──▶ run: masks (on their own thread) ┐
                  logits (on the device)  ────┴──▶ sample ──▶ postprocess: append, move the grammars on, finish
"""

from collections.abc import Sequence as Rows
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

import torch

from zopilot_gpu import log
from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.grammar import GrammarError, Mask, Masks, forbid, open_masks
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.engine.scheduler import Scheduled, Scheduler
from zopilot_gpu.engine.sequence import Sequence
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


class Engine:
    """A model, its KV pools and the sequences in them.

    Args:
        model: computes logits.
        pools: one a layer, as many blocks as the scheduler's pool.
        scheduler: decides what runs.
    """

    def __init__(self, model: Mixtral, pools: Rows[torch.Tensor], scheduler: Scheduler) -> None:
        self._model = model
        self._pools = pools
        self.scheduler = scheduler
        self.num_steps = 0
        self._masks = Masks()
        self._device = model.embedding.device

    def claim_device(self) -> None:
        """Makes the engine's GPU that of the calling thread: kernels are launched on the thread's."""
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def step(self) -> list[Drawn]:
        """Runs the next step; nothing when there is nothing to run. A sequence that ended is out of the scheduler already."""
        step = self.scheduler.schedule()
        if not step:
            return []
        drawing = [item.sequence for item in step if item.completes]
        rows = self._run(step, drawing)
        self.num_steps += 1
        self.scheduler.advance(step)
        return [self._postprocess(sequence, row) for sequence, row in zip(drawing, rows, strict=True)]

    def _run(self, step: list[Scheduled], drawing: list[Sequence]) -> list[list[float]]:
        """The next token of each sequence in `drawing`, -1 where the logits were no numbers; then its score, if any has one."""
        masks = self._start_masks(drawing)
        logits = self._model.forward(self._batch(step), self._pools)  # [R, V]
        if not drawing:
            return []
        healthy = logits.isfinite().any(dim=-1) & ~logits.isnan().any(dim=-1)
        if masks is not None:
            logits = sampler.mask(logits, torch.from_numpy(masks.result()).to(self._device))
        tokens = sampler.sample(logits, sampler.rows(drawing, logits.shape[1], self._device))
        drawn = torch.where(healthy, tokens, -1).unsqueeze(1)
        asked = [one.sampling.num_logprobs for one in drawing if one.sampling.num_logprobs is not None]
        if asked:
            drawn = torch.cat([drawn.double(), sampler.score(logits, tokens, max(asked))], dim=1)
        rows: list[list[float]] = drawn.tolist()  # the step's one copy back
        return rows

    def _start_masks(self, drawing: list[Sequence]) -> "Future[Mask] | None":
        """Masks of the rows to come, where any of them has one."""
        if not any(one.grammar or one.is_too_short for one in drawing):
            return None
        masks = open_masks(len(drawing), self._model.config.vocab_size)
        for row, one in enumerate(drawing):
            if one.is_too_short and not one.grammar:
                forbid(masks, row, one.stop_ids)
        return self._masks.start(masks, [(row, one.grammar) for row, one in enumerate(drawing) if one.grammar])

    def _batch(self, step: list[Scheduled]) -> Batch:
        token_ids, positions, slots = list[int](), list[int](), list[int]()
        starts, contexts, last = [0], list[int](), list[int]()
        for item in step:
            sequence, begin = item.sequence, item.sequence.num_computed
            places = range(begin, begin + item.num_tokens)
            known, num_prompt = sequence.prompt_ids, len(sequence.prompt_ids)
            token_ids += [known[p] if p < num_prompt else sequence.output_ids[p - num_prompt] for p in places]
            positions += places
            slots += [sequence.block_ids[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in places]
            starts.append(len(token_ids))
            contexts.append(places.stop)
            if item.completes:
                last.append(len(token_ids) - 1)
        longest = max(len(item.sequence.block_ids) for item in step)
        tables = [item.sequence.block_ids + [0] * (longest - len(item.sequence.block_ids)) for item in step]
        return Batch(
            self._tensor(token_ids),
            self._tensor(positions),
            self._tensor(slots),
            starts,
            contexts,
            self._tensor(tables),
            self._tensor(last),
        )

    def _tensor(self, values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)

    def _postprocess(self, sequence: Sequence, row: list[float]) -> Drawn:
        token = int(row[0])
        try:
            tokens = _follow(sequence, token) if token >= 0 else []
        except GrammarError as error:
            _log.warning("grammar_failed", request_id=sequence.request_id, reason=str(error)[:200])
            tokens = []
        sequence.output_ids += tokens
        finish = _finish(sequence, tokens)
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
