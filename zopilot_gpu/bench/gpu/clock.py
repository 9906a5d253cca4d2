"""Times calls on a device. Knows events, graphs and medians; not what is called.

NOTE: work on a GPU is asynchronous: a host's clock is read only after `settle`.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

Call = Callable[[], object]


def settle(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def elapsed_s(call: Call, device: torch.device) -> float:
    """Seconds of one call, by the host's clock."""
    settle(device)
    began_s = time.perf_counter()
    call()
    settle(device)
    return time.perf_counter() - began_s


def graph_ms(calls: Sequence[Call], device: torch.device, repeats: int) -> float:
    """Median milliseconds of one call, of replays of a CUDA graph of all of them.

    What no graph can hold, and everything on a CPU, is timed as it is.
    """
    if device.type != "cuda":
        return eager_ms(calls, device, repeats)
    _on_a_side_stream(calls)
    graph = torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.graph(graph):
            for call in calls:
                call()
    except RuntimeError:  # something in it waits for the host
        torch.cuda.synchronize()
        return eager_ms(calls, device, repeats)
    return eager_ms([graph.replay], device, repeats) / len(calls)


def eager_ms(calls: Sequence[Call], device: torch.device, repeats: int) -> float:
    """Median milliseconds of one call, launched from Python one after the other; between events on a GPU."""
    for call in calls[:2]:
        call()
    if device.type != "cuda":
        return median(elapsed_s(call, device) for call in calls for _ in range(repeats)) * 1000
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()  # type: ignore[no-untyped-call]
        for call in calls:
            call()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()
        elapsed_ms: float = begin.elapsed_time(end)  # type: ignore[no-untyped-call]
        times.append(elapsed_ms / len(calls))
    return median(times)


def _on_a_side_stream(calls: Sequence[Call]) -> None:
    """What has to happen before a capture: compiling, and the libraries' own allocations."""
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
