"""The Mixtral backend: our model and engine, many generations at once.

Knows checkpoints, the engine's loop and text. Each job becomes a sequence; its tokens come back through a mailbox and become
text here, on the event loop.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator

import torch

from runners.base import BackendState, EngineStats, Progress, Pulse
from runners.device import Device, choose_form, choose_threads, compute_dtype, kv_dtype, memory_bytes
from runners.grammars import Grammars
from runners.limits import Limits, choose_limits
from runners.line import Admission
from runners.tuned import use_for
from runners.weights import load
from zopilot_gpu import log
from zopilot_gpu.engine.blocks import BlockPool
from zopilot_gpu.engine.draws import choose_kernel as choose_draws
from zopilot_gpu.engine.engine import Engine, Finish
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools, pool_size
from zopilot_gpu.engine.loop import EngineLoop, Mailbox
from zopilot_gpu.engine.scheduler import Scheduler
from zopilot_gpu.engine.sequence import Sequence
from zopilot_gpu.engine.warmup import warm_up
from zopilot_gpu.errors import ServiceError
from zopilot_gpu.events import Event, Job, Text
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.model.weights import choose_kernels
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.ensure import Prepared
from zopilot_gpu.store.locate import search_roots
from zopilot_gpu.text.answer import Answer
from zopilot_gpu.text.tokenizer import Tokenizer

_log = log.get(__name__)
_STALLED_S = 8.0  # no step of a healthy engine takes this long


class MixtralBackend:
    """Implements `runners.base.Backend`. Loads the model where it is made; `event_loop` is where its events go."""

    def __init__(
        self,
        prepared: Prepared,
        device: Device,
        tokenizer: Tokenizer,
        settings: Settings,
        event_loop: asyncio.AbstractEventLoop,
        progress: Progress,
    ) -> None:
        where = torch.device(device.name)
        if where.index is not None:
            torch.cuda.set_device(where)  # of this thread, where the model is loaded; the engine's thread sets its own
        dtype = compute_dtype(device)
        located = prepared.located
        config = MixtralConfig.from_json(json.loads((located.directory / "config.json").read_bytes()))
        torch.set_num_threads(choose_threads(config, device))
        form = choose_form(located, device, settings.kv_dtype)
        dequantise = form.name == "dequantised"
        model = load(prepared, config, dtype, where, progress, form)
        used, why = (False, "its weights are dequantised") if dequantise else choose_kernels(config, dtype, where)
        shapes = use_for(where, search_roots(settings.volume, settings.hf_home)) if used else None
        _log.info("kernels", used=used, why=why, shapes=shapes)
        in_one, why = choose_draws(config.vocab_size, where)
        _log.info("draws", in_one_launch=in_one, why=why)
        self._memory = memory_bytes(device)
        self._limits = limits = choose_limits(where.type, self._memory[2], is_lean=form.is_lean)
        _log.info("limits", max_running=limits.max_running, max_step_tokens=limits.max_step_tokens, why=limits.why)
        context = min(config.max_position, settings.max_context_tokens, limits.pool_tokens)
        kept = kv_dtype(settings.kv_dtype, device)
        size = _pool_size(model, kept, limits, context, progress)
        self.window = min(context, size.num_tokens)
        scheduler = Scheduler(
            BlockPool(size.num_blocks, BLOCK_SIZE),
            max_step_tokens=limits.max_step_tokens,
            max_running=limits.max_running,
            step_base_tokens=limits.step_base_tokens,
        )
        engine = Engine(model, make_pools(config, size, kept, where), scheduler, max_context=context)
        self._say_something(engine, tokenizer)
        self._engine = engine
        self._memory = memory_bytes(device)  # by now with the pool
        self._tokenizer = tokenizer
        self.vocab_size = config.vocab_size
        self._eos_ids = frozenset([tokenizer.eos_id] if tokenizer.eos_id is not None else [])
        self._grammars = Grammars(tokenizer, config.vocab_size, self._eos_ids)
        self._admission = Admission(limits.max_running, size.num_tokens, settings.max_waiting, settings.max_waiting_tokens)
        self._loop = EngineLoop(engine, event_loop)

    def state(self) -> BackendState:
        """See `Backend.state`."""
        max_running = self._limits.max_running
        num_running = min(self._admission.num_in_flight, max_running)
        num_waiting = self._admission.num_in_flight - num_running
        stalled_s = self._loop.stalled_s
        problem = f"The engine has not moved for {stalled_s:.0f} s." if stalled_s > _STALLED_S else None
        if self._loop.fatal:
            problem = f"The device is lost to this process: {self._loop.fatal}"
        return BackendState(num_running, num_waiting, problem, *self._memory, engine=self._stats(), max_running=max_running)

    def pulse(self) -> Pulse:
        """See `Backend.pulse`."""
        return Pulse(self._loop.fatal, self._loop.stalled_s)

    def abandon(self, error: ServiceError) -> None:
        """See `Backend.abandon`."""
        self._loop.abandon(error)

    def _stats(self) -> EngineStats:
        scheduler, pool, loop = self._engine.scheduler, self._engine.scheduler.pool, self._loop
        return EngineStats(
            kv_tokens_total=pool.num_blocks * pool.block_size,
            kv_tokens_owned=(pool.num_blocks - pool.num_available) * pool.block_size,
            kv_tokens_cached=pool.num_cached * pool.block_size,
            num_steps=self._engine.num_steps,
            num_prefix_hits=scheduler.num_prefix_hits,
            num_preemptions=scheduler.num_preemptions,
            num_aborts=loop.num_aborts,
            num_failures=loop.num_failures,
        )

    def refuse_when_full(self, owner: bytes) -> None:
        """See `Backend.refuse_when_full`."""
        self._admission.refuse_when_full(owner=owner)

    async def generate(self, job: Job, ids: list[int], max_tokens: int) -> AsyncGenerator[Event, None]:
        """See `Backend.generate`."""
        with self._admission.enter(len(ids) + max_tokens, job.owner):
            grammar = await self._grammars.of(job.json_schema)
            seed = secrets.randbits(63) if job.sampling.seed is None else job.sampling.seed
            sequence = Sequence(
                job.request_id,
                ids,
                max_tokens,
                job.sampling,
                seed,
                self._eos_ids,
                salt=job.owner,
                deadline_s=job.deadline_s,
                grammar=grammar,
            )
            mailbox = self._loop.submit(sequence)
            try:
                async for event in self._tell(mailbox, Answer(self._tokenizer, self._eos_ids, job.stop)):
                    yield event
            finally:
                self._loop.abort(mailbox)

    async def _tell(self, mailbox: Mailbox, answer: Answer) -> AsyncGenerator[Event, None]:
        """The tokens of a mailbox as events."""
        finish: Finish | None = None
        while not (finish or answer.stopped):
            drawn = await mailbox.arrived.get()
            if isinstance(drawn, ServiceError):
                raise drawn
            finish = drawn.finish
            if text := answer.push(drawn.token_ids, drawn.scores):
                yield Text(text, answer.take_logprobs())
        if text := answer.flush():
            yield Text(text, answer.take_logprobs())
        yield answer.done(len(mailbox.sequence.prompt_ids), mailbox.sequence.num_cached, whole=finish == "stop")

    async def close(self) -> None:
        """See `Backend.close`."""
        await self._loop.close()

    @staticmethod
    def _say_something(engine: Engine, tokenizer: Tokenizer) -> None:
        engine.scheduler.add(Sequence("warm-up", tokenizer.encode("warm-up"), 2))
        while engine.step():
            pass


def _pool_size(model: Mixtral, dtype: torch.dtype, limits: Limits, context: int, progress: Progress) -> PoolSize:
    """The KV pool's size, on a GPU out of what steps were seen to leave; their kernels are compiled on the way."""
    where = model.device
    reserved_bytes = 0
    if where.type == "cuda":
        progress("kernels", 1.0)
        began_s = time.monotonic()
        measured = warm_up(
            model,
            dtype,
            max_rows=limits.max_running,
            max_step_tokens=limits.max_step_tokens,
            max_blocks=-(-context // BLOCK_SIZE),
        )
        reserved_bytes = measured.reserved_bytes
        seconds = round(time.monotonic() - began_s, 1)
        _log.info("warm", seconds=seconds, step_bytes=measured.step_bytes, decode_bytes=measured.decode_bytes)
    size = pool_size(
        model.config,
        dtype,
        where,
        max_tokens=limits.pool_tokens,
        reserved_bytes=reserved_bytes,
        margin_bytes=limits.margin_bytes,
    )
    _log.info("kv_pool", num_tokens=size.num_tokens, dtype=str(dtype), why=size.reason)
    return size
