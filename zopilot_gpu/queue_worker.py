"""The service as a worker of a RunPod queue: jobs come through RunPod's SDK, and are answered by the runner in this process.

    {"input": {"endpoint": "/prompt" | "/health", "data": {...}, "api_key": "...", "callback_url": "..."}}
    {"input": {"prompt": "...", ...}}     the short form: the body of /prompt, with api_key and callback_url beside it

Knows RunPod's jobs; what may be asked and how an answer looks is api's. With `"stream": true` the pieces of the answer come
first, as `{"text": "..."}`; the last, or only, output is the object that `/prompt` answers with. An engine beyond help ends
the process, as it does the service's worker. Try it on this machine:

    ZOPILOT_GPU_MODEL=demo ZOPILOT_GPU_ALLOW_ANONYMOUS=true python -m zopilot_gpu.queue_worker --rp_serve_api
    curl 127.0.0.1:8000/runsync -H 'Content-Type: application/json' -d @test_input.json
"""

import asyncio
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from pydantic_core import to_json

from runners.background import BackgroundRunner
from zopilot_gpu import log
from zopilot_gpu.api import health, prompt
from zopilot_gpu.api.exchanges import Exchanges
from zopilot_gpu.api.failures import as_service_error, error_body
from zopilot_gpu.api.parse import parse_prompt
from zopilot_gpu.api.request import RequestInfo
from zopilot_gpu.api.schemas import PromptRequest, PromptResponse
from zopilot_gpu.doctor.attending import Attending
from zopilot_gpu.errors import Forbidden, InvalidRequest, Overloaded, Unauthorised
from zopilot_gpu.jobs.outbox import Outbox
from zopilot_gpu.process.worker import Watchdog
from zopilot_gpu.settings import Settings, SettingsError, load_settings

Output = dict[str, Any]
_LOOK_S = 0.25
_PROGRESS_S = 5.0
_FITNESS_S = 120.0
_ENVELOPE = frozenset({"endpoint", "data", "api_key", "callback_url"})
_log = log.get(__name__)


class _Error(dict[str, Any]):
    """An error's `code`, `message` and `request_id`. RunPod keeps `str()` of it as the job's error: that is JSON too."""

    def __str__(self) -> str:
        return json.dumps(self)


