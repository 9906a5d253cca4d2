"""The engine on the demo model: what a sequence says depends on itself alone, and nothing is left behind.

1,000 mixes: `ZOPILOT_GPU_MIXES=1000 python -m pytest tests/twins/test_engine.py -k mix --timeout=3600`.
"""

import asyncio
import json
import math
import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from runners.causal_lm import CausalLM, Scores
from runners.device import Device
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.engine import Drawn, Engine
from zopilot_gpu.engine.grammar import Compiler
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools, pool_size
from zopilot_gpu.engine.loop import EngineLoop, Mailbox
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import DeadlineExceeded, InternalError, ServiceError, ShuttingDown
from zopilot_gpu.events import GREEDY, Sampling, Score
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import build
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.json_schema import narrow
from zopilot_gpu.text.template import template_for
from zopilot_gpu.text.tokenizer import Tokenizer

CPU = torch.device("cpu")
MODES: dict[str, dict[str, Any]] = {
    "in turn": {},
    "ahead": {"steps_ahead": True},
    "ahead and filled up": {"steps_ahead": True, "decode": "twins"},
    "filled up": {"decode": "twins"},
}
EOS = 2
DEMO: Path = locate("demo").directory
GRAMMARS = Compiler(Tokenizer(DEMO).serialised(), 1024, [EOS])
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object"},
    {
        "type": "object",
        "properties": {"vendor": {"type": "string"}, "total": {"type": "string", "maxLength": 9}},
        "required": ["vendor", "total"],
    },
    {"type": "array", "items": {"enum": ["open", "paid", 12, None]}, "minItems": 2},
    {"type": "string", "format": "date-time"},
]


@pytest.fixture(scope="module")
def model() -> Mixtral:
    config = MixtralConfig.from_json(json.loads((DEMO / "config.json").read_text()))
    return build(config, load_file(DEMO / "model.safetensors").__getitem__, torch.float32, CPU)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    template = template_for("mixtral", Tokenizer(DEMO))
    asked = ["What is the total?", "Return all fields as JSON.", "Who is the vendor?", "Hello"]
    contexts = [{"vendor": f"Acme {n}", "total": f"{n}3.{n}0", "due_date": f"2026-12-0{n}"} for n in range(1, 7)]
    return [template.encode(prompt, context) for prompt in asked for context in contexts]


def engine(
    model: Mixtral, *, num_blocks: int = 256, max_step_tokens: int = 64, max_running: int = 16, mode: str = "in turn"
) -> Engine:
    pool = BlockPool(num_blocks, BLOCK_SIZE)
    pools = make_pools(model.config, PoolSize(num_blocks, "test"), torch.float32, CPU)
    for tensor in pools:
        tensor.fill_(float("nan"))  # what is read before it is written shows
    scheduler = Scheduler(pool, max_step_tokens=max_step_tokens, max_running=max_running)
    made = Engine(model, pools, scheduler, **MODES[mode])
    while made.rest():
        pass
    return made


def run(it: Engine) -> None:
    while it.step() or it.scheduler.running:
        pass
    it.scheduler.check()


def alone(model: Mixtral, like: Sequence) -> list[int]:
    """What a sequence says by itself; its grammar is named by its id."""
    twin = Sequence("alone", like.prompt_ids, like.max_tokens, like.sampling, like.seed, like.stop_ids)
    twin.grammar = GRAMMARS.compile(like.request_id) if like.grammar else None
    it = engine(model, max_step_tokens=4096)
    it.scheduler.add(twin)
    run(it)
    return twin.output_ids


def some(dice: random.Random, prompts: list[list[int]], number: int) -> Sequence:
    drawn = Sampling(
        temperature=dice.choice([0.3, 1.0, 2.0]),
        top_p=0.9,
        top_k=dice.choice([0, 5, 50]),
        repetition_penalty=1.1,
        seed=0,
        min_tokens=dice.choice([0, 0, 20]),
        frequency_penalty=dice.choice([0, 0.5]),
        presence_penalty=dice.choice([0, -0.5]),
        logit_bias=((dice.randrange(300, 700), 3.0),),
        num_logprobs=dice.choice([None, 0, 2]),
    )
    schema = dice.choice([None, *SCHEMAS])
    name = json.dumps(narrow(schema)) if schema else str(number)
    return Sequence(
        request_id=name,
        grammar=GRAMMARS.compile(name) if schema else None,
        prompt_ids=dice.choice(prompts),
        max_tokens=dice.randint(1, 40),
        sampling=dice.choice([GREEDY, drawn]),
        seed=dice.randrange(2**63),
        stop_ids=frozenset([EOS]),
        salt=dice.choice([b"", b"key"]),
    )


