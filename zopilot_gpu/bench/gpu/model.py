"""The whole model through the engine: the real scheduler, sampler and pool. Knows sequences and clocks.

A decode is measured with all sequences past their prompts: tokens that came back, by the time that their steps took. A prompt
is measured from `add` to its first token, with nothing else running, in steps as large as the runner's and in larger ones.
"""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

from zopilot_gpu.bench.gpu import made_up
from zopilot_gpu.bench.gpu.clock import elapsed_s, settle
from zopilot_gpu.bench.gpu.kernels import SERVED
from zopilot_gpu.bench.gpu.parts_of_step import parts_of_step
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.bench.gpu.subject import make_engine, make_model
from zopilot_gpu.engine.engine import Engine
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.events import GREEDY, Sampling
from zopilot_gpu.model.mixtral import Mixtral

RUNNER_STEP_TOKENS = 2048  # of runners.mixtral
LARGE_STEP_TOKENS = 4096
_WARM_STEPS = 20  # in which an engine captures the graph of a step that it meets again and again
_WAVE = 32  # prompts that are computed at once: more would need more memory than the card has besides
_STEPS_A_WAVE = 8  # that those before it go on for, at most
_PROFILED_STEPS = 8
_FIRST_TOKENS = 5  # times that the shortest prompt is measured
_LONGEST_S = 120.0  # that any of these may take before it is given up


def build(sizes: Sizes, device: torch.device, *, nested: bool) -> tuple[Mixtral, dict[str, Any]]:
    """The model, and the memory that its weights take."""
    before = _allocated(device)
    made: list[Mixtral] = []
    seconds = elapsed_s(lambda: made.append(make_model(sizes, device, nested=nested)), device)
    return made[0], {"absmax": "nested" if nested else "bf16", "built_s": seconds, "weights_gb": _allocated(device) - before}


def prefill(sizes: Sizes, model: Mixtral, step_tokens: int) -> dict[str, Any]:
    """Milliseconds to the first token, and prompt tokens a second, by the prompt's length, in steps of so many tokens."""
    found: dict[str, Any] = {}
    engine = make_engine(model, prompt_tokens(sizes), max_step_tokens=step_tokens, max_running=1)
    for length in sizes.prompts:
        _first_token_s(sizes, engine, length)  # compiles
        count = _FIRST_TOKENS if length == min(sizes.prompts) else 2
        seconds = median(_first_token_s(sizes, engine, length) for _ in range(count))
        found[str(length)] = {"ms": seconds * 1000, "tokens_per_s": length / seconds}
    return found


def prompt_tokens(sizes: Sizes) -> int:
    """Positions of the pool that `prefill` has."""
    return max(sizes.prompts) + 64


def _first_token_s(sizes: Sizes, engine: Engine, length: int) -> float:
    sequence = _sequences(sizes, engine, 1, length, 1, GREEDY)[0]
    began_s = time.perf_counter()
    _step_until(engine, [sequence], 1)
    seconds = time.perf_counter() - began_s
    _drain(engine)
    return seconds


def decode(sizes: Sizes, model: Mixtral) -> Iterator[tuple[str, dict[str, Any]]]:
    """Steps of each batch: tokens a second, milliseconds; by parts, and with the service's own sampling, of some."""
    engine, device = _decoding_engine(sizes, model), model.embedding.device
    for size in sizes.batches:
        yield str(size), _decode(sizes, engine, size, GREEDY, device)
        if size in sizes.profiled:
            yield f"{size}, as served", _decode(sizes, engine, size, SERVED, device)


