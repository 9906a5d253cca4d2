"""Steps that are launched before the one before is read, and steps that are filled up to a size: on the CPU, without graphs.

That what sequences say does not change is `test_engine`'s; here is how it comes about, and what must not be touched on the way.
"""

import asyncio
import json
from dataclasses import replace

import pytest
import torch

from tests.twins import test_engine as twin
from zopilot_gpu.engine import graphs
from zopilot_gpu.engine.engine import Drawn, Engine
from zopilot_gpu.engine.loop import EngineLoop, fatal_reason, is_out_of_memory
from zopilot_gpu.engine.scheduler import Scheduled
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.warmup import warm_up
from zopilot_gpu.errors import EngineFailed, OutOfMemory
from zopilot_gpu.events import GREEDY, Sampling
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.kernels.parts import KernelParts
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.text.json_schema import narrow

model, prompts = twin.model, twin.prompts


def sequence(prompt: list[int], max_tokens: int = 30, how: Sampling = GREEDY) -> Sequence:
    return Sequence("one", prompt, max_tokens, how, stop_ids=frozenset([twin.EOS]))


def launches(it: Engine, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[Sequence, int]]]:
    """What each step that is launched from now on has: sequences, and how many of their tokens the host does not know."""
    seen: list[list[tuple[Sequence, int]]] = []
    forward = it._forward

    def watched(step: list[Scheduled], drawing: list[Sequence]) -> object:
        seen.append([(item.sequence, item.sequence.num_pending) for item in step])
        return forward(step, drawing)

    monkeypatch.setattr(it, "_forward", watched)
    return seen


