"""A RunPod queue worker: jobs through the SDK's local server, and through its real loops against a stand-in for its API."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import KEY, ROOT, free_port, stop
from tests.faults.receiver import Receiver
from zopilot_gpu.api.schemas import PromptResponse
from zopilot_gpu.process.exits import Exit

TALKATIVE = {"prompt": "Return all fields as JSON.", "context": {f"field_{n}": f"value {n}" for n in range(12)}}
ASKED = {"prompt": "What is the total?", "context": {"vendor": "Acme", "total": "118.40"}, "temperature": 0}


@contextmanager
def working(
    directory: Path, *arguments: str, module: Sequence[str] = ("zopilot_gpu.queue_worker",), **env: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m zopilot_gpu.queue_worker` with the demo model, in a process of its own."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {"ZOPILOT_GPU_MODEL": "demo", "ZOPILOT_GPU_DEVICE": "cpu", "ZOPILOT_GPU_API_KEY": KEY, "HF_HUB_OFFLINE": "1"}
    settings |= {"ZOPILOT_GPU_JOBS_PATH": str(directory / "outbox.db"), "PYTHONPATH": str(ROOT)}
    settings |= {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}
    command = [sys.executable, "-m", *module, *arguments]
    with (directory / "worker.log").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=inherited | settings | env, stdout=output, stderr=output)
        try:
            yield process
        finally:
            stop(process)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The SDK's local server, once the model is loaded."""
    port, directory = free_port(), tmp_path_factory.mktemp("local")
    with working(directory, "--rp_serve_api", "--rp_api_port", str(port)), httpx.Client(timeout=60) as client:
        client.base_url = httpx.URL(f"http://localhost:{port}")
        for _ in range(1000):
            try:
                health = client.post("/runsync", json={"input": {"endpoint": "/health"}}).json()["output"][0]
            except httpx.TransportError:
                time.sleep(0.2)
                continue
            if health["status"] == "ok":
                break
            time.sleep(0.2)
        else:
            pytest.fail((directory / "worker.log").read_text()[-3000:])
        yield client


def long_form(data: Any, **more: Any) -> dict[str, Any]:
    return {"input": {"endpoint": "/prompt", "data": data, "api_key": KEY} | more}


@pytest.mark.parametrize("sent", [long_form(ASKED), {"input": ASKED | {"api_key": KEY}}], ids=["long", "short"])
def test_a_job_is_answered_as_prompt_is(local: httpx.Client, sent: dict[str, Any]) -> None:
    done = local.post("/runsync", json=sent).json()
    assert done["status"] == "COMPLETED"
    (output,) = done["output"]
    answer = PromptResponse.model_validate(output, strict=True, extra="forbid")
    assert answer.output == "118.40"
    assert answer.metadata.request_id == done["id"]


def test_a_job_streams_when_it_asks_to(local: httpx.Client) -> None:
    run = local.post("/run", json=long_form(TALKATIVE | {"stream": True})).json()
    told = [one["output"] for one in local.post(f"/stream/{run['id']}").json()["stream"]]
    assert len(told) > 2
    assert "".join(one["text"] for one in told[:-1]) == told[-1]["output"]
    assert told[-1]["success"] is True


def test_without_stream_the_queue_gives_the_answer_alone(local: httpx.Client) -> None:
    run = local.post("/run", json=long_form(ASKED)).json()
    assert [one["output"] for one in local.post(f"/status/{run['id']}").json()["output"]] == ["118.40"]


