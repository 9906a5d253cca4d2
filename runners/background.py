"""The runner that the service makes: finds the model, loads it in the background, and lets a backend answer.

Knows files, text and which backend suits; torch is imported by its loading thread, not by this file.

    loading thread:  find ─▶ (download) ─▶ choose device and backend ─▶ load ─▶ ready ─▶ pack for the next start
    event loop:      generate ── ids ──▶ backend ──▶ events

A model that has not been packed is served from its source at once: quantising on the way to the device takes one pass over the
source, packing first would take that pass and another over what it wrote.
"""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runners.base import Backend, Pulse, RunnerState
from runners.environment import set_before_torch
from zopilot_gpu import log
from zopilot_gpu.errors import (
    EngineFailed,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    ServiceError,
    ShuttingDown,
    in_a_line,
)
from zopilot_gpu.events import Event, Job
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.ensure import Prepared, Wanted, ensure
from zopilot_gpu.store.locate import search_roots, weight_bytes
from zopilot_gpu.store.manifest import Damaged
from zopilot_gpu.text.template import Template, encode_raw, template_for
from zopilot_gpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runners.device import Form  # which imports torch
    from runners.machine import Machine

    AfterLoading = Callable[[Machine | None, RunnerState], None]

_log = log.get(__name__)
_RETRY_LOADING_S = 5
LEAST_PACKED_BYTES = 1_000_000_000  # what is smaller loads in seconds from anywhere


@dataclass(frozen=True, slots=True)
class _Loaded:
    backend: Backend
    tokenizer: Tokenizer
    template: Template
    window: int  # tokens of prompt and answer together

    def encode(self, job: Job) -> list[int]:
        if job.raw:
            return encode_raw(self.tokenizer, job.prompt)
        return self.template.encode(job.prompt, job.context, job.history)


def choose_backend(wanted: str, form: "Form") -> tuple[str, str]:
    """Resolves `auto`, `mixtral` or `plain`: the backend's name, and the reason.

    Args:
        wanted: the setting.
        form: how the Mixtral backend would hold the model.

    Raises:
        ModelUnavailable: `mixtral` was asked for and can't be, or the weights do not fit at all.
    """
    if wanted == "plain":
        return "plain", "ZOPILOT_GPU_RUNNER=plain"
    if not form.fits and wanted == "auto":
        reason = f"{form.reason[:1].upper()}{form.reason[1:]}"
        raise ModelUnavailable(detail=f"{reason}: take a device with more memory, or free this one.")
    if form.name:
        return "mixtral", f"the model is a Mixtral, and {form.reason}"
    if wanted == "mixtral":
        raise ModelUnavailable(detail=f"ZOPILOT_GPU_RUNNER=mixtral, but {form.reason}.")
    return "plain", form.reason


def _refuse_unknown_tokens(job: Job, vocab_size: int) -> None:
    if unknown := [token for token, _ in job.sampling.logit_bias if not 0 <= token < vocab_size]:
        sentence = f"logit_bias: this model's tokens are 0 to {vocab_size - 1}; there is no {unknown[0]}"
        raise InvalidRequest(422, "invalid_request", sentence)


