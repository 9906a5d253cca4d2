"""The workload is a function of its seed, and is what was asked for."""

import random
from itertools import islice, pairwise
from statistics import fmean
from typing import Any

import pytest

from zopilot_gpu.bench.workload import Mix, Span, arrivals, bodies

MIX = Mix(Span(5, 9), Span(8, 16))


def some(mix: Mix = MIX, seed: int = 1, count: int = 200, **options: Any) -> list[dict[str, Any]]:
    return list(islice(bodies(mix, seed, **options), count))


def words(body: dict[str, Any]) -> list[str]:
    return str(body["prompt"]).split("\n\n", maxsplit=1)[0].split(" ")


def test_the_same_seed_sends_the_same_and_another_seed_another() -> None:
    assert some() == some()
    assert some(seed=2) != some()
    assert not {body["prompt"] for body in some()} & {body["prompt"] for body in some(part="warm-up")}


def test_lengths_are_drawn_from_their_ranges() -> None:
    sent = some()
    assert {len(words(body)) for body in sent} == set(range(5, 10))
    assert {body["max_tokens"] for body in sent} == set(range(8, 17))
    assert len({body["prompt"] for body in sent}) == len(sent)


def test_every_body_is_streamed_and_greedy_unless_told_otherwise() -> None:
    assert all(body["stream"] and body["temperature"] == 0 and "json_schema" not in body for body in some())
    other = Mix(Span(1, 1), Span(1, 1), temperature=0.7, json_schema={"type": "object"})
    assert all(body["temperature"] == 0.7 and body["json_schema"] == {"type": "object"} for body in some(other))


def test_a_share_begins_alike_and_the_rest_is_as_long() -> None:
    mix = Mix(Span(5, 5), Span(8, 8), shared_prefix_words=30, shared_share=0.5)
    sent = [words(body) for body in some(mix)]
    beginnings = [tuple(one[:30]) for one in sent]
    commonest = max(set(beginnings), key=beginnings.count)
    assert {len(one) for one in sent} == {35}
    assert 0.4 < beginnings.count(commonest) / len(beginnings) < 0.6
    assert len(set(beginnings)) == len(beginnings) - beginnings.count(commonest) + 1


def test_the_warm_up_shares_the_prefix_of_what_is_measured() -> None:
    mix = Mix(Span(5, 5), Span(8, 8), shared_prefix_words=30)
    beginnings = {tuple(words(body)[:30]) for body in some(mix) + some(mix, part="warm-up")}
    assert len(beginnings) == 1


def test_arrivals_are_a_poisson_process() -> None:
    due_s = list(islice(arrivals(20.0, 7), 4000))
    gaps = [after - before for before, after in pairwise(due_s)]
    assert due_s == list(islice(arrivals(20.0, 7), 4000))
    assert all(gap > 0 for gap in gaps)
    assert fmean(gaps) == pytest.approx(1 / 20, rel=0.1)
    assert fmean(gap > 1 / 20 for gap in gaps) == pytest.approx(0.3679, abs=0.03)  # e**-1: exponential, not regular


@pytest.mark.parametrize(("text", "span"), [("20:200", Span(20, 200)), ("64", Span(64, 64)), ("1:1", Span(1, 1))])
def test_a_range_is_read(text: str, span: Span) -> None:
    assert Span.parse(text) == span
    assert Span.parse(str(span)) == span
    assert span.low <= span.draw(random.Random(1)) <= span.high


@pytest.mark.parametrize("text", ["", "5:2", "0:3", "-1", "a:b", "1:2:3", "1.5"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Span.parse(text)
