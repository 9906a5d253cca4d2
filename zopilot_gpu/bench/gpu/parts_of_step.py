"""Where the time of a step goes: the GPU's own record of what ran, by part, and the gaps in which nothing did.

Names of kernels tell parts; what none of the patterns knows is in `other`, with the largest of it by name. A kernel that began
before the one ahead of it had ended counts from that end on: until then it only waited.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

_PARTS = {
    "experts": r"gate_up|^down_kernel|^wgmma|^gather_kernel|^sum_kernel|dequantise",
    "routing": r"^route",
    "QKV and O": r"^dense_kernel",
    "attention": r"^attend|^merge_kernel",
    "rotary and KV write": r"^rotate",
    "norms and router": r"add_norm",
    "head": r"gemm|gemv|nvjet|cutlass|cublas|splitK",
    "sampling": r"arg_?max|arg_?min|sort|softmax|cumsum|scan|isfinite|isnan|multinomial|sampl|penal|Radix|topk|reduce",
    "copies": r"memcpy|memset|copy",
}


def part_of(kernel: str) -> str:
    """The part that a kernel of this name is of."""
    return next((part for part, pattern in _PARTS.items() if re.search(pattern, kernel, re.IGNORECASE)), "other")


def parts_of_step(step: Callable[[], object], steps: int, whole_us: float, device: torch.device) -> dict[str, Any]:
    """Microseconds of one step by part, over several of them.

    `busy` is the time in which the GPU did anything. A profiler slows the host, not the GPU: `gaps` are what is left of
    `whole_us`, which is a step without one.
    """
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as seen:
        for _ in range(steps):
            step()
        if on_gpu:
            torch.cuda.synchronize()
    spans = _spans(seen.events(), on_gpu=on_gpu)
    parts: dict[str, float] = defaultdict(float)
    others: dict[str, float] = defaultdict(float)
    for name, time in added(spans):
        part = part_of(name)
        parts[part] += time
        if part == "other":
            others[name[:60]] += time
    busy_us = sum(parts.values()) / steps
    return {
        "us": {part: round(total / steps, 1) for part, total in _largest(parts)},
        "busy_us": round(busy_us, 1),
        "gaps_us": round(max(0.0, whole_us - busy_us), 1),
        "kernels": round(len(spans) / steps, 1),
        "largest_other_us": {name: round(total / steps, 1) for name, total in _largest(others)[:4]},
    }


def _spans(events: Any, *, on_gpu: bool) -> list[tuple[str, float, float]]:
    """Name, begin and end of everything that ran; on a CPU the outermost operations."""
    kind = "CUDA" if on_gpu else "CPU"
    found = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type.name == kind and (on_gpu or event.cpu_parent is None)
    ]
    return sorted(found, key=lambda span: span[1])


def added(spans: list[tuple[str, float, float]]) -> Iterator[tuple[str, float]]:
    """The length of what each of the spans, in order of their begin, covers that none before it does."""
    last = float("-inf")
    for name, begin, end in spans:
        yield name, max(0.0, end - max(begin, last))
        last = max(last, end)


def _largest(times: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(times.items(), key=lambda item: -item[1])
