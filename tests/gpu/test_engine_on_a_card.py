"""The engine on a card: graphs give the bits of the steps that they hold, and nothing waits where nothing should.

What both sides of a comparison share is the sizes of their steps: kernels and cuBLAS round differently for other sizes, and a
model of random weights has near ties.
"""

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.test_on_a_card import CONFIG, device, models
from zopilot_gpu.engine import chained, graphs, inputs, sampler
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.engine import Engine
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools, pool_size
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.seats import Seats
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.warmup import warm_up
from zopilot_gpu.events import GREEDY, Sampling
from zopilot_gpu.model import nf4, reference
from zopilot_gpu.model.checkpoint import Checkpoint
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import build_packed, choose_kernels, is_quantised

DRAWN = Sampling(temperature=0.7, top_p=0.9, top_k=50, repetition_penalty=1.1, seed=0)
WAYS = [GREEDY, DRAWN, replace(DRAWN, top_k=0), replace(DRAWN, logit_bias=((7, 2.0),), min_tokens=3)]
__all__ = ["device"]  # a fixture


@pytest.fixture(scope="module")
def three(device: torch.device) -> tuple[Mixtral, Mixtral, Mixtral]:
    """By kernels, plain in bf16, plain in float32."""
    return models(device)


def engine(model: Mixtral, *, num_blocks: int = 200, max_running: int = 16, max_step_tokens: int = 96, **how: Any) -> Engine:
    """With all forms captured, on pools in which what is read before it is written shows."""
    scheduler = Scheduler(BlockPool(num_blocks, BLOCK_SIZE), max_step_tokens=max_step_tokens, max_running=max_running)
    like = model.embedding
    pools = make_pools(model.config, PoolSize(num_blocks, "test"), like.dtype, like.device)
    for pool in pools:
        pool.fill_(float("nan"))
    made = Engine(model, pools, scheduler, max_context=1024, **how)
    while made.rest():
        pass
    return made


def mix(seed: int, count: int = 12) -> list[Sequence]:
    dice = random.Random(seed)
    return [
        Sequence(
            str(number),
            [dice.randrange(CONFIG.vocab_size) for _ in range(dice.randint(1, 120))],
            dice.randint(1, 60),
            dice.choice(WAYS),
            seed=dice.randrange(2**63),
            stop_ids=frozenset([3, 4]),
            salt=dice.choice([b"", b"key"]),
        )
        for number in range(count)
    ]


def run(it: Engine, sequences: list[Sequence], seed: int = 0) -> list[list[int]]:
    """What they say, arriving at random."""
    dice, coming = random.Random(seed), list(sequences)
    while coming or it.scheduler.running or it.scheduler.waiting:
        if coming and dice.random() < 0.3:
            it.scheduler.add(coming.pop())
        it.step()
    it.scheduler.check()
    assert it.scheduler.pool.num_available == it.scheduler.pool.num_blocks
    return [one.output_ids for one in sequences]


def form_of(model: Mixtral, capture: Callable[[graphs.Run], graphs.Run], rows: int, fill: int) -> tuple[graphs.Form, Any, Any]:
    """A form for `rows` sequences, filled with numbers for `fill`; its pools, full of something; and what must live as long."""
    where = model.embedding.device
    generator = torch.Generator(where).manual_seed(5)
    pools = make_pools(CONFIG, PoolSize(fill * 20, "test"), torch.bfloat16, where)
    for pool in pools:
        pool.copy_(torch.randn(pool.shape, generator=generator, device=where))
    seats = Seats(rows, CONFIG.vocab_size, where)
    everyone = torch.arange(rows, device=where)
    seats.take([], everyone, everyone * 3 % CONFIG.vocab_size)
    forms = graphs.Forms(model, pools, seats, rows, 64, capture)
    while forms.capture_next():
        pass
    form = forms.find(rows, 20)
    assert form
    host = torch.zeros(form.memory.numel(), dtype=torch.uint8, pin_memory=True)
    views, dice = inputs.on_host(host, form.sizes), random.Random(rows)
    for row in range(fill):
        position = dice.randrange(300)
        views.token_ids[row], views.feeds[row] = dice.choice([-1, row]), row
        views.positions[row] = position
        views.tables[row, :20] = range(row * 20, row * 20 + 20)
        views.slots[row] = row * 20 * BLOCK_SIZE + position
    inputs.pad_rows(views, fill, fill * 20)
    form.memory.copy_(host, non_blocking=True)
    return form, pools, forms  # a graph reads the seats that the forms hold


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 8, 16, 48, 96])
def test_a_graph_gives_the_bits_of_the_step_and_writes_where_it_does(
    three: tuple[Mixtral, Mixtral, Mixtral], device: torch.device, rows: int
) -> None:
    fill = max(1, rows - 3)
    (graph, its, _its_forms), (plain, theirs, _their_forms) = (
        form_of(three[0], capture, rows, fill) for capture in (graphs.capture_graphs(three[0]), graphs.twin)
    )
    before = [pool.clone() for pool in its]
    for _ in range(20):  # however the kernels of a chain overlap
        graph.replay()
        plain.replay()
        assert torch.equal(graph.logits, plain.logits)
        assert graph.logits.isfinite().all()
    own = torch.zeros(fill * 20 + 1, BLOCK_SIZE, dtype=torch.bool, device=device)
    own.view(-1)[graph.views.slots] = True
    for pool, other, was in zip(its, theirs, before, strict=True):
        assert torch.equal(pool[:, :-1], other[:, :-1])  # making a graph writes to the padding block
        assert torch.equal(pool[:, ~own], was[:, ~own])  # each row's own token, and the padding block


