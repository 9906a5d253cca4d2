"""Every schema that is taken is kept, whatever the model: random weights, hundreds of schemas, independent validators.

`ZOPILOT_GPU_SCHEMA_SEEDS=10 python -m pytest tests/twins/test_schemas.py -s` for the long run; one seed by default.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import jsonschema
import jsonschema_rs
import pytest
import torch
from jsonschema.validators import extend
from transformers import MixtralForCausalLM
from transformers.models.mixtral import MixtralConfig as HuggingFaceConfig

from runners.grammars import Grammars
from tests.twins.schemas import all_schemas
from zopilot_gpu.api import json_schema
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.engine import Drawn, Engine
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import InvalidRequest, OutputInvalid
from zopilot_gpu.events import Done, Sampling, Usage
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import build
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.tokenizer import Tokenizer

NUM_SEEDS = int(os.environ.get("ZOPILOT_GPU_SCHEMA_SEEDS", "1"))
MAX_TOKENS = 400
CPU = torch.device("cpu")
EOS = 2
SCHEMAS = all_schemas()
PROMISED = {"date", "time", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
FORMATS = jsonschema.FormatChecker((PROMISED - {"time"}) & set(jsonschema.FormatChecker.checkers))
OTHERS = {name: lambda _: True for name in ("regex", "idn-email")}
SAMPLING = Sampling(temperature=1, top_p=1, top_k=0, repetition_penalty=1, seed=0)


class Closing:
    """A Mixtral that knows nothing but likes to come to an end: quotes and brackets weigh more."""

    def __init__(self, model: Mixtral, tokenizer: Tokenizer) -> None:
        self._model = model
        closes = [any(mark in tokenizer.decode([token]) for mark in '"]}') for token in range(model.config.vocab_size)]
        self._bias = torch.tensor(closes) * 3.5

    def __getattr__(self, name: str) -> Any:
        """All else is the model's."""
        return getattr(self._model, name)

    def forward(self, batch: Batch, pools: list[torch.Tensor]) -> torch.Tensor:
        return self._model.forward(batch, pools) + self._bias


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(locate("demo").directory)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Any:
    return random_model(tokenizer)


def random_model(tokenizer: Tokenizer) -> Any:
    """A Mixtral of random weights for the demo model's tokenizer, tiny and fast."""
    torch.manual_seed(14)
    sizes = HuggingFaceConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=1024,
    )
    weights = {name: tensor.clone() for name, tensor in MixtralForCausalLM(sizes).state_dict().items()}
    weights["lm_head.weight"] *= 20  # so that the state matters
    return Closing(build(MixtralConfig.from_json(sizes.to_dict()), weights.__getitem__, torch.float32, CPU), tokenizer)


def engine(model: Mixtral) -> Engine:
    pool = BlockPool(4096, BLOCK_SIZE)
    pools = make_pools(model.config, PoolSize(4096, "test"), torch.float32, CPU)
    return Engine(model, pools, Scheduler(pool, max_step_tokens=1024, max_running=128))


async def accepted(grammars: Grammars, refused: Counter[str]) -> dict[str, str]:
    """The texts of the schemas that are taken; why the others are not goes into `refused`."""
    taken = {}
    for name, schema in SCHEMAS.items():
        try:
            taken[name] = json_schema.read(schema)
            await grammars.of(taken[name])
        except InvalidRequest as refusal:
            taken.pop(name, None)
            refused[re.sub(r"[0-9,]{2,}|(?<=: )\".*?\"|/.*/", "...", refusal.message.removeprefix("json_schema: "))[:60]] += 1
    return taken


def generate(it: Engine) -> Iterator[Drawn]:
    while it.scheduler.running or it.scheduler.waiting:
        yield from (drawn for drawn in it.step() if drawn.finish)


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")  # Python's, of a pattern in ECMA's dialect
async def test_what_ends_by_itself_is_valid_for_every_validator(model: Any, tokenizer: Tokenizer) -> None:
    grammars = Grammars(tokenizer, 1024, [EOS])
    refused: Counter[str] = Counter()
    taken = await accepted(grammars, refused)
    counts: Counter[str] = Counter()
    invalid: list[tuple[str, str]] = []
    for seed in range(NUM_SEEDS):
        it = engine(model)
        for name, text in taken.items():
            prompt = tokenizer.encode(f"{name} {seed}")
            sequence = Sequence(name, prompt, MAX_TOKENS, SAMPLING, seed, frozenset([EOS]), grammar=await grammars.of(text))
            it.scheduler.add(sequence)
        for drawn in generate(it):
            name, ids = drawn.sequence.request_id, drawn.sequence.output_ids
            said = tokenizer.decode([token for token in ids if token != EOS])
            counts[str(drawn.finish)] += 1
            if drawn.finish == "broken" or (drawn.finish == "stop" and not is_valid(taken[name], said)):
                invalid.append((name, said))
    print(*(f"\n{json.dumps(SCHEMAS[name])} {said!r}" for name, said in invalid))  # noqa: T201
    summary = f"{len(SCHEMAS)} schemas, {NUM_SEEDS} seeds: {len(taken)} taken, {dict(counts)}, {len(invalid)} invalid"
    print(f"\n{summary}; refused {sum(refused.values())}:", *refused.most_common(), sep="\n  ")  # noqa: T201
    assert invalid == []
    assert len(taken) > 300
    assert counts["stop"] > counts["length"] * 5


def is_valid(schema: str, said: str) -> bool:
    """By our own check, by jsonschema-rs as it is, and by jsonschema."""
    try:
        value = json_schema.conform(said, schema, Done("stop", Usage(0, 0, 0)))
    except OutputInvalid:
        return False
    dialect = json.loads(schema).get("$schema")
    rust: Any = jsonschema_rs.Draft202012Validator if dialect is None else jsonschema_rs.Draft7Validator
    python: Any = _PYTHON[dialect]
    try:
        says = python(json.loads(schema), format_checker=FORMATS).is_valid(value)
    except re.error:  # a pattern that Python's dialect has not
        says = True
    return bool(says) and bool(rust(json.loads(schema), formats=OTHERS, validate_formats=True, offline=True).is_valid(value))


def _multiple_of(_: Any, step: float, value: Any, __: Any) -> Iterator[jsonschema.ValidationError]:
    """As decimals: 0.3 is a multiple of 0.1."""
    if isinstance(value, int | float) and not isinstance(value, bool) and Decimal(str(value)) % Decimal(str(step)):
        yield jsonschema.ValidationError(f"{value} is no multiple of {step}")


_PYTHON = {
    None: extend(jsonschema.Draft202012Validator, {"multipleOf": _multiple_of}),  # type: ignore[no-untyped-call]
    "http://json-schema.org/draft-07/schema#": extend(jsonschema.Draft7Validator, {"multipleOf": _multiple_of}),  # type: ignore[no-untyped-call]
}