def test_the_next_step_is_launched_before_this_one_is_read(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = twin.engine(model, mode="ahead")
    steps = launches(it, monkeypatch)
    one = sequence(prompts[0], max_tokens=5)
    it.scheduler.add(one)
    told: list[Drawn] = []
    while not told:
        told = it.step()
    assert [row for step in steps for row in step][-1] == (one, 1)
    assert [len(drawn.token_ids) for drawn in told] == [1]
    known = len(steps)
    while it.scheduler.running:
        it.step()
    assert len(steps) == known + 3  # of five tokens the first two are drawn; none is launched for a sixth
    assert one.output_ids == twin.alone(model, one)


def test_a_sequence_that_ended_gets_nothing_from_the_step_that_was_ahead(model: Mixtral, prompts: list[list[int]]) -> None:
    it = twin.engine(model, mode="ahead")
    ending, other = sequence(prompts[0], 60), sequence(prompts[1], 60)
    it.scheduler.add(ending)
    it.scheduler.add(other)
    drawn = []
    while it.scheduler.running or it.scheduler.waiting:
        drawn += it.step()
        it.scheduler.check()
    for one in (ending, other):
        mine = [token for letter in drawn if letter.sequence is one for token in letter.token_ids]
        assert mine == one.output_ids == twin.alone(model, one)
        assert [letter.finish for letter in drawn if letter.sequence is one and letter.finish] == ["stop"]
    assert it.step() == []
    assert it.scheduler.pool.num_available == it.scheduler.pool.num_blocks


def test_who_is_aborted_leaves_nothing_and_hears_nothing(model: Mixtral, prompts: list[list[int]]) -> None:
    it = twin.engine(model, mode="ahead", num_blocks=40)
    left, other = sequence(prompts[0], 60), sequence(prompts[1], 60)
    it.scheduler.add(left)
    it.scheduler.add(other)
    while not left.output_ids:
        it.step()
    known = list(left.output_ids)
    it.scheduler.remove(left)
    it.scheduler.check()
    newcomer = sequence(prompts[2], 60)  # on the blocks and in the seat that were given up
    it.scheduler.add(newcomer)
    told = []
    while it.scheduler.running or it.scheduler.waiting:
        told += it.step()
    assert left.output_ids == known
    assert left not in [one.sequence for one in told]
    assert [other.output_ids, newcomer.output_ids] == [twin.alone(model, other), twin.alone(model, newcomer)]


@pytest.mark.parametrize("counted", [False, True])
def test_a_grammar_or_a_penalty_by_count_is_waited_for(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, *, counted: bool
) -> None:
    it = twin.engine(model, mode="ahead and filled up")
    steps = launches(it, monkeypatch)
    text = json.dumps(narrow({"type": "object"}))
    if counted:
        waiting = sequence(prompts[0], 20, Sampling(0, 1, 0, 1, None, frequency_penalty=1.0))
    else:
        waiting = Sequence(text, prompts[0], 20, stop_ids=frozenset([twin.EOS]), grammar=twin.GRAMMARS.compile(text))
    other = Sequence("other", prompts[1], 60)
    it.scheduler.add(waiting)
    it.scheduler.add(other)
    twin.run(it)
    assert all(pending == 0 for step in steps for one, pending in step if one is waiting)
    assert any(pending for step in steps for _, pending in step)  # before it draws, and after it has ended
    assert [waiting.output_ids, other.output_ids] == [twin.alone(model, waiting), twin.alone(model, other)]


def test_what_fills_up_a_step_touches_no_block_but_its_own(model: Mixtral, prompts: list[list[int]]) -> None:
    it = twin.engine(model, mode="ahead and filled up", num_blocks=64)
    sequences = [sequence(prompt, 20) for prompt in prompts[:5]]
    for one in sequences:
        it.scheduler.add(one)
    owned = set[int]()
    while it.scheduler.running or it.scheduler.waiting:
        it.step()
        owned |= {block for one in sequences for block in one.block_ids}
    others = [block for block in range(64) if block not in owned]
    assert len(others) > 10
    for pool in it._pools:
        assert pool[:, others].isnan().all()
        assert not pool[:, 64].isnan().all()  # the padding's
    assert [one.output_ids for one in sequences] == [twin.alone(model, one) for one in sequences]


def test_what_kernels_are_told_of_a_form_is_what_its_lists_say(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan of a captured step is made once and its numbers are sent; that of any other is made of lists on the host."""
    seen = list[Batch]()
    forward = Mixtral.forward

    def watched(self: Mixtral, batch: Batch, pools: list[torch.Tensor]) -> torch.Tensor:
        kernels, listed = KernelParts(), replace(batch, runs=None)
        if batch.runs is not None and batch.context_lens:
            sent, made = (kernels.plan(one, pools[0], self.rotary, 8) for one in (batch, listed))
            assert sent.chunks is made.chunks is None
            assert sent.decodes is not None
            assert made.decodes is not None
            assert torch.equal(sent.decodes, made.decodes)
            seen.append(batch)
        return forward(self, batch, pools)

    monkeypatch.setattr(Mixtral, "forward", watched)
    it = twin.engine(model, mode="ahead and filled up")
    for prompt in prompts[:5]:
        it.scheduler.add(sequence(prompt, 20))
    twin.run(it)
    assert {batch.num_sequences for batch in seen} >= {8}
    assert all(int(batch.token_ids.min()) >= 0 for batch in seen)  # those that the host does not know are filled in


def test_a_step_of_every_kind_runs_on_the_padding_alone(model: Mixtral) -> None:
    measured = warm_up(model, torch.float32, max_rows=8, max_step_tokens=48, max_blocks=70)
    assert measured.reserved_bytes == 0  # nothing is measured on a CPU


def test_pools_without_a_block_for_padding_are_refused(model: Mixtral) -> None:
    it = twin.engine(model, num_blocks=16)
    with pytest.raises(ValueError, match="padding"):
        Engine(model, [pool[:, :16] for pool in it._pools], it.scheduler)


def test_a_form_that_can_not_be_captured_is_done_without(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(run: graphs.Run) -> graphs.Run:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(graphs, "twin", fail)
    it = twin.engine(model, mode="ahead and filled up")
    assert not it.rest()
    one = sequence(prompts[0], 30)
    it.scheduler.add(one)
    twin.run(it)
    assert one.output_ids == twin.alone(model, one)
    assert it._forms
    assert it._forms.find(1, 1) is None


def test_forms_are_captured_one_at_a_time_and_when_asked_for_again(model: Mixtral) -> None:
    it = twin.engine(model)
    forms = graphs.Forms(model, it._pools, it._seats, 48, 300, graphs.twin)
    assert (forms.ladder, forms.widths) == ([1, 2, 4, 8, 16, 24, 32, 48], [64, 256, 304])
    asked = [forms.find(3, 20) for _ in range(9)]
    assert asked[:7] == [None] * 7  # not the first steps: there are more of these to come
    assert asked[8]
    assert asked[8].sizes == (4, 4, 64, 4)
    assert forms.find(2, 20) is asked[8]  # a larger one does, but not one much larger
    assert forms.find(1, 20) is asked[8]
    assert forms.find(1, 100) is None
    assert forms.find(1, 305) is None
    for _ in range(len(forms.ladder) * len(forms.widths) - 1):
        assert forms.capture_next()
    assert not forms.capture_next()
    assert [forms.find(5, 65).sizes for forms in [forms]] == [(8, 8, 256, 8)]  # type: ignore[union-attr]


async def test_forms_are_captured_while_nothing_is_asked(model: Mixtral, prompts: list[list[int]]) -> None:
    pools, scheduler = twin.engine(model)._pools, twin.engine(model).scheduler
    it = Engine(model, pools, scheduler, steps_ahead=True, decode="twins")
    loop = EngineLoop(it, asyncio.get_running_loop())
    assert it._forms
    wanted = len(it._forms.ladder) * len(it._forms.widths)
    for _ in range(3000):
        await asyncio.sleep(0.01)
        if len(it._forms._made) == wanted:
            break
    one = sequence(prompts[0], 20)
    assert await twin.collect(loop.submit(one)) == twin.alone(model, one)
    await loop.close()


async def test_a_lost_device_is_told_and_nothing_is_tried_on_it_again(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = twin.engine(model, mode="ahead")
    loop = EngineLoop(it, asyncio.get_running_loop())
    tried = []

    def fail(*_: object) -> object:
        tried.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be reported later")

    monkeypatch.setattr(it, "_forward", fail)
    doomed = [loop.submit(sequence(prompt)) for prompt in prompts[:2]]
    assert [type(await twin.collect(one)) for one in doomed] == [EngineFailed, EngineFailed]
    assert loop.fatal == "RuntimeError: CUDA error: an illegal memory access was encountered"
    assert isinstance(await twin.collect(loop.submit(sequence(prompts[2]))), EngineFailed)
    assert len(tried) == 1
    assert loop.stalled_s < 30  # it is not stuck: it refuses
    await loop.close()


async def test_a_device_that_fails_to_be_emptied_is_lost(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = twin.engine(model)
    loop = EngineLoop(it, asyncio.get_running_loop())

    def lost() -> None:
        raise RuntimeError("unspecified launch failure")

    monkeypatch.setattr(it, "_forward", lambda *_: 1 / 0)
    monkeypatch.setattr(it, "reset", lost)
    assert isinstance(await twin.collect(loop.submit(sequence(prompts[0]))), EngineFailed)
    assert loop.fatal
    await loop.close()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"), True),
        (type("AcceleratorError", (RuntimeError,), {})("unspecified launch failure"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), False),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (ValueError("CUDA error"), False),
    ],
)
def test_which_errors_a_device_does_not_get_over(error: Exception, *, lost: bool) -> None:
    assert (fatal_reason(error) is not None) == lost
    assert is_out_of_memory(error) == ("out of memory" in str(error))


async def test_out_of_memory_is_told_as_such(model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    it = twin.engine(model, mode="ahead")
    loop = EngineLoop(it, asyncio.get_running_loop())
    with monkeypatch.context() as patch:
        patch.setattr(it, "_forward", lambda *_: (_ for _ in ()).throw(RuntimeError("CUDA error: out of memory")))
        assert isinstance(await twin.collect(loop.submit(sequence(prompts[0]))), OutOfMemory)
    assert loop.fatal is None
    one = sequence(prompts[1], 10)
    assert await twin.collect(loop.submit(one)) == twin.alone(model, one)
    await loop.close()