@pytest.mark.parametrize("seed", range(int(os.environ.get("ZOPILOT_GPU_MIXES", "12"))))
def test_in_any_mix_a_sequence_says_what_it_says_alone(model: Mixtral, prompts: list[list[int]], seed: int) -> None:
    """Eight sequences each, arriving and leaving at random, on a pool so small that they are preempted, in each mode."""
    dice = random.Random(seed)
    mode = list(MODES)[seed % len(MODES)]
    sizes = {"num_blocks": dice.randint(12, 30), "max_step_tokens": dice.randint(9, 90), "max_running": dice.randint(2, 12)}
    it = engine(model, **sizes, mode=mode)
    coming = [some(dice, prompts, number) for number in range(8)]
    sequences, aborted = list(coming), list[Sequence]()
    while coming or it.scheduler.running or it.scheduler.waiting:
        if coming and dice.random() < 0.5:
            it.scheduler.add(coming.pop())
        if it.scheduler.running and dice.random() < 0.02:
            aborted.append(dice.choice(it.scheduler.running))
            it.scheduler.remove(aborted[-1])
        it.step()
    it.scheduler.check()
    assert it.scheduler.pool.num_available == it.scheduler.pool.num_blocks
    for one in sequences:
        expected = alone(model, one)
        assert one.output_ids == (expected[: len(one.output_ids)] if one in aborted else expected)


def test_greedy_text_equals_the_plain_runners(model: Mixtral, prompts: list[list[int]]) -> None:
    plain = CausalLM(locate("demo"), Device("cpu", "test"), lambda *_: None)
    for prompt in prompts[:8]:
        said: list[int] = []
        plain.continue_ids(prompt, 60, GREEDY, said.append, lambda: False)
        assert alone(model, Sequence("twin", prompt, 60, stop_ids=frozenset([EOS]))) == said


@pytest.mark.parametrize("schema", SCHEMAS)
def test_greedy_text_under_a_schema_equals_the_plain_runners(
    model: Mixtral, prompts: list[list[int]], schema: dict[str, Any]
) -> None:
    plain = CausalLM(locate("demo"), Device("cpu", "test"), lambda *_: None)
    text = json.dumps(narrow(schema))
    for prompt in prompts[:24:5]:
        said: list[int] = []
        plain.continue_ids(prompt, 60, GREEDY, said.append, lambda: False, grammar=GRAMMARS.compile(text))
        one = Sequence(text, prompt, 60, stop_ids=frozenset([EOS]), grammar=GRAMMARS.compile(text))
        assert [token for token in alone(model, one) if token != EOS] == [token for token in said if token != EOS]


def test_a_grammar_that_fails_ends_its_sequence_alone(model: Mixtral, prompts: list[list[int]]) -> None:
    it = engine(model)
    text = json.dumps(narrow({"type": "object"}))
    failing, other = (
        Sequence(text, prompt, 30, stop_ids=frozenset([EOS]), grammar=GRAMMARS.compile(text)) for prompt in prompts[:2]
    )
    free = Sequence("free", prompts[2], 30, stop_ids=frozenset([EOS]))
    for one in (failing, other, free):
        it.scheduler.add(one)
    drawn = it.step() + it.step()
    assert failing.grammar
    failing.grammar.matcher.consume_token(EOS)  # an error state, as after a limit
    while it.scheduler.running:
        drawn += it.step()
    assert {one.sequence: one.finish for one in drawn if one.finish} == {failing: "broken", other: "stop", free: "stop"}
    assert [other.output_ids, free.output_ids] == [alone(model, other), alone(model, free)]
    it.scheduler.check()


def test_bias_penalties_and_log_probabilities_equal_the_plain_runners(model: Mixtral, prompts: list[list[int]]) -> None:
    plain = CausalLM(locate("demo"), Device("cpu", "test"), lambda *_: None)
    how = replace(GREEDY, frequency_penalty=2.0, presence_penalty=-9.0, logit_bias=((350, 14.0), (EOS, -100.0)), num_logprobs=3)
    for prompt in prompts[:4]:
        said: list[int] = []
        expected: list[Score] = []
        scores = Scores(3)

        def take(token: int, said: list[int] = said, expected: list[Score] = expected, scores: Scores = scores) -> None:
            said.append(token)
            expected.append(scores.of(token))

        plain.continue_ids(prompt, 40, how, take, lambda: False, scores=scores)
        one = Sequence("twin", prompt, 40, how, stop_ids=frozenset([EOS]))
        it = engine(model)
        it.scheduler.add(one)
        told: list[Score] = []
        while it.scheduler.running or it.scheduler.waiting:
            told += [score for drawn in it.step() for score in drawn.scores or ()]
        assert one.output_ids == said != alone(model, Sequence("plain", prompt, 40, stop_ids=frozenset([EOS])))
        for got, wanted in zip(told, expected, strict=True):
            assert got.token_id == wanted.token_id
            assert len(got.top) == len(wanted.top) == 3
            for token, logprob in (*got.top[:1], (got.token_id, got.logprob)):  # the plain runner computes in bf16
                known = dict(wanted.top) | {wanted.token_id: wanted.logprob}
                assert math.exp(known[token]) == pytest.approx(math.exp(logprob), abs=0.25)