BAD: list[tuple[Any, str]] = [
    ({"endpoint": "/prompt", "data": {"prompt": "Hi"}}, "api_key_missing"),
    ({"endpoint": "/prompt", "data": {"prompt": "Hi"}, "api_key": "wrong"}, "api_key_invalid"),
    ({"endpoint": "/prompt", "data": {"prompt": "Hi"}, "api_key": 3}, "api_key_missing"),
    ({"prompt": "Hi"}, "api_key_missing"),
    ({"endpoint": "/prompt", "data": {"prompt": ""}, "api_key": KEY}, "invalid_request"),
    ({"endpoint": "/prompt", "data": {"prompt": "Hi", "max_token": 1}, "api_key": KEY}, "invalid_request"),
    ({"endpoint": "/prompt", "data": [], "api_key": KEY}, "invalid_request"),
    ({"endpoint": "/prompt", "api_key": KEY}, "invalid_request"),
    ({"endpoint": "/prompt", "data": {"prompt": "Hi"}, "api_key": KEY, "more": 1}, "invalid_request"),
    ({"endpoint": "/warmup", "api_key": KEY}, "not_found"),
    ({"endpoint": ["/prompt"], "api_key": KEY}, "not_found"),
    ({"prompt": "Hi", "api_key": KEY, "callback_url": "https://example.com/"}, "callback_refused"),
    ({"prompt": "Hi", "api_key": KEY, "callback_url": 3}, "callback_refused"),
    ({"prompt": "word " * 4000, "api_key": KEY}, "context_length_exceeded"),
    ({"prompt": "Hi", "json_schema": {"type": "objet"}, "api_key": KEY}, "json_schema_invalid"),
    ({"prompt": "x" * 1_100_000, "api_key": KEY}, "body_too_large"),
]


@pytest.mark.parametrize(("sent", "code"), BAD, ids=[f"{number} {code}" for number, (_, code) in enumerate(BAD)])
def test_a_bad_job_ends_with_the_documented_error(local: httpx.Client, sent: Any, code: str) -> None:
    done = local.post("/runsync", json={"input": sent}).json()
    (output,) = done["output"]
    assert output["success"] is False
    assert set(output["error"]) == {"code", "message", "request_id"}
    assert (output["error"]["code"], output["error"]["request_id"]) == (code, done["id"])


async def test_eight_jobs_at_once_run_together(local: httpx.Client) -> None:
    most = 0
    async with httpx.AsyncClient(base_url=local.base_url, timeout=60) as client:
        talking = [asyncio.create_task(client.post("/runsync", json=long_form(TALKATIVE))) for _ in range(8)]
        while not all(task.done() for task in talking):
            health = (await client.post("/runsync", json={"input": {"endpoint": "/health"}})).json()["output"][0]
            most = max(most, health["queue"]["num_running"])
        outputs = {(await task).json()["output"][0]["output"] for task in talking}
    assert most == 8
    assert len(outputs) == 1


