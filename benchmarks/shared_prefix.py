"""What the prefix cache saves: the time to the first token of prompts that begin alike, and of others as long.

One caller; a prompt of each kind in turn (their lengths differ by a few tokens). The model's
window is 2,048 tokens, the shared beginning 512.
"""

import asyncio
import time
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks.servers import KEYS, served
from zopilot_gpu.bench.client import Client
from zopilot_gpu.bench.workload import Mix, Span, bodies
from zopilot_gpu.demo import MODEL
from zopilot_gpu.text.tokenizer import Tokenizer

_PREFIX_TOKENS = 512
_WARM_UP = 3


def measure(repeats: int, seed: int) -> dict[str, Any]:
    """Medians over `repeats` prompts of each kind."""
    num_words = _words_for(_PREFIX_TOKENS, seed)
    with served("mixtral") as url:
        return asyncio.run(_measure(url, repeats, seed, num_words))


async def _measure(url: str, repeats: int, seed: int, num_words: int) -> dict[str, Any]:
    kinds = {"shared": bodies(_mix(num_words, 1.0), seed), "different": bodies(_mix(num_words, 0.0), seed, "different")}
    ttft_s: dict[str, list[float]] = {kind: [] for kind in kinds}
    tokens: dict[str, list[int]] = {kind: [] for kind in kinds}
    cached: dict[str, list[int]] = {kind: [] for kind in kinds}
    async with Client(url, KEYS[0]) as client:
        for number in range(_WARM_UP + repeats):
            for kind, drawn in kinds.items():
                record = await client.ask(next(drawn), time.monotonic())
                if record.error or record.ttft_s is None:
                    raise RuntimeError(f"no text: {record.error}")
                if number >= _WARM_UP:
                    ttft_s[kind].append(record.ttft_s)
                    tokens[kind].append(record.prompt_tokens)
                    cached[kind].append(record.cached_tokens)
    found: dict[str, Any] = {
        kind: {
            "ttft_p50_ms": round(median(ttft_s[kind]) * 1000, 3),
            "prompt_tokens_p50": median(tokens[kind]),
            "cached_tokens_p50": median(cached[kind]),
        }
        for kind in kinds
    }
    ratio = found["different"]["ttft_p50_ms"] / found["shared"]["ttft_p50_ms"]
    return found | {"repeats": repeats, "ratio": round(ratio, 2)}


def _mix(num_words: int, share: float) -> Mix:
    return Mix(Span(4, 4), Span(2, 2), shared_prefix_words=num_words, shared_share=share)


def _words_for(num_tokens: int, seed: int) -> int:
    """The fewest words whose shared beginning has so many tokens."""
    tokenizer = Tokenizer(MODEL)
    words = next(bodies(_mix(num_tokens, 1.0), seed))["prompt"].split(" ")
    return next(count for count in range(1, num_tokens) if len(tokenizer.encode(" ".join(words[:count]))) >= num_tokens)


def table(found: dict[str, Any]) -> Table:
    """The medians."""
    shown = Table("beginning", "prompt tokens", "of them cached", "first token, p50, ms", "ratio")
    for kind in ("shared", "different"):
        one = found[kind]
        ratio = f"{found['ratio']:.2f}" if kind == "different" else "1"
        numbers = (f"{one['prompt_tokens_p50']:.0f}", f"{one['cached_tokens_p50']:.0f}", f"{one['ttft_p50_ms']:.1f}", ratio)
        shown.add_row(kind, *numbers)
    return shown
