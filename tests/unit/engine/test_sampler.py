"""Holds what is added to logits, and the log probabilities of what is drawn."""

import math
from dataclasses import replace

import pytest
import torch

from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import GREEDY, Score

CPU = torch.device("cpu")


def drawn(*sequences: Sequence, logits: list[float]) -> list[int]:
    rows = sampler.rows(list(sequences), len(logits), CPU)
    tokens: list[int] = sampler.sample(torch.tensor([logits] * len(sequences)), rows).tolist()
    return tokens


def test_bias_and_penalties_are_each_sequences_own() -> None:
    plain = Sequence("a", [1], 9, GREEDY)
    biased = Sequence("b", [1], 9, replace(GREEDY, logit_bias=((2, 5.0), (0, -100.0))))
    present = Sequence("c", [3], 9, replace(GREEDY, presence_penalty=1.5), output_ids=[3])
    frequent = Sequence("d", [3], 9, replace(GREEDY, frequency_penalty=0.5), output_ids=[3, 3, 3])
    assert drawn(plain, biased, present, frequent, logits=[0.0, 1.0, 0.0, 2.0]) == [3, 2, 1, 1]


def test_penalties_are_for_the_output_and_count_each_token_once_as_it_comes() -> None:
    one = Sequence("a", [7, 7], 9, replace(GREEDY, presence_penalty=1.0, frequency_penalty=0.25, logit_bias=((4, 2.0),)))
    assert one.additions() == {4: 2.0}
    one.output_ids += [4, 5]
    assert one.additions() == {4: 0.75, 5: -1.25}
    one.output_ids += [5, 5]
    assert one.additions() == one.additions() == {4: 0.75, 5: -1.75}


def test_what_is_not_allowed_stays_so_whatever_its_bias() -> None:
    one = Sequence("a", [1], 9, replace(GREEDY, logit_bias=((0, 100.0),)))
    assert drawn(one, logits=[-math.inf, 1.0, 2.0]) == [2]


def test_a_score_has_the_likeliest_in_order_and_nothing_that_can_not_be() -> None:
    logits = torch.tensor([[1.0, 3.0, -math.inf, 2.0]])
    row = sampler.score(logits, torch.tensor([3]), 4)[0].tolist()
    total = math.log(sum(math.exp(value) for value in (1, 3, 2)))
    expected = ((1, 3 - total), (3, 2 - total), (0, 1 - total))
    told = sampler.read_score(3, row, 4)
    assert told.logprob == pytest.approx(2 - total)
    assert [token for token, _ in told.top] == [token for token, _ in expected]
    assert [value for _, value in told.top] == pytest.approx([value for _, value in expected])
    assert sampler.read_score(3, row, 1).top == told.top[:1]
    assert sampler.read_score(3, sampler.score(logits, torch.tensor([3]), 0)[0].tolist(), 0) == Score(3, row[0])
