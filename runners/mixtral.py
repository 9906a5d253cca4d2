"""The Mixtral backend: our model and engine, many generations at once.

Knows checkpoints, the engine's loop and text. Each job becomes a sequence; its tokens come back through a mailbox and become
text here, on the event loop.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import safe_open

from runners.base import BackendState, Progress
from runners.device import Device, choose_form, choose_threads, compute_dtype, memory_bytes
from zopilot_gpu import log
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.engine import Engine
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, make_pools, pool_size
from zopilot_gpu.engine.loop import EngineLoop
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.errors import ModelUnavailable, Overloaded, ServiceError
from zopilot_gpu.events import Event, Job, Text
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import build, choose_kernels
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.locate import Located, weight_files
from zopilot_gpu.text.answer import Answer
from zopilot_gpu.text.tokenizer import Tokenizer

_log = log.get(__name__)
_MAX_RUNNING = 64
_MAX_STEP_TOKENS = 512
_POOL_TOKENS = 256 * 1024
_SMOOTHING = 0.1


class MixtralBackend:
    """Implements `runners.base.Backend`. Loads the model where it is made; `event_loop` is where its events go."""

    def __init__(
        self,
        located: Located,
        device: Device,
        tokenizer: Tokenizer,
        settings: Settings,
        event_loop: asyncio.AbstractEventLoop,
        progress: Progress,
    ) -> None:
        where = torch.device(device.name)
        dtype = compute_dtype(device)
        config = MixtralConfig.from_json(json.loads((located.directory / "config.json").read_bytes()))
        torch.set_num_threads(choose_threads(config, device))
        dequantise = choose_form(located, device).name == "dequantised"
        model = load(located.directory, config, dtype, where, progress, dequantise=dequantise)
        used, why = (False, "its weights are dequantised") if dequantise else choose_kernels(config, dtype, where)
        _log.info("kernels", used=used, why=why)
        size = pool_size(config, dtype, where, max_tokens=_POOL_TOKENS)
        self.window = min(config.max_position, settings.max_context_tokens, size.num_tokens)
        _log.info("kv_pool", num_tokens=size.num_tokens, why=size.reason)
        self._scheduler = Scheduler(
            BlockPool(size.num_blocks, BLOCK_SIZE), max_step_tokens=_MAX_STEP_TOKENS, max_running=_MAX_RUNNING
        )
        engine = Engine(model, make_pools(config, size, dtype, where), self._scheduler)
        self._warm_up(engine, tokenizer)
        self._memory = memory_bytes(device)
        self._tokenizer = tokenizer
        self._eos_ids = frozenset([tokenizer.eos_id] if tokenizer.eos_id is not None else [])
        self._max_waiting = settings.max_waiting
        self._num_in_flight = 0
        self._turn_s = 1.0  # smoothed length of a generation, for Retry-After
        self._loop = EngineLoop(engine, event_loop)

    def state(self) -> BackendState:
        """See `Backend.state`."""
        num_running = min(self._num_in_flight, _MAX_RUNNING)
        return BackendState(num_running, self._num_in_flight - num_running, None, *self._memory)

    def refuse_when_full(self) -> None:
        """See `Backend.refuse_when_full`."""
        num_waiting = self._num_in_flight - _MAX_RUNNING
        if num_waiting >= self._max_waiting:
            raise Overloaded(retry_after_s=math.ceil(self._turn_s * (num_waiting + 1) / _MAX_RUNNING))

    async def generate(self, job: Job, ids: list[int], max_tokens: int) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        self.refuse_when_full()
        seed = secrets.randbits(63) if job.sampling.seed is None else job.sampling.seed
        sequence = Sequence(
            job.request_id, ids, max_tokens, job.sampling, seed, self._eos_ids, salt=job.owner, deadline_s=job.deadline_s
        )
        answer = Answer(self._tokenizer, self._eos_ids, job.stop)
        mailbox = self._loop.submit(sequence)
        self._num_in_flight += 1
        began_s = time.monotonic()
        try:
            finished = False
            while not (finished or answer.stopped):
                drawn = await mailbox.arrived.get()
                if isinstance(drawn, ServiceError):
                    raise drawn
                finished = drawn.finish is not None
                if text := answer.push(drawn.token_id):
                    yield Text(text)
            if text := answer.flush():
                yield Text(text)
            yield answer.done(len(ids), sequence.num_cached)
        finally:
            self._loop.abort(mailbox)
            self._num_in_flight -= 1
            self._turn_s += _SMOOTHING * (time.monotonic() - began_s - self._turn_s)

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._loop.close()

    @staticmethod
    def _warm_up(engine: Engine, tokenizer: Tokenizer) -> None:
        engine.scheduler.add(Sequence("warm-up", tokenizer.encode("warm-up"), 2))
        while engine.step():
            pass


def load(
    directory: Path,
    config: MixtralConfig,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress,
    *,
    dequantise: bool = True,
) -> Mixtral:
    """The model in `directory`, from one or several safetensors files; see `zopilot_gpu.model.weights.build`.

    Raises:
        ModelUnavailable: a file is damaged, or the files do not make the model that its config describes.
    """
    paths = [directory / name for name in weight_files(directory)]
    try:
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, "pt")) for path in paths]
            holder = {name: file for file in files for name in file.keys()}  # noqa: SIM118  (a file is no mapping)
            taken = set[str]()

            def get(name: str) -> torch.Tensor:
                taken.add(name)
                if len(taken) % 64 == 0:
                    progress(f"weights, tensor {len(taken)} of {len(holder)}", len(taken) / len(holder))
                tensor: torch.Tensor = holder[name].get_tensor(name)
                return tensor

            model = build(config, get, dtype, device, dequantise=dequantise)
            _refuse_extra(set(holder) - taken, taken, config)
            return model
    except torch.OutOfMemoryError as error:
        raise ModelUnavailable(detail=f"{directory.name} does not fit into the memory of {device}.") from error
    except ServiceError:
        raise
    except Exception as error:  # a damaged file makes the libraries raise anything
        raise ModelUnavailable(detail=f"{directory} could not be loaded: {type(error).__name__}: {error}") from error


def _refuse_extra(left: set[str], taken: set[str], config: MixtralConfig) -> None:
    """Raises ValueError for tensors that were not taken, but for a codebook (NF4's own) and a tied head (the embedding)."""
    tied = {"lm_head.weight"} if config.tie_embeddings else set()
    extra = sorted(left - {f"{name}.quant_map" for name in taken} - tied)
    if extra:
        raise ValueError(f"unexpected tensors: {', '.join(extra[:3])} ({len(extra)} in all)")
