"""Schemas that mean harm cost little, reach nobody else, and leave nothing behind.

`ZOPILOT_GPU_UNIQUE_SCHEMAS=10000 python -m pytest tests/faults/test_schema_bombs.py -s` for the long run.
"""

import gc
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from runners.grammars import Grammars
from tests.conftest import ROOT
from tests.faults.bombs import BOMBS
from tests.twins.test_schemas import EOS, SAMPLING, engine, random_model
from zopilot_gpu.api import json_schema
from zopilot_gpu.engine.grammar import Grammar
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.tokenizer import Tokenizer

NUM_UNIQUE = int(os.environ.get("ZOPILOT_GPU_UNIQUE_SCHEMAS", "1000"))
MiB = 1024**2
MOST_S, MOST_MIB = 3, 64  # of CPU: 0.4 s where nothing else fights for caches and cores


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(locate("demo").directory)


async def take(schema: dict[str, Any], grammars: Grammars) -> Grammar | InvalidRequest:
    try:
        return await grammars.of(json_schema.read(schema)) or pytest.fail("no grammar")
    except InvalidRequest as refusal:
        return refusal


def peak_bytes() -> int:
    """The largest resident size since it was last asked for."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


async def test_each_bomb_is_refused_or_followed_for_little(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, 1024, [EOS])
    model = random_model(tokenizer)
    costs, refused, broken, over = [], 0, [], []
    for name, make in BOMBS.items():
        schema = make()
        it = engine(model)
        gc.collect()
        peak_bytes()
        before, began_s = psutil.Process().memory_info().rss, time.process_time()
        grammar = await take(schema, grammars)
        if isinstance(grammar, InvalidRequest):
            assert grammar.status == 422
            refused += 1
        else:
            sequence = Sequence(name, [1, 100], 64, SAMPLING, 1, frozenset([EOS]), grammar=grammar)
            it.scheduler.add(sequence)
            broken += [name for _ in range(64) for drawn in it.step() if drawn.finish == "broken"]
        cost_s, grown = time.process_time() - began_s, (peak_bytes() - before) / MiB
        costs.append((cost_s, grown, name))
        if cost_s > MOST_S or grown > MOST_MIB:
            over.append((name, cost_s, grown))
    slowest, largest = max(costs), max(costs, key=lambda cost: cost[1])
    print(f"\nslowest {slowest}, largest {largest}")  # noqa: T201
    print(f"\n{len(BOMBS)} bombs: {refused} refused, {len(broken)} ended by a limit {broken}, over {over}")  # noqa: T201
    assert over == []


async def test_bombs_in_the_batch_do_not_change_what_another_says(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, 1024, [EOS])
    model = random_model(tokenizer)

    def bystander() -> Sequence:
        return Sequence("bystander", [1, 7, 7], 150, SAMPLING, 3)

    alone = engine(model)
    expected = bystander()
    alone.scheduler.add(expected)
    while alone.step():
        pass
    taken = {name: await take(make(), grammars) for name, make in BOMBS.items()}
    it = engine(model)
    other = bystander()
    it.scheduler.add(other)
    for name, grammar in taken.items():
        if isinstance(grammar, Grammar):
            it.scheduler.add(Sequence(name, [1, 100], 64, SAMPLING, 2, frozenset([EOS]), grammar=grammar))
    slowest_s = 0.0
    while it.scheduler.running or it.scheduler.waiting:
        began_s = time.thread_time()
        it.step()
        slowest_s = max(slowest_s, time.thread_time() - began_s)
    print(f"\n{it.num_steps} steps, slowest {slowest_s:.2f} s of CPU")  # noqa: T201
    assert len(other.output_ids) == 150
    assert other.output_ids == expected.output_ids
    assert slowest_s < MOST_S


async def test_unique_schemas_leave_nothing_behind(tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, 1024, [EOS])

    async def send(first: int, count: int) -> None:
        for n in range(first, first + count):
            fields = {f"field {n} {m}": {"type": "string", "pattern": f"^[a-z]{{{n % 9}}}{n}$"} for m in range(5)}
            assert isinstance(await take({"type": "object", "properties": fields}, grammars), Grammar)

    await send(0, 300)
    before = psutil.Process().memory_info().rss
    await send(300, NUM_UNIQUE)
    grown = (psutil.Process().memory_info().rss - before) / MiB
    print(f"\n{NUM_UNIQUE} unique schemas: {grown:.1f} MiB")  # noqa: T201
    assert grown < 16


_OVERFLOW = """
import asyncio, json
from runners.grammars import Grammars
from zopilot_gpu.api import json_schema
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.tokenizer import Tokenizer
from tests.faults.test_schema_bombs import deep
grammars = Grammars(Tokenizer(locate("demo").directory), 1024, [2])
for keyword in ("items", "additionalProperties", "anyOf", "allOf", "prefixItems"):
    try:
        asyncio.run(grammars.of(json_schema.read(json.loads(deep(keyword)))))
        print(keyword, "taken")
    except Exception as error:
        print(keyword, type(error).__name__, getattr(error, "message", error))
print("alive")
"""


def deep(keyword: str) -> str:
    """As deep as the limits let references lead: 200 of them, with 14 levels between each two."""
    levels = 14
    opening, closing = (
        (f'{{"{keyword}":[', "]}") if keyword[-2:] == "Of" or keyword == "prefixItems" else (f'{{"{keyword}":', "}")
    )
    links = [f'"{n}":{opening * levels}{{"$ref":"#/$defs/{n + 1}"}}{closing * levels}' for n in range(199)]
    return f'{{"$ref":"#/$defs/0","$defs":{{{",".join(links)},"199":{{"type":"null"}}}}}}'


def test_no_schema_within_the_limits_overflows_the_stack() -> None:
    run = subprocess.run([sys.executable, "-c", _OVERFLOW], cwd=ROOT, capture_output=True, text=True, timeout=120)
    print(run.stdout)  # noqa: T201
    assert run.stdout.endswith("alive\n"), (run.returncode, run.stderr[-500:])
