"""The runner that the service makes: finds the model, loads it in the background, and lets a backend answer.

Knows files, text and which backend suits; torch is imported by its loading thread, not by this file.

    loading thread:  find ─▶ (download) ─▶ choose device and backend ─▶ load ─▶ ready
    event loop:      generate ── ids ──▶ backend ──▶ events
"""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from runners.base import Backend, RunnerState
from zopilot_gpu import log
from zopilot_gpu.errors import InvalidRequest, ModelLoading, ModelUnavailable, ServiceError, ShuttingDown
from zopilot_gpu.events import Event, Job
from zopilot_gpu.settings import Settings
from zopilot_gpu.store.fetch import fetch
from zopilot_gpu.store.locate import Located, locate, search_roots
from zopilot_gpu.text.template import Template, template_for
from zopilot_gpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from runners.device import Form  # which imports torch

_log = log.get(__name__)
_RETRY_LOADING_S = 5
# NOTE: read when torch is imported; why is in docs/decisions/003-before-torch.md.
BEFORE_TORCH = {"OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}


@dataclass(frozen=True, slots=True)
class _Loaded:
    backend: Backend
    template: Template
    window: int  # tokens of prompt and answer together


def choose_backend(wanted: str, form: "Form") -> tuple[str, str]:
    """Resolves `auto`, `mixtral` or `plain`: the backend's name, and the reason.

    Args:
        wanted: the setting.
        form: how the Mixtral backend would hold the model.

    Raises:
        ModelUnavailable: `mixtral` was asked for and can't be.
    """
    if wanted == "plain":
        return "plain", "ZOPILOT_GPU_RUNNER=plain"
    if form.name:
        return "mixtral", f"the model is a Mixtral, and {form.reason}"
    if wanted == "mixtral":
        raise ModelUnavailable(detail=f"ZOPILOT_GPU_RUNNER=mixtral, but {form.reason}.")
    return "plain", form.reason


class BackgroundRunner:
    """Implements `runners.base.Runner`. Make it inside the event loop that will call it; loading starts at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._event_loop = asyncio.get_running_loop()
        self._loaded: _Loaded | None = None
        self._stopping = threading.Event()
        self._state = RunnerState("loading", "starting", 0.0, settings.model, "unknown", 0, 0, settings.max_waiting)
        # NOTE: a daemon, because a download or a read from a dead volume can't be interrupted, and must not hold up the exit.
        threading.Thread(target=self._load, name="loader", daemon=True).start()

    def state(self) -> RunnerState:
        """See `Runner.state`."""
        if self._loaded is None:
            return self._state
        now = self._loaded.backend.state()
        state = replace(
            self._state,
            num_running=now.num_running,
            num_waiting=now.num_waiting,
            gpu_name=now.gpu_name,
            memory_used_bytes=now.memory_used_bytes,
            memory_total_bytes=now.memory_total_bytes,
            engine=now.engine,
            max_running=now.max_running,
        )
        if now.problem and state.phase == "ready":
            return replace(state, phase="failed", step="failed", problem=now.problem)
        return state

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """See `Runner.generate`."""
        loaded = self._ready()
        loaded.backend.refuse_when_full()  # before the tokenizer's work is spent on it
        ids = await asyncio.to_thread(loaded.template.encode, job.prompt, job.context)
        room = loaded.window - len(ids)
        if room < 1:
            sentence = f"The prompt has {len(ids)} tokens; this model takes at most {loaded.window - 1}."
            raise InvalidRequest(422, "context_length_exceeded", sentence)
        async with aclosing(loaded.backend.generate(job, ids, min(job.max_tokens, room))) as events:
            async for event in events:
                yield event

    async def close(self) -> None:
        """See `Runner.close`."""
        self._stopping.set()
        self._state = replace(self._state, phase="closed")
        if self._loaded:
            await self._loaded.backend.close()
        self._loaded = None

    def _ready(self) -> _Loaded:
        phase = self.state().phase
        if phase == "closed":
            raise ShuttingDown(retry_after_s=_RETRY_LOADING_S)
        if phase == "loading":
            raise ModelLoading(retry_after_s=_RETRY_LOADING_S)
        if self._loaded is None or phase == "failed":
            raise ModelUnavailable
        return self._loaded

    # The rest runs on the loading thread.

    def _load(self) -> None:
        began_s = time.monotonic()
        try:
            located = self._find()
            self._state = replace(self._state, model=located.name)
            self._loaded = self._load_backend(located)
        except ShuttingDown:
            _log.info("loading_stopped")
        except ServiceError as problem:
            self._fail(problem.detail or problem.message)
        except Exception as error:  # noqa: BLE001  (a border: whatever fails here, the process goes on to say so)
            _log.error("load_failed", exc_info=error)
            self._fail(f"Loading failed: {type(error).__name__}: {error}")
        else:
            load_s = round(time.monotonic() - began_s, 2)
            self._state = replace(self._state, phase="ready", step="ready", progress=1.0, load_s=load_s)
            now = self._state
            _log.info("model_ready", model=now.model, device=now.device, runner=now.runner, why=now.why, load_s=load_s)

    def _load_backend(self, located: Located) -> _Loaded:
        self._progress("importing torch", 0.05)
        for variable, value in BEFORE_TORCH.items():
            os.environ.setdefault(variable, value)
        from runners.device import choose_device, choose_form  # noqa: PLC0415  (torch takes seconds)

        device = choose_device(self._settings.device)
        name, why = choose_backend(self._settings.runner, choose_form(located, device))
        self._state = replace(self._state, device=device.name, runner=name, why=why)
        tokenizer = Tokenizer(located.directory)
        self._progress("weights", 0.1)

        def progress(step: str, share: float) -> None:
            self._progress(step, 0.1 + 0.85 * share)

        if name == "mixtral":
            from runners.mixtral import MixtralBackend as Chosen  # noqa: PLC0415
        else:
            from runners.plain import PlainBackend as Chosen  # type: ignore[assignment]  # noqa: PLC0415
        backend = Chosen(located, device, tokenizer, self._settings, self._event_loop, progress)
        return _Loaded(backend, template_for(located.model_type, tokenizer), backend.window)

    def _find(self) -> Located:
        self._progress("looking for the model", 0.0)
        wanted = self._settings
        roots = search_roots(wanted.volume, wanted.hf_home)
        try:
            return locate(wanted.model, wanted.revision, roots)
        except ModelUnavailable:
            if not wanted.allow_download:
                raise
        self._progress("downloading", 0.01)
        root = next(root for root in roots if root.is_dir() or root == roots[-1])
        token = wanted.hf_token.get_secret_value() if wanted.hf_token else None
        cache = root / ("hub" if root == roots[-1] else "huggingface/hub")
        fetch(wanted.model, wanted.revision, cache, token)
        return locate(wanted.model, wanted.revision, roots)

    def _progress(self, step: str, share: float) -> None:
        if self._stopping.is_set():
            raise ShuttingDown
        self._state = replace(self._state, step=step, progress=round(share, 3))
        _log.info("loading", step=step, progress=round(share, 3))

    def _fail(self, problem: str) -> None:
        self._state = replace(self._state, phase="failed", step="failed", problem=problem)
        _log.error("model_unavailable", problem=problem)