@torch.inference_mode()
@pytest.mark.parametrize("rows", [1, 2, 48, 96])
def test_kernels_that_wait_are_chained_where_the_card_can(
    three: tuple[Mixtral, Mixtral, Mixtral], device: torch.device, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    waiting, seen = three[0].parts.waiting(device), list[list[int]]()
    assert bool(waiting) == (torch.cuda.get_device_capability(device) >= (9, 0))

    def chain(stream: int, names: frozenset[str]) -> int:
        made = chained.chain(stream, names)
        seen.append([made, *(data.type for _, _, data in chained.edges_of(chained.captured(stream)))])
        return made

    monkeypatch.setattr(graphs, "chain", chain)
    form, _pools, _forms = form_of(three[0], graphs.capture_graphs(three[0]), rows, rows)
    form.replay()
    assert form.logits.isfinite().all()
    assert bool(seen) == bool(waiting)
    for made, *kinds in seen:
        assert made == sum(kinds) >= 7 * CONFIG.num_layers, (made, kinds)
        assert len(kinds) - made < 20  # torch's own, before the layers and after them


@torch.inference_mode()
def test_a_graph_that_can_not_be_chained_is_captured_without(
    three: tuple[Mixtral, Mixtral, Mixtral], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[int]()

    def chain(stream: int, names: frozenset[str]) -> int:
        tried.append(stream)
        raise RuntimeError("a graph has lost its order")

    monkeypatch.setattr(graphs, "chain", chain)
    (graph, _its, _its_forms), (plain, _theirs, _their_forms) = (
        form_of(three[0], capture, 4, 4) for capture in (graphs.capture_graphs(three[0]), graphs.twin)
    )
    graph.replay()
    plain.replay()
    assert torch.equal(graph.logits, plain.logits)
    assert len(tried) == bool(three[0].parts.waiting(device))  # not again for the next forms


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("num_blocks", [200, 30])
def test_with_graphs_everyone_says_what_they_say_without(
    three: tuple[Mixtral, Mixtral, Mixtral], seed: int, num_blocks: int
) -> None:
    """Greedy and drawn, arriving at random; on the small pool they are preempted."""
    said = [
        run(engine(three[0], num_blocks=num_blocks, decode=decode), mix(seed), seed) for decode in ("graphs", "twins", "graphs")
    ]
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("seed", range(4))
def test_ahead_of_the_host_everyone_says_what_they_say_in_turn(three: tuple[Mixtral, Mixtral, Mixtral], seed: int) -> None:
    """In float32, where the sizes of steps, which differ here, decide nothing."""
    said = [
        run(engine(three[2], num_blocks=40, steps_ahead=ahead, decode=decode), mix(seed), seed)
        for ahead, decode in ((False, "plain"), (True, "plain"), (True, "twins"))
    ]
    assert said[0] == said[1] == said[2]


@pytest.mark.parametrize("how", WAYS)
def test_no_step_waits_for_the_device(three: tuple[Mixtral, Mixtral, Mixtral], how: Sampling) -> None:
    """Torch raises at what it knows to wait; the one wait of a step is for an event, which it does not count."""
    it = engine(three[0])
    for number in range(3):
        it.scheduler.add(Sequence(str(number), [number + 5, 9, 10], 40, how, seed=number))
    it.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        it.scheduler.add(Sequence("late", [11, 12, 13, 14], 40, how, seed=9))
        for _ in range(20):
            it.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    run(it, [])


def test_a_sequence_of_no_numbers_ends_alone(three: tuple[Mixtral, Mixtral, Mixtral]) -> None:
    it = engine(three[0])
    healthy, sick = (Sequence(name, [5, 6, 7], 40, salt=name.encode()) for name in "ab")
    it.scheduler.add(healthy)
    it.scheduler.add(sick)
    drawn = it.step() + it.step()
    for pool in it._pools:
        pool[:, sick.block_ids[0]] = float("nan")
    while it.scheduler.running:
        drawn += it.step()
    assert {one.sequence.request_id: one.finish for one in drawn if one.finish} == {"a": "length", "b": "broken"}
    assert len(healthy.output_ids) == 40


@torch.inference_mode()
@pytest.mark.parametrize("vocab_size", [500, 32_000])
def test_draws_are_the_same_alone_in_a_batch_and_on_the_cpu(device: torch.device, vocab_size: int) -> None:
    """The last but for float32's rounding: softmax is the device's."""
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(48, vocab_size, generator=generator) * 4).bfloat16().float()
    everyone = [Sequence(str(row), [row], 9, WAYS[row % 3], seed=row) for row in range(48)]

    def draw(rows: list[int], where: torch.device) -> list[int]:
        sequences = [everyone[row] for row in rows]
        many = [row for row, one in enumerate(sequences) if sampler.draws_from_many(one.sampling)]
        few = any(sampler.draws_from_few(one.sampling) for one in sequences)
        parameters = torch.from_numpy(sampler.parameters(sequences)).to(where)
        made = sampler.Rows(parameters, any_few=few, many=torch.tensor(many, device=where) if many else None)
        tokens: list[int] = sampler.sample(logits[rows].to(where), made).tolist()
        return tokens

    alone = [draw([row], device)[0] for row in range(48)]
    for seed in range(5):
        rows = random.Random(seed).sample(range(48), 10 * seed + 5)
        assert draw(rows, device) == [alone[row] for row in rows]
    theirs = draw(list(range(48)), torch.device("cpu"))
    assert sum(mine != other for mine, other in zip(alone, theirs, strict=True)) <= 1


def test_the_pool_leaves_room_for_what_steps_need(three: tuple[Mixtral, Mixtral, Mixtral], device: torch.device) -> None:
    measured = warm_up(three[0], torch.bfloat16, max_rows=128, max_step_tokens=2048, max_blocks=64)
    assert measured.step_bytes > 2048 * CONFIG.hidden_size * 2
    assert measured.decode_bytes > 128 * CONFIG.vocab_size * 4
    free = torch.cuda.mem_get_info(device)[0]
    size = pool_size(CONFIG, torch.bfloat16, device, max_tokens=10**12, reserved_bytes=measured.reserved_bytes)
    taken = size.num_tokens * CONFIG.kv_bytes_per_token()
    assert free // 2 < taken < free - measured.reserved_bytes


def wide_demo(where: torch.device, dtype: torch.dtype, *, dequantise: bool) -> Mixtral:
    """The demo model with its experts widened by zeros from 192 to 256, so that they are whole tiles for the kernels."""
    from safetensors.torch import load_file

    directory = Path(__file__).parents[2] / "zopilot_gpu/demo/model"
    config = MixtralConfig.from_json(json.loads((directory / "config.json").read_bytes()))
    tensors = load_file(directory / "model.safetensors")
    full = reference.weights(config, Checkpoint(config, tensors.__getitem__, torch.device("cpu")))
    more = 256 - config.intermediate_size
    packed = dict[str, torch.Tensor]()
    for name, values in full.items():
        if name.endswith("w13"):
            halves = values.view(config.num_experts, 2, config.intermediate_size, -1)
            wide = torch.nn.functional.pad(halves, (0, 0, 0, more)).flatten(1, 2)
        else:
            wide = torch.nn.functional.pad(values, (0, more)) if name.endswith("w2") else values
        if is_quantised(name):
            made = nf4.join([nf4.quantise(wide.bfloat16().reshape(-1, wide.shape[-1]))], tuple(wide.shape))
            assert isinstance(made.absmax, torch.Tensor)
            packed |= {f"{name}.packed": made.packed.to(where), f"{name}.absmax": made.absmax.to(where)}
        else:
            packed[name] = wide.bfloat16().to(where)
    config = replace(config, intermediate_size=256)
    return build_packed(config, packed.__getitem__, dtype, where, dequantise=dequantise)


# "What is the total?" and {"vendor": "Acme 1", "total": "13.10"} in Mixtral's template, by the demo's tokenizer; 275 is "0".
QUESTION = [
    *(1, 427, 600, 391, 483, 391, 424, 391, 496, 290, 259, 259, 431, 285, 259, 409, 782, 395, 292, 326, 445, 391, 276, 396),
    *(496, 395, 276, 278, 273, 276, 275, 413, 428),
]


def with_other_digits(dice: random.Random) -> list[int]:
    return [dice.randrange(275, 285) if 275 <= token < 285 else token for token in QUESTION]


def test_a_captured_engine_says_what_the_plain_model_says(device: torch.device) -> None:
    """Greedy text of the demo model: by kernels and graphs on the card, and plainly in float32 on the CPU."""
    kernels = wide_demo(device, torch.bfloat16, dequantise=False)
    assert choose_kernels(kernels.config, torch.bfloat16, device)[0]
    plain = wide_demo(torch.device("cpu"), torch.float32, dequantise=True)
    dice = random.Random(3)
    prompts = [with_other_digits(dice) for _ in range(12)]
    said = []
    for model in (kernels, plain):
        sequences = [Sequence(str(n), prompt, 24, stop_ids=frozenset([2])) for n, prompt in enumerate(prompts)]
        said.append(run(engine(model), sequences))
    assert len({tuple(one) for one in said[1]}) > 6
    assert said[0] == said[1]