def test_logits_that_are_no_numbers_end_their_sequence_alone(model: Mixtral, prompts: list[list[int]]) -> None:
    it = engine(model)
    healthy, sick = (
        Sequence(name, prompt, 30, stop_ids=frozenset([EOS])) for name, prompt in zip("ab", prompts[:2], strict=True)
    )
    it.scheduler.add(healthy)
    it.scheduler.add(sick)
    drawn = it.step() + it.step()
    for pool in it._pools:
        pool[:, sick.block_ids[0]] = float("nan")
    while it.scheduler.running:
        drawn += it.step()
    assert [(one.sequence, one.finish) for one in drawn if one.finish] == [(sick, "broken"), (healthy, "stop")]
    assert healthy.output_ids == alone(model, healthy)


def test_the_pool_is_as_large_as_asked_or_as_fits(model: Mixtral) -> None:
    assert pool_size(model.config, torch.float32, CPU, max_tokens=1000).num_tokens == 1008
    fitting = pool_size(model.config, torch.float32, CPU, max_tokens=10**9)
    assert fitting.num_tokens * model.config.kv_bytes_per_token(4) <= 256 * 1024**2
    assert "MiB" in fitting.reason


async def collect(mailbox: Mailbox) -> list[int] | ServiceError:
    tokens = []
    while True:
        letter = await asyncio.wait_for(mailbox.arrived.get(), 120)
        if isinstance(letter, ServiceError):
            return letter
        tokens += letter.token_ids
        if letter.finish:
            return tokens


@pytest.mark.parametrize("mode", ["in turn", "ahead and filled up"])
async def test_the_loop_carries_tokens_to_whom_they_belong(model: Mixtral, prompts: list[list[int]], mode: str) -> None:
    loop = EngineLoop(engine(model, mode=mode), asyncio.get_running_loop())
    sequences = [Sequence(str(n), prompt, 20, stop_ids=frozenset([EOS])) for n, prompt in enumerate(prompts)]
    answers = await asyncio.gather(*(collect(loop.submit(one)) for one in sequences))
    assert answers == [alone(model, one) for one in sequences]
    assert loop.stalled_s < 10
    await loop.close()


@pytest.mark.parametrize("mode", ["in turn", "ahead and filled up"])
async def test_aborts_deadlines_and_the_end_free_everything(model: Mixtral, prompts: list[list[int]], mode: str) -> None:
    it = engine(model, mode=mode)
    loop = EngineLoop(it, asyncio.get_running_loop())
    aborted = loop.submit(Sequence("aborted", prompts[0], 10**4 // 4))
    assert isinstance(await asyncio.wait_for(aborted.arrived.get(), 120), Drawn)
    loop.abort(aborted)
    late = loop.submit(Sequence("late", prompts[1], 2000, deadline_s=time.monotonic() + 0.2))
    assert isinstance(await collect(late), DeadlineExceeded)
    assert it.scheduler.running == []
    assert aborted.sequence.num_computed == 0
    left = loop.submit(Sequence("left", prompts[2], 2000))
    await asyncio.wait_for(left.arrived.get(), 120)
    await loop.close()
    assert isinstance(await collect(left), ShuttingDown)
    it.scheduler.check()


@pytest.mark.parametrize("mode", ["in turn", "ahead and filled up"])
async def test_a_step_that_fails_ends_what_is_in_flight_and_the_engine_goes_on(
    model: Mixtral, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    it = engine(model, mode=mode)
    loop = EngineLoop(it, asyncio.get_running_loop())
    doomed = loop.submit(Sequence("doomed", prompts[0], 2000))
    await asyncio.wait_for(doomed.arrived.get(), 120)
    with monkeypatch.context() as patch:
        patch.setattr(it, "_forward", lambda *_: 1 / 0)
        assert isinstance(await collect(doomed), InternalError)
    after = Sequence("after", prompts[1], 20, stop_ids=frozenset([EOS]))
    assert await collect(loop.submit(after)) == alone(model, after)
    await loop.close()
    it.scheduler.check()