class BackgroundRunner:
    """Implements `runners.base.Runner`. Make it inside the event loop that will call it; loading starts at once.

    Args:
        settings: what to load, and how.
        after_loading: called on the loading thread once the model answers or can't be loaded, with the machine as it was
            before (None where it was not looked at) and the state now.
    """

    def __init__(self, settings: Settings, after_loading: "AfterLoading" = lambda *_: None) -> None:
        self._settings = settings
        self._after_loading = after_loading
        self._machine: Machine | None = None
        self._event_loop = asyncio.get_running_loop()
        self._loaded: _Loaded | None = None
        self._stopping = threading.Event()
        self._state = RunnerState("loading", "starting", 0.0, settings.model, "unknown", 0, 0, settings.max_waiting)
        # NOTE: a daemon, because a download or a read from a dead volume can't be interrupted, and must not hold up the exit.
        threading.Thread(target=self._load, name="loader", daemon=True).start()

    def state(self) -> RunnerState:
        """See `Runner.state`."""
        known = replace(self._state, phase="closed") if self._stopping.is_set() else self._state
        if self._loaded is None:
            return known
        now = self._loaded.backend.state()
        state = replace(
            known,
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            gpu_name=now.gpu_name,
            memory_used_bytes=now.memory_used_bytes,
            memory_total_bytes=now.memory_total_bytes,
            engine=now.engine,
            max_running=now.max_running,
            num_engines=now.num_engines,
        )
        if now.problem and state.phase == "ready":
            return replace(state, phase="failed", step="failed", problem=now.problem)
        return state

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """See `Runner.generate`."""
        loaded = self._ready()
        loaded.backend.refuse_when_full(job.owner)  # before the tokenizer's work is spent on it
        _refuse_unknown_tokens(job, loaded.backend.vocab_size)
        ids = await asyncio.to_thread(loaded.encode, job)
        room = loaded.window - len(ids)
        if room < 1:
            sentence = f"The prompt has {len(ids)} tokens; this model takes at most {loaded.window - 1}."
            raise InvalidRequest(422, "context_length_exceeded", sentence)
        async with aclosing(loaded.backend.generate(job, ids, min(job.max_tokens, room))) as events:
            async for event in events:
                yield event

    def pulse(self) -> Pulse | None:
        """Whether it lives, once it has loaded. For any thread."""
        loaded = self._loaded
        return loaded.backend.pulse() if loaded else None

    def abandon(self, error: ServiceError) -> None:
        """Ends all that is in flight with `error`, at once."""
        if self._loaded:
            self._loaded.backend.abandon(error)

    def drain(self) -> None:
        """Takes no more jobs; what is in flight goes on until `close`."""
        self._stopping.set()

    async def close(self) -> None:
        """See `Runner.close`."""
        self.drain()
        if self._loaded:
            await self._loaded.backend.close()
        self._loaded = None

    def _ready(self) -> _Loaded:
        phase = self.state().phase
        if phase == "closed":
            raise ShuttingDown(retry_after_s=_RETRY_LOADING_S)
        if phase == "loading":
            raise ModelLoading(retry_after_s=_RETRY_LOADING_S)
        if self._loaded is None:
            raise ModelUnavailable
        if phase == "failed":  # it was ready: another process will be
            raise EngineFailed(retry_after_s=_RETRY_LOADING_S)
        return self._loaded

    # The rest runs on the loading thread.

    def _load(self) -> None:
        prepared = self._load_or_say_why()
        if self._stopping.is_set():
            return
        try:
            self._after_loading(self._machine, self.state())
        except Exception as error:  # noqa: BLE001  (the same border: the model answers, whatever fails here)
            _log.error("examination_failed", exc_info=error)
        if prepared:
            self._pack(prepared)

    def _load_or_say_why(self) -> Prepared | None:
        """Where the model that is ready now was loaded from; None where it is not."""
        began_s = time.monotonic()
        try:
            prepared = self._find()
            self._state = replace(self._state, model=prepared.located.name)
            try:
                self._loaded = self._load_backend(prepared)
            except Damaged:  # set aside by now
                prepared = self._find()
                self._loaded = self._load_backend(prepared)
        except ShuttingDown:
            _log.info("loading_stopped")
        except ServiceError as problem:
            self._fail(problem.detail or problem.message)
        except Exception as error:  # noqa: BLE001  (a border: whatever fails here, the process goes on to say so)
            _log.error("load_failed", exc_info=error)
            self._fail(f"Loading failed ({in_a_line(error)}): `zopilot-gpu doctor` may say why.")
        else:
            load_s = round(time.monotonic() - began_s, 2)
            self._state = replace(self._state, phase="ready", step="ready", progress=1.0, load_s=load_s)
            now = self._state
            _log.info("model_ready", model=now.model, device=now.device, runner=now.runner, why=now.why, load_s=load_s)
            return prepared
        return None

    def _load_backend(self, prepared: Prepared) -> _Loaded:
        self._progress("importing torch", 0.05)
        set_before_torch()
        from runners.device import choose_device, choose_form, without_cudnn  # noqa: PLC0415  (torch takes seconds)
        from runners.machine import look  # noqa: PLC0415

        located = prepared.located
        self._machine = look(at_card=self._settings.device != "cpu")
        without_cudnn()
        device = choose_device(self._settings.device, self._machine)
        name, why = choose_backend(self._settings.runner, choose_form(located, device, self._settings.kv_dtype))
        self._state = replace(self._state, device=device.name, runner=name, why=why)
        if name == "plain" and prepared.is_packed:
            located = ensure(self._wanted(build=False, packed=False)).located
        tokenizer = Tokenizer(located.directory)
        self._progress("weights", 0.1)

        def progress(step: str, share: float) -> None:
            self._progress(step, 0.1 + 0.85 * share)

        if name == "mixtral":
            from runners.many import load_engines  # noqa: PLC0415

            backend: Backend = load_engines(prepared, device, tokenizer, self._settings, self._event_loop, progress)
        else:
            from runners.plain import PlainBackend  # noqa: PLC0415

            backend = PlainBackend(located, device, tokenizer, self._settings, self._event_loop, progress)
        return _Loaded(backend, tokenizer, template_for(located.model_type, tokenizer), backend.window)

    def _find(self) -> Prepared:
        self._progress("looking for the model", 0.0)
        prepared = ensure(self._wanted(build=False), self._store_progress, self._stopping.is_set)
        self._state = replace(self._state, source="packed" if prepared.is_packed else "source", source_why=prepared.why)
        return prepared

    def _wanted(self, *, build: bool, packed: bool = True) -> Wanted:
        settings = self._settings
        return Wanted(
            settings.model,
            settings.revision,
            search_roots(settings.volume, settings.hf_home),
            allow_download=settings.allow_download,
            token=settings.hf_token.get_secret_value() if settings.hf_token else None,
            build=build,
            packed=packed and settings.runner != "plain",
        )

    def _pack(self, prepared: Prepared) -> None:
        """Packs the model for the next start, while this one is served from its source."""
        if prepared.is_packed or not self._settings.pack or self._state.runner != "mixtral":
            return
        if weight_bytes(prepared.located.directory) < LEAST_PACKED_BYTES:
            return
        try:
            packed = ensure(self._wanted(build=True), lambda *_: None, self._stopping.is_set)
        except ServiceError as problem:
            _log.warning("packing_failed", problem=problem.detail or problem.message)
        else:
            self._state = replace(self._state, source_why=f"{self._state.source_why}; for the next start: {packed.why}")

    def _store_progress(self, step: str, done: int, total: int) -> None:
        self._progress(step, 0.05 * done / total if total else 0.0)

    def _progress(self, step: str, share: float) -> None:
        if self._stopping.is_set():
            raise ShuttingDown
        self._state = replace(self._state, step=step, progress=round(share, 3))
        _log.info("loading", step=step, progress=round(share, 3))

    def _fail(self, problem: str) -> None:
        self._state = replace(self._state, phase="failed", step="failed", problem=problem)
        _log.error("model_unavailable", problem=problem)
