"""How much one engine takes on at once, and why. Knows devices by kind and size; no model."""

from dataclasses import dataclass

_LARGE_GPU_BYTES = 40_000_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """Sequences that run at once, tokens of a step, and what a step of nothing would cost, in tokens (decision 12)."""

    max_running: int
    max_step_tokens: int
    step_base_tokens: int
    why: str


def choose_limits(device: str, memory_bytes: int) -> Limits:
    """For a device, `cpu` or `cuda`, of so much memory.

    A step with more than 512 tokens of prompts dequantises every layer's experts on a GPU, which takes as long as computing
    2,000 tokens with them: a step of half as many would mostly do that, and one of twice as many would keep all who decode
    waiting twice as long for a third more tokens a second. It needs more than a gigabyte to work in; a card that has hardly
    more than the weights gives that to the KV pool. docs/decisions/016-steps-ahead.md.
    """
    if device == "cpu":
        return Limits(64, 512, 2, "a CPU")
    if memory_bytes < _LARGE_GPU_BYTES:
        return Limits(64, 512, 64, f"a GPU of less than {_LARGE_GPU_BYTES / 1e9:.0f} GB: its memory is for the KV pool")
    return Limits(128, 2048, 64, f"a GPU of {_LARGE_GPU_BYTES / 1e9:.0f} GB or more")
