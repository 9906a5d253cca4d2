"""Training batches: what predicts what, and the same stream whoever makes it."""

from itertools import islice

import numpy as np

from zopilot_gpu.demo import MODEL
from zopilot_gpu.demo.batches import Batch, Encoder, pad, stream
from zopilot_gpu.demo.questions import held_out_set

ENCODER = Encoder(MODEL)


def test_the_predicting_places_stand_one_before_the_answer() -> None:
    questions = list(islice(held_out_set(1), 8))
    batch = pad([(ENCODER.prompt(question), ENCODER.answer(question)) for question in questions])
    assert batch.ids.shape[1] % 16 == 0
    predicted = batch.ids[batch.row, batch.place + 1]
    for question, ids in zip(questions, np.split(predicted, np.cumsum(batch.length)[:-1]), strict=True):
        assert ids[-1] == ENCODER.tokenizer.eos_id
        assert ENCODER.tokenizer.decode(ids.tolist()) == question.answer


def test_the_stream_does_not_depend_on_who_makes_it() -> None:
    alone, together = (list(stream(MODEL, 1, 35, 2, workers)) for workers in (0, 2))
    assert len(alone) == len(together) == 35
    assert all(_same(*pair) for pair in zip(alone, together, strict=True))


def _same(one: Batch, other: Batch) -> bool:
    return np.array_equal(one.ids, other.ids) and np.array_equal(one.place, other.place)