class Worker:
    """Does the jobs. `report` sends a job's progress to RunPod."""

    def __init__(self, settings: Settings, report: Callable[[dict[str, Any], Any], None]) -> None:
        self._settings, self._report = settings, report
        self._digests = [hashlib.sha256(key.get_secret_value().encode()).digest() for key in settings.api_key]
        self._started_s = time.monotonic()
        self._doctor = Attending(settings)
        self._exchanges = Exchanges()
        self._runner: BackgroundRunner | None = None
        self._outbox: Outbox | None = None

    def runner(self) -> BackgroundRunner:
        """The runner; made and watched, and so the model loaded, at the first call inside the event loop."""
        if self._runner is None:
            self._runner = BackgroundRunner(self._settings, self._doctor.examine)
            self._outbox = Outbox(self._settings)
            Watchdog(self._runner, self._exchanges, self._settings.hung_step_s).start()
        return self._runner

    def concurrency(self, _current: int) -> int:
        """How many jobs to take at once: what the engine runs at once, and one while it loads (the others fit elsewhere).

        NOTE: none once the device is lost. The SDK's own way to an end, `refresh_worker`, is not for a generator's outputs; in
        its configuration it would say with the first result of many that the worker may go, and end with status 0.
        """
        pulse = self.runner().pulse()
        if pulse and pulse.fatal:
            return 0
        state = self.runner().state()
        return state.max_running if state.phase == "ready" else 1

    async def handle(self, job: dict[str, Any]) -> AsyncGenerator[Output, None]:
        """The outputs of a job. Errors are the last output, in the documented shape; RunPod then calls the job failed."""
        self._count()
        info = RequestInfo(str(job.get("id") or uuid.uuid4().hex)[:64])
        with log.bound(request_id=info.request_id):
            callback_url, last = None, None
            try:
                endpoint, data, callback_url = self._open(job.get("input"), info)
                if endpoint == "/health":
                    last = health.health_of(
                        self.runner().state(), time.monotonic() - self._started_s, authorised=info.authorised
                    )
                    if info.authorised:
                        last["doctor"] = self._doctor.findings
                else:
                    async with aclosing(self._answer(job, data, info)) as outputs:
                        async for output in outputs:
                            last = output
                            yield output
                    return
                yield last
            except Exception as error:  # noqa: BLE001  (a border: the SDK would send the traceback to the caller)
                body = error_body(as_service_error(error), info.request_id)
                last = body | {"error": _Error(body["error"])}
                yield last
            finally:
                if callback_url and last is not None and "success" in last and self._outbox:
                    self._outbox.post(callback_url, info.request_id, last)

    def _count(self) -> None:
        """Has the job count as in flight until its result is with RunPod: the SDK's task posts it, and then ends."""
        number = self._exchanges.begin()
        if task := asyncio.current_task():
            task.add_done_callback(lambda _: self._exchanges.end(number))

    async def _answer(self, job: dict[str, Any], data: bytes, info: RequestInfo) -> AsyncGenerator[Output, None]:
        asked = parse_prompt(data)
        await self._wait_until_loaded(job)
        info.arrived_s = time.monotonic()
        telling = await self._begin(asked, info)
        async with aclosing(telling.as_pieces()) as pieces:
            outputs = _gathered(pieces) if asked.stream else (one async for one in pieces if not isinstance(one, str))
            async for piece in outputs:
                yield piece.model_dump() if isinstance(piece, PromptResponse) else {"text": piece}

    async def _begin(self, asked: PromptRequest, info: RequestInfo) -> prompt.Telling:
        """Waits where the runner is full: a job that was taken from the queue is ours."""
        while True:
            try:
                return await prompt.begin(self.runner(), asked, info, self._settings.request_timeout_s)
            except Overloaded as full:
                if time.monotonic() + (full.retry_after_s or 1) > info.arrived_s + self._settings.request_timeout_s:
                    raise
                await asyncio.sleep(full.retry_after_s or 1)

    async def _wait_until_loaded(self, job: dict[str, Any]) -> None:
        told_s = 0.0
        while (state := self.runner().state()).phase == "loading":
            if time.monotonic() - told_s >= _PROGRESS_S:
                told_s = time.monotonic()
                self._report(job, {"status": "loading", "step": state.step, "progress": state.progress})
            await asyncio.sleep(_LOOK_S)

    def _open(self, sent: object, info: RequestInfo) -> tuple[str, bytes, str | None]:
        """The endpoint, the body and the callback URL of a job, once its key is right."""
        if not isinstance(sent, dict):
            raise InvalidRequest(422, "invalid_request", "input: Input should be an object")
        whole = dict(sent)
        key, callback_url = whole.pop("api_key", None), whole.pop("callback_url", None)
        if "endpoint" in whole:
            if unknown := set(whole) - _ENVELOPE:
                raise InvalidRequest(422, "invalid_request", f"input.{str(sorted(unknown)[0])[:100]}: unknown field")
            endpoint, data = whole["endpoint"], whole.get("data", {})
        else:
            endpoint, data = "/prompt", whole
        if not (endpoint == "/health" and self._settings.health_check_public):
            self._authorise(key, info)
        if endpoint not in ("/prompt", "/health"):
            raise InvalidRequest(404, "not_found", "There is no such endpoint: /prompt and /health are.")
        if callback_url is not None:
            if not isinstance(callback_url, str):
                raise InvalidRequest(422, "callback_refused", "callback_url: Input should be a valid string")
            self.runner()
            if self._outbox:
                self._outbox.check(callback_url)
        return endpoint, _as_body(data, self._settings.max_body_bytes), callback_url

    def _authorise(self, key: object, info: RequestInfo) -> None:
        if not self._digests:
            info.authorised = True
            return
        if not isinstance(key, str) or not key:
            raise Unauthorised("Send your key as 'api_key' in the input.")
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        if sum(hmac.compare_digest(digest, known) for known in self._digests) == 0:
            raise Forbidden
        info.authorised, info.owner = True, digest


