"""Draws by the kernel are the sampler's, in Triton's interpreter; on a card: tests/gpu/test_sample_on_a_card.py."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.twins import drawing
from tests.twins import test_engine as twin
from zopilot_gpu.engine import draws, sample_kernel, sampler
from zopilot_gpu.engine.draws import Draws
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import GREEDY, Sampling
from zopilot_gpu.model.mixtral import Mixtral

CPU = torch.device("cpu")
SERVED = Sampling(temperature=0.8, top_p=0.95, top_k=50, repetition_penalty=1.1, seed=0)
model, prompts = twin.model, twin.prompts
pytestmark = pytest.mark.filterwarnings("ignore:.*:RuntimeWarning:triton", "ignore:.*:DeprecationWarning:triton")


@pytest.mark.parametrize("vocab_size", [1, 50, 1000, 4096, 9001])
def test_a_draw_and_what_is_noted_of_it_are_the_samplers(vocab_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    near = 0
    for seed, (masked, seated) in enumerate([(False, True), (True, True), (False, False)]):
        it = drawing.rows(vocab_size + seed, 2 * drawing.NUM_WAYS, vocab_size, CPU)
        near += drawing.check(it, monkeypatch, masked=masked, seated=seated)
    assert near <= 6


def test_the_kernel_has_room_for_what_it_is_chosen_for() -> None:
    assert 2**sample_kernel.ID_BITS.value == draws.MOST_VOCAB
    assert sample_kernel.FEW.value >= 2 * sampler.MOST_FEW  # else a bound between them may not be found
    assert sample_kernel.TILE.value == sample_kernel.ROWS.value * sample_kernel.COLUMNS.value


def test_an_engine_says_by_the_kernel_what_it_says_by_the_sampler(model: Mixtral, prompts: list[list[int]]) -> None:
    """Greedy and drawn, by one launch and, next to who asks for more than that, launch by launch; ahead of the host."""
    it = twin.engine(model, mode="ahead and filled up")
    it._draws = Draws(it._seats, model.config.vocab_size, CPU, by_kernel=True)
    launches = list[bool]()

    def counted(*arguments: Any) -> torch.Tensor:
        launches.append(len(arguments) == 4)  # with seats
        return sample_kernel.draw(*arguments)

    it._draws._kernel = counted
    ways = [replace(SERVED, top_k=0), replace(SERVED, num_logprobs=2), GREEDY, SERVED, SERVED, replace(SERVED, min_tokens=4)]
    lengths = [9, 6, 20, 20, 12, 12]
    sequences = [
        Sequence(str(n), prompt, length, how, seed=n, stop_ids=frozenset([twin.EOS] if how.min_tokens else []))
        for n, (prompt, length, how) in enumerate(zip(prompts, lengths, ways, strict=False))
    ]
    for one in sequences:
        it.scheduler.add(one)
    twin.run(it)
    assert launches.count(True) > 5 < launches.count(False)
    assert [one.output_ids for one in sequences] == [twin.alone(model, one) for one in sequences]
