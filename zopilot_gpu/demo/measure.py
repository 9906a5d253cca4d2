"""Measure the stored demo model: exact match on held-out questions and on the hand-written cases.

Knows the two ways in which the service samples by default (`answering`); refuses to round up: an answer counts when
every character of it is right. The last line printed is JSON. Batches are padded on the left; in bf16 that moves a logit
by a hair, and one answer in about a hundred differs from the one that the question gets alone.

Try it: `python -m zopilot_gpu.demo.measure --questions 100 --seed 7`.
"""

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from zopilot_gpu.demo import MODEL
from zopilot_gpu.demo.answering import DEFAULT_SAMPLING, GREEDY, answer, in_batches, load
from zopilot_gpu.demo.batches import Encoder
from zopilot_gpu.demo.cases import CASES
from zopilot_gpu.demo.questions import Question, held_out_set

Wrong = list[tuple[Question, str]]


def exact_match(
    model: Any, encoder: Encoder, questions: Sequence[Question], how: dict[str, Any], batch_size: int
) -> tuple[dict[str, float], Wrong]:
    """Percentages of right answers, overall and by kind; and the wrong ones with what was said instead."""
    right: dict[str, list[bool]] = defaultdict(list)
    wrong: Wrong = []
    for batch in in_batches(questions, batch_size):
        for question, said in zip(batch, answer(model, encoder, batch, how), strict=True):
            right["overall"].append(said == question.answer)
            right[question.kind].append(said == question.answer)
            if said != question.answer:
                wrong.append((question, said))
    return {kind: round(100 * sum(hits) / len(hits), 2) for kind, hits in sorted(right.items())}, wrong


def main(
    questions: Annotated[int, typer.Option(help="Held-out questions to ask.")] = 1000,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 7,
    batch: Annotated[int, typer.Option(help="Questions answered at once.")] = 32,
    model_dir: Annotated[Path, typer.Option(help="Another model than the package's.")] = MODEL,
    show: Annotated[int, typer.Option(help="Wrong answers to print of each run.")] = 5,
) -> None:
    """Ask, count, and print."""
    encoder, model = Encoder(model_dir), load(model_dir)
    asked = list(islice(filter(encoder.fits, held_out_set(seed)), questions))
    report: dict[str, Any] = {"questions": questions, "seed": seed}
    for name, how in (("greedy", GREEDY), ("default_sampling", DEFAULT_SAMPLING)):
        for label, those in (("held_out", asked), ("hand_written", list(CASES))):
            start = time.monotonic()
            report[f"{label}_{name}"], wrong = exact_match(model, encoder, those, how, batch)
            typer.echo(f"{label}, {name}: {report[f'{label}_{name}']}  ({time.monotonic() - start:.0f} s)")
            for question, said in wrong[:show]:
                typer.echo(f"  {question.kind}: {question.prompt!r} {json.dumps(question.context, ensure_ascii=False)}")
                typer.echo(f"    said {said!r}\n    want {question.answer!r}")
    typer.echo(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
