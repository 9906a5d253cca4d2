"""Several engines behind one backend: one for each GPU. Knows backends by their protocol; shares nothing between them.

    job ──▶ the engine with the fewest jobs in flight ──▶ its events

Each holds the whole model and has a KV pool, a prefix cache and a line of its own; the lines together are as long as one
engine's would be. An engine that is lost takes the process along: its supervisor starts all of them again.
"""

import asyncio
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import fields

import torch

from runners.base import Backend, BackendState, EngineStats, Progress, Pulse
from runners.device import Device
from runners.mixtral import MixtralBackend
from zopilot_gpu.errors import ModelUnavailable, ServiceError
from zopilot_gpu.events import Event, Job
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.ensure import Prepared
from zopilot_gpu.text.tokenizer import Tokenizer


def devices_for(device: Device, num_engines: int | None) -> list[Device]:
    """Where the engines run; None stands for one on each GPU that is visible, or one on the CPU.

    Raises:
        ModelUnavailable: there are not so many GPUs.
    """
    if device.name == "cpu":
        return [device] * (num_engines or 1)
    num_visible = torch.cuda.device_count()
    if (num_engines or 1) > num_visible:
        raise ModelUnavailable(detail=f"ZOPILOT_GPU_NUM_ENGINES={num_engines}, but {num_visible} GPUs are visible.")
    count = num_engines or num_visible
    return [device] if count == 1 else [Device(f"{device.name}:{index}", device.reason) for index in range(count)]


def load_engines(
    prepared: Prepared,
    device: Device,
    tokenizer: Tokenizer,
    settings: Settings,
    event_loop: asyncio.AbstractEventLoop,
    progress: Progress,
) -> Backend:
    """One `MixtralBackend`, or several behind one."""
    devices = devices_for(device, settings.num_engines)
    count = len(devices)
    share = settings.model_copy(
        update={
            "max_waiting": math.ceil(settings.max_waiting / count),
            "max_waiting_tokens": math.ceil(settings.max_waiting_tokens / count),
        }
    )

    def of_engine(number: int) -> Progress:
        return lambda step, part: progress(step if count == 1 else f"engine {number + 1}: {step}", (number + part) / count)

    backends = [
        MixtralBackend(prepared, one, tokenizer, share, event_loop, of_engine(number)) for number, one in enumerate(devices)
    ]
    return backends[0] if count == 1 else ManyBackends(backends)


class ManyBackends:
    """Implements `runners.base.Backend` over others, which hold the same model."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._backends = backends
        self._num_in_flight = [0] * len(backends)
        self.window = min(one.window for one in backends)
        self.vocab_size = backends[0].vocab_size

    def state(self) -> BackendState:
        """See `Backend.state`: sums, and the first problem."""
        states = [one.state() for one in self._backends]
        stats = [state.engine for state in states if state.engine]
        return BackendState(
            num_running=sum(state.num_running for state in states),
            num_waiting=sum(state.num_waiting for state in states),
            problem=next((state.problem for state in states if state.problem), None),
            gpu_name=states[0].gpu_name,
            memory_used_bytes=sum(state.memory_used_bytes for state in states),
            memory_total_bytes=sum(state.memory_total_bytes for state in states),
            engine=EngineStats(*(sum(getattr(one, field.name) for one in stats) for field in fields(EngineStats))),
            max_running=sum(state.max_running for state in states),
            num_engines=len(states),
        )

    def pulse(self) -> Pulse:
        """See `Backend.pulse`."""
        pulses = [one.pulse() for one in self._backends]
        return Pulse(next((one.fatal for one in pulses if one.fatal), None), max(one.stalled_s for one in pulses))

    def abandon(self, error: ServiceError) -> None:
        """See `Backend.abandon`."""
        for one in self._backends:
            one.abandon(error)

    def refuse_when_full(self, owner: bytes) -> None:
        """See `Backend.refuse_when_full`."""
        self._backends[self._least_loaded()].refuse_when_full(owner)

    async def generate(self, job: Job, ids: list[int], max_tokens: int) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        chosen = self._least_loaded()
        self._num_in_flight[chosen] += 1
        try:
            async with aclosing(self._backends[chosen].generate(job, ids, max_tokens)) as events:
                async for event in events:
                    yield event
        finally:
            self._num_in_flight[chosen] -= 1

    async def close(self) -> None:
        """See `Backend.close`."""
        await asyncio.gather(*(one.close() for one in self._backends))

    def _least_loaded(self) -> int:
        return min(range(len(self._backends)), key=self._num_in_flight.__getitem__)
