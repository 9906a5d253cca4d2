"""One step of many sequences: schedule, run, postprocess. Knows the model and the pools; runs on a thread it does not own."""

from collections.abc import Sequence as Rows
from dataclasses import dataclass
from typing import Literal

import torch

from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.engine.scheduler import Scheduled, Scheduler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.mixtral import Mixtral

Finish = Literal["stop", "length", "broken"]


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token that a sequence got in this step, and whether it ended so: `broken` is a row of logits that are no numbers."""

    sequence: Sequence
    token_id: int
    finish: Finish | None


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
        self._device = model.embedding.device

    def step(self) -> list[Drawn]:
        """Runs the next step; nothing when there is nothing to run. A sequence that ended is out of the scheduler already."""
        step = self.scheduler.schedule()
        if not step:
            return []
        drawing = [item.sequence for item in step if item.completes]
        tokens = self._run(step, drawing)
        self.scheduler.advance(step)
        return [self._postprocess(sequence, token) for sequence, token in zip(drawing, tokens, strict=True)]

    def _run(self, step: list[Scheduled], drawing: list[Sequence]) -> list[int]:
        """The next token of each sequence in `drawing`; -1 where the logits were no numbers."""
        logits = self._model.forward(self._batch(step), self._pools)  # [R, V]
        if not drawing:
            return []
        tokens = sampler.sample(logits, sampler.rows(drawing, logits.shape[1], self._device))
        healthy = logits.isfinite().any(dim=-1) & ~logits.isnan().any(dim=-1)
        return torch.where(healthy, tokens, -1).tolist()  # the step's one copy back

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

    def _postprocess(self, sequence: Sequence, token: int) -> Drawn:
        finish: Finish | None = None
        if token < 0:
            finish = "broken"
        else:
            sequence.output_ids.append(token)
            if token in sequence.stop_ids:
                finish = "stop"
            elif len(sequence.output_ids) == sequence.max_tokens:
                finish = "length"
        if finish:
            self.scheduler.remove(sequence)
        return Drawn(sequence, token, finish)
