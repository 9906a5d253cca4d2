"""The generator: the same for the same seed, honest about what it holds out, and right in its answers."""

import json
import random
from itertools import islice
from typing import Any

from zopilot_gpu.demo.documents import draw as draw_document
from zopilot_gpu.demo.questions import INTRODUCTION, NOT_FOUND, Question, as_json, as_text, draw, held_out_set, is_held_out


def _training(num_questions: int) -> list[Question]:
    rng = random.Random(3)
    return [draw(rng, held_out=False, max_fields=3 + i % 10) for i in range(num_questions)]


def _leaves(context: dict[str, Any]) -> list[Any]:
    inside = [value for value in context.values() if isinstance(value, dict)]
    return [*context.values(), *(value for group in inside for value in group.values())]


def _follows(question: Question) -> bool:
    """Whether the answer can be read off the context."""
    if question.kind == "plain":
        return question.context is None and question.answer == INTRODUCTION
    assert question.context is not None
    if question.kind == "missing":
        return question.answer == NOT_FOUND
    if question.kind == "all":
        return question.answer == as_json(question.context)
    if question.kind == "several":
        fields: dict[str, Any] = json.loads(question.answer)
        return len(fields) >= 2 and all(question.context[key] == value for key, value in fields.items())
    return question.answer in [as_text(value) for value in _leaves(question.context)]


def test_a_seed_gives_the_same_questions_again() -> None:
    assert _training(200) == _training(200)
    assert list(islice(held_out_set(7), 50)) == list(islice(held_out_set(7), 50))
    assert next(held_out_set(7)) != next(held_out_set(8))


def test_training_never_asks_for_what_is_held_out() -> None:
    asked = [pair for question in _training(3000) for pair in question.asked]
    assert not [pair for pair in asked if is_held_out(*pair)]


def test_measuring_asks_for_nothing_else() -> None:
    asked = [pair for question in islice(held_out_set(7), 500) for pair in question.asked]
    assert all(is_held_out(*pair) for pair in asked)
    assert len(asked) >= 500


def test_a_tenth_is_held_out() -> None:
    held = sum(is_held_out("total", f"{cents / 100:.2f}") for cents in range(10_000))
    assert 900 < held < 1100


def test_every_answer_follows_from_its_context() -> None:
    questions = _training(2000)
    assert {question.kind for question in questions} == {"value", "nested", "several", "all", "missing", "plain"}
    assert not [question for question in questions if not _follows(question)]


def test_a_document_has_as_many_fields_as_asked_for_and_no_key_twice() -> None:
    rng = random.Random(5)
    for num_fields in (2, 5, 12, 30):
        document = draw_document(rng, num_fields)
        assert len(document.fields) == num_fields
        assert len({field.path for field in document.fields}) == num_fields