def _as_body(data: object, max_bytes: int) -> bytes:
    """`data` as the bytes that `/prompt` would have been sent, so that the same rules hold for both."""
    try:
        body = to_json(data, inf_nan_mode="constants")
    except ValueError:
        raise InvalidRequest(400, "invalid_json", "The body is not valid JSON in UTF-8, or is nested too deeply.") from None
    if len(body) > max_bytes:
        raise InvalidRequest(413, "body_too_large", f"The body may have at most {max_bytes} bytes.")
    return body


async def _gathered(pieces: AsyncGenerator[str | PromptResponse, None]) -> AsyncGenerator[str | PromptResponse, None]:
    """The same, with what came while the last piece was being sent as one piece: RunPod takes one at a time.

    NOTE: RunPod cancels the task that iterates, which may be waiting in the SDK and not in here: the reader ends with it.
    """
    arrived: list[str | PromptResponse] = []
    more = asyncio.Event()

    async def read() -> None:
        try:
            async for piece in pieces:
                arrived.append(piece)
                more.set()
        finally:
            more.set()

    reader = asyncio.create_task(read())
    if task := asyncio.current_task():
        task.add_done_callback(lambda _: reader.cancel())
    try:
        while arrived or not reader.done():
            await more.wait()
            more.clear()
            taken, arrived[:] = arrived[:], []
            if text := "".join(piece for piece in taken if isinstance(piece, str)):
                yield text
            for whole in (piece for piece in taken if isinstance(piece, PromptResponse)):
                yield whole
        await reader
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


class UnfitError(RuntimeError):
    """This machine can't do the jobs; the text says why and what to do. RunPod takes the worker away and keeps the text."""


def doctor() -> None:
    """RunPod's fitness check, made before a job is taken: doctor's checks, without those that take long.

    NOTE: in a process of its own. The SDK forks afterwards, and a fork of a process that has opened the GPU would hold its
    memory for as long as the fork lives; and a library that is dead enough ends only that process.

    Raises:
        UnfitError: a check failed.
    """
    command = [sys.executable, "-m", "zopilot_gpu.cli", "doctor", "--quick", "--json"]
    try:
        ended = subprocess.run(  # noqa: S603  (our own command)
            command, check=False, capture_output=True, text=True, timeout=_FITNESS_S
        )
        checks = json.loads(ended.stdout)["checks"]
    except (subprocess.TimeoutExpired, ValueError, LookupError) as error:
        raise UnfitError(f"The machine could not be examined ({type(error).__name__}): see `zopilot-gpu doctor`.") from None
    if failed := [f"{check['name']}: {check['reason']} {check['remedy']}" for check in checks if check["verdict"] == "fail"]:
        raise UnfitError(" ".join(failed))


def main() -> None:
    """Starts the worker; a wrong environment ends it with one sentence."""
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"zopilot-gpu: {error}\n")
        raise SystemExit(2) from None
    log.configure(settings.log_level)
    # NOTE: at debug, its default, the SDK logs every output; what it says at info is jobs' ids.
    os.environ["RUNPOD_LOG_LEVEL"] = {"warning": "WARN", "error": "ERROR"}.get(settings.log_level, "INFO")
    try:
        import runpod  # noqa: PLC0415  (an extra; it takes a second)
    except ImportError:
        sys.stderr.write("zopilot-gpu: the queue worker needs RunPod's SDK: install zopilot-gpu[runpod].\n")
        raise SystemExit(2) from None
    runpod.serverless.register_fitness_check(doctor)
    worker = Worker(settings, runpod.serverless.progress_update)

    async def handler(job: dict[str, Any]) -> AsyncGenerator[Output, None]:
        async with aclosing(worker.handle(job)) as outputs:
            async for output in outputs:
                yield output

    runpod.serverless.start({"handler": handler, "return_aggregate_stream": True, "concurrency_modifier": worker.concurrency})


if __name__ == "__main__":
    main()