def decode_some(sizes: Sizes, model: Mixtral) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same of a few batches, greedy."""
    engine, device = _decoding_engine(sizes, model), model.embedding.device
    for size in sizes.profiled:
        yield str(size), _decode(sizes, engine, size, GREEDY, device)


def _decoding_engine(sizes: Sizes, model: Mixtral) -> Engine:
    """One in whose steps the prompts of a wave go at once: kernels are compiled for odd numbers of few tokens, not of many."""
    most = max(sizes.batches)
    step_tokens = min(most, _WAVE) * sizes.context + most
    return make_engine(model, sizes.kv_tokens, max_step_tokens=step_tokens, max_running=most)


def _decode(sizes: Sizes, engine: Engine, size: int, sampling: Sampling, device: torch.device) -> dict[str, Any]:
    """Prompts are so long that the middle of the steps that are timed has the context wanted, but for what waves differ by."""
    prompt = max(1, sizes.context - _WARM_STEPS - sizes.steps // 2)
    outputs = _WARM_STEPS + sizes.steps + _PROFILED_STEPS + _STEPS_A_WAVE * (size // _WAVE + 1)
    sequences = list[Sequence]()
    for first in range(0, size, _WAVE):
        sequences += _sequences(sizes, engine, min(_WAVE, size - first), prompt, outputs, sampling)
        last = first + _WAVE >= size
        _step_until(engine, sequences, _WARM_STEPS if last else 1)
    times, count = [], 0
    for _ in range(sizes.steps):
        began_s = time.perf_counter()
        drawn = engine.step()
        times.append(time.perf_counter() - began_s)
        count += sum(len(one.token_ids) for one in drawn)
    found: dict[str, Any] = {
        "tokens_per_s": count / sum(times),
        "ms": median(times) * 1000,
        "slowest_ms": max(times) * 1000,
        "steps": len(times),
        "context": prompt + _WARM_STEPS + sizes.steps // 2,
    }
    if size in sizes.profiled and sampling is GREEDY:
        found["parts"] = parts_of_step(engine.step, _PROFILED_STEPS, found["ms"] * 1000, device)
    _drain(engine)
    return found


def _step_until(engine: Engine, sequences: list[Sequence], outputs: int) -> None:
    """Until each has so many tokens."""
    began_s = time.perf_counter()
    while min(len(one.output_ids) for one in sequences) < outputs:
        engine.step()
        _give_up_after(began_s)


def _sequences(sizes: Sizes, engine: Engine, count: int, prompt: int, outputs: int, sampling: Sampling) -> list[Sequence]:
    """New ones, of tokens that no other had."""
    random = made_up.generator(torch.device("cpu"), "prompts", engine.num_steps, count, prompt)
    ids = torch.randint(3, sizes.config.vocab_size, (count, prompt), generator=random).tolist()
    sequences = [Sequence(f"bench-{row}", ids[row], outputs, sampling, seed=row) for row in range(count)]
    for one in sequences:
        engine.scheduler.add(one)
    return sequences


def _drain(engine: Engine) -> None:
    """Until nothing is left, also of an engine that is a step ahead."""
    began_s = time.perf_counter()
    while engine.step() or engine.scheduler.running or engine.scheduler.waiting.owners:
        _give_up_after(began_s)


def _give_up_after(began_s: float) -> None:
    if time.perf_counter() - began_s > _LONGEST_S:
        raise TimeoutError(f"the engine gave nothing for {_LONGEST_S:.0f} s")


def memory(model: Mixtral, num_tokens: int, device: torch.device) -> dict[str, Any]:
    """GB of a pool of so many tokens; on a GPU what is allocated, the most that was, and what is used of the whole card."""
    found = {"kv_tokens": num_tokens, "kv_gb": num_tokens * model.config.kv_bytes_per_token() / 1e9}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found |= {"peak_gb": torch.cuda.max_memory_allocated(device) / 1e9, "card_used_gb": (total - free) / 1e9}
    return found


def forget_peak(device: torch.device) -> None:
    """Begins to look for the most memory anew."""
    if device.type == "cuda":
        settle(device)
        torch.cuda.reset_peak_memory_stats(device)


def _allocated(device: torch.device) -> float:
    return torch.cuda.memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
