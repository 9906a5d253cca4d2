"""What fewer bits for keys and values cost: the demo model with a KV pool in float32, bf16 and fp8, all else in float32.

Knows held-out questions; says of each pool how many answers are right, how many are the very text that float32 gives, and how far
the logits are from float32's where the model reads the right answer. No GPU: the pool's values are what a GPU would have.

Try it: `python -m benchmarks.kv_quality --questions 200`.
"""

import json
from collections.abc import Sequence as Rows
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from runners.weights import load_source
from zopilot_gpu.demo import MODEL
from zopilot_gpu.demo.batches import Encoder
from zopilot_gpu.demo.questions import held_out_set
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.engine import Engine
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float8_e4m3fn)
_BLOCKS = 64 * 64  # 64 sequences of at most 1,024 tokens
Pairs = Rows[tuple[list[int], list[int]]]  # a prompt and its right answer


def say(model: Mixtral, pairs: Pairs, dtype: torch.dtype) -> list[list[int]]:
    """The greedy answer to each prompt."""
    scheduler = Scheduler(BlockPool(_BLOCKS, BLOCK_SIZE), max_step_tokens=2048, max_running=64)
    engine = Engine(model, make_pools(model.config, PoolSize(_BLOCKS, "enough"), dtype, CPU), scheduler)
    asked = []
    for index, (prompt, answer) in enumerate(pairs):
        asked.append(Sequence(str(index), prompt, len(answer) + 16, stop_ids=frozenset([answer[-1]])))
        scheduler.add(asked[-1])
    while engine.step() or scheduler.running:
        pass
    return [sequence.output_ids for sequence in asked]


def read(model: Mixtral, prompt: list[int], answer: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The logits [len(answer), V] from which each token of the right answer would be drawn."""
    ids = torch.tensor(prompt + answer[:-1])
    positions = torch.arange(len(ids))
    num_blocks = -(-len(ids) // BLOCK_SIZE)
    pools = make_pools(model.config, PoolSize(num_blocks, "enough"), dtype, CPU)
    tables = torch.arange(num_blocks).unsqueeze(0)
    rows = positions[len(prompt) - 1 :]
    return model.forward(Batch(ids, positions, positions, [0, len(ids)], [len(ids)], tables, rows), pools)


def measure(model: Mixtral, pairs: Pairs) -> dict[str, dict[str, Any]]:
    """By the name of the pool's dtype."""
    report: dict[str, dict[str, Any]] = {}
    base = say(model, pairs, DTYPES[0])
    exact = [read(model, *pair, DTYPES[0]) for pair in pairs]
    for dtype in DTYPES:
        said = base if dtype == DTYPES[0] else say(model, pairs, dtype)
        logits = exact if dtype == DTYPES[0] else [read(model, *pair, dtype) for pair in pairs]
        joined, true = torch.cat(logits), torch.cat(exact)
        far = (joined - true).norm(dim=1) / true.norm(dim=1)
        report[str(dtype).removeprefix("torch.")] = {
            "right_percent": _percent([one == answer for one, (_, answer) in zip(said, pairs, strict=True)]),
            "same_text_percent": _percent([one == other for one, other in zip(said, base, strict=True)]),
            "same_token_percent": _percent((joined.argmax(1) == true.argmax(1)).tolist()),
            "logits_error_median": float(f"{far.median():.2e}"),
            "logits_error_p99": float(f"{far.quantile(0.99):.2e}"),
        }
    return report


def _percent(hits: list[bool]) -> float:
    return round(100 * sum(hits) / len(hits), 2)


def main(
    questions: Annotated[int, typer.Option(min=1, help="Held-out questions to ask.")] = 200,
    seed: Annotated[int, typer.Option(help="Which ones.")] = 7,
    model_dir: Annotated[Path, typer.Option(help="Another model than the package's.")] = MODEL,
) -> None:
    """Ask, compare, print."""
    torch.set_num_threads(1)  # steps of microseconds: a second thread is waited for
    encoder = Encoder(model_dir)
    config = MixtralConfig.from_json(json.loads((model_dir / "config.json").read_text()))
    model = load_source(model_dir, config, torch.float32, CPU, lambda *_: None)
    asked = islice(filter(encoder.fits, held_out_set(seed)), questions)
    pairs = [(encoder.prompt(question), encoder.answer(question)) for question in asked]
    report = measure(model, pairs)
    for name, figures in report.items():
        typer.echo(f"{name:14} {figures}")
    typer.echo(json.dumps({"questions": questions, "seed": seed, "tokens": sum(len(answer) for _, answer in pairs)} | report))


if __name__ == "__main__":
    typer.run(main)