class RunPod(ThreadingHTTPServer):
    """As much of RunPod's worker API as the SDK calls: take jobs, post pieces and results, learn what to stop."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.to_take: list[dict[str, Any]] = []
        self.to_stop: list[str] = []
        self.pieces: dict[str, list[Any]] = defaultdict(list)
        self.done: dict[str, dict[str, Any]] = {}
        self.most_taken = 0

    @property
    def env(self) -> dict[str, str]:
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?x=1",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?x=1",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?x=1",
            "RUNPOD_POD_ID": "pod-1",
        }


class _Handler(BaseHTTPRequestHandler):
    server: RunPod

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if "/job-stop/" in path:
            stops, self.server.to_stop = self.server.to_stop, []
            time.sleep(0 if stops else 0.1)
            self._answer({"jobsToStop": stops})
        elif "/job-take" in path:
            size = int(next((part[11:] for part in query.split("&") if part.startswith("batch_size=")), 1))
            taken, self.server.to_take = self.server.to_take[:size], self.server.to_take[size:]
            self.server.most_taken = max(self.server.most_taken, len(taken))
            time.sleep(0 if taken else 0.1)
            if taken:
                self._answer(taken[0] if "-batch" not in path else taken)
            else:
                self.send_response(204)
                self.end_headers()
        else:
            self._answer({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kind, job_id = self.path.split("/")[1], self.path.partition("?")[0].rpartition("/")[2]
        if kind == "job-stream" or body.get("status") == "IN_PROGRESS":
            self.server.pieces[job_id].append(body)
        else:
            self.server.done[job_id] = body
        self._answer({})

    def _answer(self, body: Any) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def wait_for(what: Any, timeout_s: float = 120) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_the_worker_takes_streams_stops_and_reports_as_runpod_asks(tmp_path: Path, tiny_mixtral: Path) -> None:
    """While loading it takes one job and says how far it is; then as many as the engine runs; a stop ends the generation."""
    endless = {"prompt": "Tell me.", "max_tokens": 30_000, "temperature": 1, "stream": True}
    runpod = RunPod()
    threading.Thread(target=runpod.serve_forever, daemon=True).start()
    runpod.to_take = [{"id": "first", "input": {"prompt": "Hi", "max_tokens": 2, "api_key": KEY}}]
    try:
        with working(tmp_path, ZOPILOT_GPU_MODEL=str(tiny_mixtral), **runpod.env):
            wait_for(lambda: "first" in runpod.done)
            assert runpod.pieces["first"][0]["output"]["status"] == "loading"
            assert runpod.done["first"]["output"][0]["metadata"]["usage"]["completion_tokens"] == 2
            time.sleep(0.5)  # the SDK looks at the concurrency before it asks for the next
            runpod.to_take = [{"id": f"job-{n}", "input": endless | {"max_tokens": 40, "api_key": KEY}} for n in range(8)]
            runpod.to_take += [{"id": "stopped", "input": endless | {"api_key": KEY}}]
            runpod.to_take += [{"id": "bad", "input": {"prompt": "", "api_key": KEY}}]
            wait_for(lambda: len(runpod.pieces["stopped"]) > 1 and {f"job-{n}" for n in range(8)} <= set(runpod.done))
            assert runpod.most_taken > 1
            for n in range(8):
                assert runpod.done[f"job-{n}"]["output"][-1]["metadata"]["usage"]["completion_tokens"] == 40
            error = json.loads(runpod.done["bad"]["error"])
            assert error["code"] == "invalid_request"
            runpod.to_stop = ["stopped"]

            def idle() -> bool:
                job_id = f"health-{time.monotonic()}"
                runpod.to_take.append({"id": job_id, "input": {"endpoint": "/health"}})
                wait_for(lambda: job_id in runpod.done)
                return bool(runpod.done[job_id]["output"][0]["queue"]["num_running"] == 0)

            wait_for(idle)
            assert "stopped" not in runpod.done
    finally:
        runpod.shutdown()
        runpod.server_close()


@pytest.mark.parametrize(("fault", "status"), [("sticky", Exit.CUDA_ERROR), ("hang", Exit.HUNG_STEP)])
def test_an_engine_beyond_help_ends_the_worker_once_runpod_has_an_error_for_each_job(
    tmp_path: Path, tiny_mixtral: Path, fault: str, status: Exit
) -> None:
    asked = {"prompt": "Tell me.", "max_tokens": 30_000, "temperature": 1, "api_key": KEY}
    runpod = RunPod()
    threading.Thread(target=runpod.serve_forever, daemon=True).start()
    runpod.to_take = [{"id": "first", "input": asked | {"max_tokens": 2}}]
    env = {"ZOPILOT_GPU_MODEL": str(tiny_mixtral), "ZOPILOT_GPU_HUNG_STEP_S": "4"} | runpod.env
    env |= {"ZOPILOT_GPU_TEST_FAULT": str(tmp_path / "fault")}
    ids = {f"job-{n}" for n in range(6)}
    try:
        with working(tmp_path, module=["tests.faults.faulty_queue"], **env) as process:
            wait_for(lambda: "first" in runpod.done)
            runpod.to_take = [{"id": job_id, "input": asked | {"stream": True}} for job_id in sorted(ids)]
            wait_for(lambda: all(len(runpod.pieces[job_id]) > 1 for job_id in ids))
            (tmp_path / "fault").write_text(fault)
            wait_for(lambda: ids <= set(runpod.done))
            late = {"id": "late", "input": asked}
            runpod.to_take = [late]
            assert process.wait(120) == status
            assert runpod.to_take == [late] or fault == "hang"  # then one may be taken between the last result and the end
    finally:
        runpod.shutdown()
        runpod.server_close()
    errors = {job_id: json.loads(body["error"]) for job_id, body in runpod.done.items() if job_id != "first"}
    assert {job_id: error["code"] for job_id, error in errors.items()} == dict.fromkeys(ids, "engine_failed")


def test_a_result_is_called_back_signed_and_the_job_does_not_wait_for_it(tmp_path: Path) -> None:
    runpod = RunPod()
    threading.Thread(target=runpod.serve_forever, daemon=True).start()
    with Receiver() as receiver:
        url = f"http://{receiver.host}/done"
        runpod.to_take = [{"id": "one", "input": ASKED | {"api_key": KEY, "callback_url": url}}]
        try:
            with working(tmp_path, ZOPILOT_GPU_CALLBACK_RETRY_S="0.2", **receiver.env, **runpod.env):
                wait_for(lambda: "one" in runpod.done)  # while the receiver answers 503
                wait_for(lambda: receiver.num_refused > 0)
                receiver.status = 204
                wait_for(lambda: receiver.deliveries)
        finally:
            runpod.shutdown()
            runpod.server_close()
        ((body,),) = receiver.deliveries.values()
        assert receiver.num_unsigned == 0
    assert (body["type"], body["job"]["id"]) == ("job.done", "one")
    assert body["job"]["result"] == runpod.done["one"]["output"][-1]


def test_the_image_of_the_service_becomes_a_worker_by_one_setting_and_its_log_tells_no_answers(tmp_path: Path) -> None:
    runpod = RunPod()
    threading.Thread(target=runpod.serve_forever, daemon=True).start()
    context = {"vendor": "Acme", "total": "734219.65"}
    runpod.to_take = [{"id": "one", "input": ASKED | {"context": context, "api_key": KEY, "stream": True}}]
    env = runpod.env | {"ZOPILOT_GPU_FACE": "runpod-queue", "ZOPILOT_GPU_LOG_LEVEL": "debug", "RUNPOD_DEBUG_LEVEL": "DEBUG"}
    try:
        with working(tmp_path, module=["bentoml", "serve", "service:ZopilotGPU", "--port", str(free_port())], **env):
            wait_for(lambda: "one" in runpod.done)
        assert runpod.done["one"]["output"][-1]["output"] == "734219.65"
    finally:
        runpod.shutdown()
        runpod.server_close()
    log = (tmp_path / "worker.log").read_text()
    assert '"model_ready"' in log
    assert [word for word in ("734219", "Acme", KEY) if word in log] == []


def test_a_worker_that_can_not_answer_is_unfit_and_says_why(tmp_path: Path) -> None:
    runpod = RunPod()
    threading.Thread(target=runpod.serve_forever, daemon=True).start()
    runpod.to_take = [{"id": "one", "input": ASKED | {"api_key": KEY}}]
    try:
        with working(tmp_path, ZOPILOT_GPU_MODEL="nobody/nothing", HF_HOME=str(tmp_path), **runpod.env) as process:
            assert process.wait(200) == 1
    finally:
        runpod.shutdown()
        runpod.server_close()
    log = (tmp_path / "worker.log").read_text()
    assert "Fitness check failed: doctor | UnfitError: model: nobody/nothing is not in the mounted cache." in log
    assert "Traceback" not in log
    assert runpod.done == {}


def test_without_a_key_the_worker_refuses_to_start_and_says_how(tmp_path: Path) -> None:
    with working(tmp_path, ZOPILOT_GPU_API_KEY="") as process:
        assert process.wait(120) == 2
    assert "ZOPILOT_GPU_ALLOW_ANONYMOUS" in (tmp_path / "worker.log").read_text()
