"""The BentoML service: settings -> runner -> API. Declares the GPU; holds nothing else.

`bentoml serve` on a machine with the model, `bentoml containerize` for the image. Nothing happens on import:
`bentoml build` imports this file on machines without a GPU or a model.
"""

import os
import sys
from pathlib import Path
from typing import Any

import bentoml
from starlette.responses import Response

from runners.background import BackgroundRunner
from runners.base import Runner
from zopilot_gpu import log
from zopilot_gpu.api import jobs, prompt
from zopilot_gpu.api.app import build_app
from zopilot_gpu.api.exchanges import Exchanges
from zopilot_gpu.api.gate import Gate
from zopilot_gpu.api.keys import ring_of
from zopilot_gpu.api.patch import without_timers
from zopilot_gpu.api.quota import Quota
from zopilot_gpu.api.schemas import PromptRequest, PromptResponse
from zopilot_gpu.doctor.attending import Attending
from zopilot_gpu.jobs.queue import JobQueue
from zopilot_gpu.process import worker
from zopilot_gpu.settings import MAX_REQUEST_TIMEOUT_S, SettingsError, load_settings

_made: list[Runner] = []
_made_jobs: list[JobQueue] = []
_exchanges = Exchanges()
_made_doctors: list[Attending] = []


@bentoml.service(
    name="zopilot_gpu",
    resources={"gpu": 1},
    workers=1,
    traffic={"timeout": MAX_REQUEST_TIMEOUT_S + 60},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(build_app(lambda: _made[-1], load_settings, lambda: _made_jobs[-1], lambda: _made_doctors[-1].findings))
class ZopilotGPU:
    """Mixtral-8x7B-Instruct in 4-bit NF4. See docs/api.md for the routes and docs/settings.md for the settings."""

    def __init__(self) -> None:
        self._settings = load_settings()
        log.configure(self._settings.log_level)
        self._doctor = Attending(self._settings)
        _made_doctors.append(self._doctor)
        runner = BackgroundRunner(self._settings, self._doctor.examine)
        self._runner = Quota(runner, ring_of(self._settings))
        _made.append(self._runner)
        self._jobs = jobs.open_queue(self._settings, self._runner)
        _made_jobs.append(self._jobs)
        worker.look_after(runner, self._jobs.close, _exchanges, self._settings)

    @bentoml.api(route="/prompt", input_spec=PromptRequest, output_spec=PromptResponse)
    async def prompt(self, **fields: Any) -> Response:
        """Answers a prompt about an optional context."""
        asked = PromptRequest.model_construct(**fields)
        return await prompt.answer(self._runner, asked, self._settings.request_timeout_s)

    async def __is_ready__(self) -> bool:
        return self._runner.state().phase == "ready"

    @bentoml.on_shutdown
    async def close(self) -> None:
        """Ends all work when the server stops."""
        await self._jobs.close()
        await self._runner.close()

    @bentoml.on_deployment
    @staticmethod
    def before_the_workers() -> None:
        """Runs once, in the launcher: a wrong environment ends the start with one sentence; another face takes over here."""
        try:
            settings = load_settings()
            ring_of(settings)
        except SettingsError as error:
            print(f"zopilot-gpu: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if settings.face == "runpod-queue":
            os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
            os.execv(sys.executable, [sys.executable, "-m", "zopilot_gpu.queue_worker"])  # noqa: S606  (our own command)
        from zopilot_gpu.process.launcher import supervise  # noqa: PLC0415  (circus: the launcher's alone)

        supervise(settings)


without_timers()
ZopilotGPU.add_asgi_middleware(Gate, exchanges=_exchanges)  # type: ignore[attr-defined]  # the decorator made it a bentoml.Service
