"""Training batches: questions drawn, encoded, sorted by length and padded, in worker processes.

The stream is cut in numbered pools, and pool `k` is a function of the seed and `k` alone: however many processes
work, the batches and their order are the same. Refuses sequences above `MAX_TOKENS`: it draws another question.

Try it: `python -m pytest tests/unit/demo/test_batches.py`.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from zopilot_gpu.demo import questions
from zopilot_gpu.demo.questions import Question
from zopilot_gpu.text.template import InstructTemplate
from zopilot_gpu.text.tokenizer import Tokenizer

MAX_TOKENS = 704
BATCHES_PER_POOL = 16
_GROWING = 0.25  # the share of training over which documents grow from three fields to their full size
_STEP = 16  # lengths are padded to a multiple of it

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """B sequences, right-padded with zeros to T; N of their positions predict a token of an answer (or its end).

    ids: [B, T], int16. row, place: [N], where the predicting positions are. length: [B], answer tokens of each sequence.
    """

    ids: npt.NDArray[np.int16]
    row: Ints
    place: Ints
    length: Ints


class Encoder:
    """Questions to ids, exactly as the service encodes them; the answer on its own, then the end of the sequence."""

    def __init__(self, directory: Path) -> None:
        self.tokenizer = Tokenizer(directory)
        self._template = InstructTemplate(self.tokenizer)
        if self.tokenizer.eos_id is None:
            raise ValueError(f"The tokenizer in {directory} names no end of sequence.")
        self._end = [self.tokenizer.eos_id]

    def prompt(self, question: Question) -> list[int]:
        """The prefill."""
        return self._template.encode(question.prompt, question.context)

    def answer(self, question: Question) -> list[int]:
        """What follows it."""
        return [*self.tokenizer.encode(question.answer), *self._end]

    def fits(self, question: Question) -> bool:
        """Whether prompt and answer stay within the lengths that are trained."""
        return len(self.prompt(question)) + len(self.answer(question)) <= MAX_TOKENS


def pad(pairs: list[tuple[list[int], list[int]]]) -> Batch:
    """Prompts and their answers as one batch."""
    longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
    ids = np.zeros((len(pairs), -(-longest // _STEP) * _STEP), dtype=np.int16)
    for i, (prompt, answer) in enumerate(pairs):
        ids[i, : len(prompt) + len(answer)] = prompt + answer
    length = np.array([len(answer) for _, answer in pairs])
    place = np.concatenate([np.arange(len(prompt) - 1, len(prompt) + len(answer) - 1) for prompt, answer in pairs])
    return Batch(ids, np.repeat(np.arange(len(pairs)), length), place, length)


def pool(encoder: Encoder, seed: int, index: int, num_pools: int, batch_size: int) -> list[Batch]:
    """The batches of one pool: equal in length inside, shuffled among themselves."""
    rng = random.Random(f"{seed} pool {index}")
    max_fields = 3 + int((questions.MAX_FIELDS - 3) * min(1.0, index / (num_pools * _GROWING)))
    pairs: list[tuple[list[int], list[int]]] = []
    while len(pairs) < batch_size * BATCHES_PER_POOL:
        question = questions.draw(rng, held_out=False, max_fields=max_fields)
        prompt, answer = encoder.prompt(question), encoder.answer(question)
        if len(prompt) + len(answer) <= MAX_TOKENS:
            pairs.append((prompt, answer))
    pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
    batches = [pad(pairs[i : i + batch_size]) for i in range(0, len(pairs), batch_size)]
    rng.shuffle(batches)
    return batches


class _Pools(IterableDataset[list[Batch]]):
    def __init__(self, directory: Path, seed: int, num_pools: int, batch_size: int) -> None:
        self._directory, self._seed, self._num_pools, self._batch_size = directory, seed, num_pools, batch_size

    def __iter__(self) -> Iterator[list[Batch]]:
        worker = get_worker_info()
        first, stride = (0, 1) if worker is None else (worker.id, worker.num_workers)
        encoder = Encoder(self._directory)
        for index in range(first, self._num_pools, stride):
            yield pool(encoder, self._seed, index, self._num_pools, self._batch_size)


def stream(directory: Path, seed: int, num_steps: int, batch_size: int, num_workers: int) -> Iterator[Batch]:
    """`num_steps` batches for the tokenizer in `directory`, made by `num_workers` processes (0: by this one)."""
    num_pools = -(-num_steps // BATCHES_PER_POOL)
    loader: Iterable[Any] = DataLoader(_Pools(directory, seed, num_pools, batch_size), batch_size=None, num_workers=num_workers)
    batches = (batch for pool_ in loader for batch in pool_)
    for _, batch in zip(range(num_steps), batches, strict=False):
        yield batch
