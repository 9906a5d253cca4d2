"""Holds what is added to logits, which token is drawn, and the log probabilities of what is drawn."""

import math
import random
from dataclasses import replace

import pytest
import torch

from zopilot_gpu.engine import sampler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import GREEDY, Sampling, Score


def drawn(*sequences: Sequence, logits: list[float]) -> list[int]:
    return draw(torch.tensor([logits] * len(sequences)), list(sequences))


def draw(logits: torch.Tensor, sequences: list[Sequence]) -> list[int]:
    """As the engine does it, on the CPU."""
    many = [row for row, one in enumerate(sequences) if sampler.draws_from_many(one.sampling)]
    added = sampler.additions(sequences)
    seen = torch.zeros(logits.shape, dtype=torch.bool)
    for row, one in enumerate(sequences):
        seen[row, one.token_ids] = True
    rows = sampler.Rows(
        parameters=torch.from_numpy(sampler.parameters(sequences)),
        any_few=any(sampler.draws_from_few(one.sampling) for one in sequences),
        many=torch.tensor(many) if many else None,
        seen=seen if any(one.sampling.repetition_penalty != 1 for one in sequences) else None,
        added=added and (torch.from_numpy(added[0]), torch.from_numpy(added[1])),
    )
    tokens: list[int] = sampler.sample(logits, rows).tolist()
    return tokens


def drawn_slowly(logits: list[float], one: Sequence) -> int:
    """The twin: a row by itself, in Python's floats."""
    how, known = one.sampling, set(one.token_ids)
    for token in known:
        logits[token] *= how.repetition_penalty if logits[token] <= 0 else 1 / how.repetition_penalty
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    if not how.temperature:
        return order[0]
    shares = [math.exp((logits[token] - logits[order[0]]) / how.temperature) for token in order[: how.top_k or None]]
    total = sum(shares)
    kept, reached = list[float](), 0.0
    for share in shares:
        if reached >= how.top_p:
            break
        kept.append(share / total)
        reached += kept[-1]
    left = sampler.uniform(one.seed, one.num_tokens) * reached
    for token, share in zip(order, kept, strict=False):
        left -= share
        if left < 0:
            return token
    return order[len(kept) - 1]


def some_rows(seed: int, vocab_size: int, count: int) -> tuple[torch.Tensor, list[Sequence]]:
    """Logits in steps as coarse as bf16's, so that many are equal, some of them not allowed."""
    dice, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    logits = (torch.randn(count, vocab_size, generator=generator) * 4).bfloat16().float()
    logits[torch.rand(count, vocab_size, generator=generator) < 0.2] = -math.inf
    sequences = []
    for number in range(count):
        how = Sampling(
            temperature=dice.choice([0, 0.3, 1.0, 2.0]),
            top_p=dice.choice([1.0, 0.9, 0.3]),
            top_k=dice.choice([0, 1, 50, sampler.MOST_FEW, sampler.MOST_FEW + 1, 1000]),
            repetition_penalty=dice.choice([1, 1.1]),
            seed=0,
        )
        prompt = [dice.randrange(vocab_size) for _ in range(30)]
        sequences.append(Sequence(str(number), prompt, 9, how, seed=dice.randrange(2**63)))
    return logits, sequences


@pytest.mark.parametrize("vocab_size", [50, 1000, 32_000])
def test_a_draw_is_the_twins(vocab_size: int) -> None:
    logits, sequences = some_rows(vocab_size, vocab_size, 40)
    expected = [drawn_slowly(row, one) for row, one in zip(logits.tolist(), sequences, strict=True)]
    assert draw(logits, sequences) == expected


def test_a_draw_is_the_same_alone_and_in_any_batch() -> None:
    logits, sequences = some_rows(7, 5000, 48)
    alone = [draw(logits[row : row + 1], [one])[0] for row, one in enumerate(sequences)]
    for seed in range(10):
        rows = random.Random(seed).sample(range(48), 1 + seed * 5)
        assert draw(logits[rows], [sequences[row] for row in rows]) == [alone[row] for row in rows]


def test_of_equal_logits_the_lower_id_comes_first_in_either_way_of_sorting() -> None:
    logits = torch.tensor([0.0, -0.0, 1.0, 0.0]).repeat(3, 100)
    few = [Sequence(str(n), [1], 9, replace(GREEDY, temperature=1.0, top_k=100), seed=n) for n in range(3)]
    assert all(token % 4 == 2 for token in draw(logits, few))
    likeliest, order = sampler._likeliest(logits[:1])
    ordered, all_ids = (logits[:1] + 0.0).sort(descending=True, stable=True)
    assert torch.equal(order, all_ids[:, : sampler.MOST_FEW])
    assert torch.equal(likeliest, ordered[:, : sampler.MOST_FEW])


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
