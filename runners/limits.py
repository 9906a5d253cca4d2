"""How much one engine takes on at once, and why. Knows devices by kind and size; no model."""

from dataclasses import dataclass

from runners.memory import LEAN_CONTEXT, LEAN_LIBRARIES_BYTES, LEAN_ROWS, LEAN_STEP_TOKENS
from zopilot_gpu.engine.kv_cache import MARGIN_BYTES

_LARGE_GPU_BYTES = 40_000_000_000
_POOL_TOKENS = 256 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine takes on at once.

    Sequences, tokens of a step, what a step of nothing would cost in tokens (decision 12), tokens of the KV pool, and the
    memory of a GPU that is left alone.
    """

    max_running: int
    max_step_tokens: int
    step_base_tokens: int
    pool_tokens: int
    margin_bytes: int
    why: str


def choose_limits(device: str, memory_bytes: int, *, is_lean: bool = False) -> Limits:
    """For a device, `cpu` or `cuda`, of so much memory; `is_lean` where the model is held in the form for small cards.

    A step with more than 1,024 tokens, on sm_90 2,048, dequantises every layer's experts on a GPU, which takes as long as
    computing 2,000 tokens with them: a step of half as many would mostly do that, and one of twice as many would keep all
    who decode waiting twice as long for a third more tokens a second. It needs more than a gigabyte to work in; a card that
    has hardly more than the weights gives that to the KV pool. docs/decisions/016-steps-ahead.md.
    """
    if device == "cpu":
        return Limits(64, 512, 2, _POOL_TOKENS, MARGIN_BYTES, "a CPU")
    if is_lean:
        return Limits(LEAN_ROWS, LEAN_STEP_TOKENS, 64, LEAN_CONTEXT, LEAN_LIBRARIES_BYTES, "a GPU that holds the lean form")
    large = f"{_LARGE_GPU_BYTES / 1e9:.0f} GB"
    if memory_bytes < _LARGE_GPU_BYTES:
        return Limits(64, 512, 64, _POOL_TOKENS, MARGIN_BYTES, f"a GPU of less than {large}: its memory is for the KV pool")
    return Limits(128, 2048, 64, _POOL_TOKENS, MARGIN_BYTES, f"a GPU of {large} or more")
