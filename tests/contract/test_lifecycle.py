"""From start to stop: without a key, without a model, while loading, past the deadline, on SIGTERM."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, Serve, free_port


@pytest.mark.parametrize("key", [None, "", " , "])
def test_without_a_key_the_service_refuses_to_start_and_says_how(key: str | None) -> None:
    command = [sys.executable, "-m", "bentoml", "serve", "service:ZopilotGPU", "--port", str(free_port())]
    env = {"PATH": "/usr/bin:/bin", "BENTOML_DO_NOT_TRACK": "True"} | ({} if key is None else {"ZOPILOT_GPU_API_KEY": key})
    ended = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "ZOPILOT_GPU_API_KEY" in ended.stderr
    assert "ZOPILOT_GPU_ALLOW_ANONYMOUS" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_anonymous_use_can_be_allowed_on_purpose(serve: Serve, tiny_llama: Path) -> None:
    with serve(ZOPILOT_GPU_API_KEY="", ZOPILOT_GPU_ALLOW_ANONYMOUS="true", ZOPILOT_GPU_MODEL=str(tiny_llama)) as server:
        response = httpx.post(f"{server.url}/prompt", json={"prompt": "Hi", "max_tokens": 1}, timeout=60)
        assert response.status_code == 200
        assert response.json()["metadata"]["model"] == tiny_llama.name


def test_while_the_model_loads_the_port_answers_and_says_so(serve: Serve, tiny_mixtral: Path) -> None:
    with serve(ready=False, ZOPILOT_GPU_MODEL=str(tiny_mixtral), ZOPILOT_GPU_RUNNER="plain") as server:
        health = server.wait_for(lambda health: health["status"] == "loading")
        assert 0 <= health["model"]["progress"] < 1
        with server.client() as client:
            assert client.get("/ping").status_code == 204
            assert client.get("/livez").status_code == 200
            assert client.post("/warmup").status_code == 202
            ready = client.get("/readyz")
            refused = client.post("/prompt", json={"prompt": "Hi"})
            for response, code in [(ready, "not_ready"), (refused, "model_loading")]:
                assert response.status_code == 503
                assert response.json()["error"]["code"] == code
                assert int(response.headers["retry-after"]) > 0
            assert "zopilot_gpu_ready 0.0" in client.get("/metrics").text
            server.wait_for(lambda health: health["status"] == "ok", timeout_s=240)
            assert client.get("/ping").status_code == client.get("/readyz").status_code == 200
            assert client.post("/warmup").json()["status"] == "ok"
            assert "zopilot_gpu_ready 1.0" in client.get("/metrics").text
    steps = [json.loads(line) for line in server.log.read_text().splitlines() if '"loading"' in line]
    assert any("file" in step["step"] and 0 < step["progress"] < 1 for step in steps)


async def test_the_deadline_counts_waiting_and_talking(serve: Serve, tiny_mixtral: Path) -> None:
    asked = {"prompt": "Tell me.", "max_tokens": 4000, "temperature": 0}
    with serve(ZOPILOT_GPU_MODEL=str(tiny_mixtral), ZOPILOT_GPU_REQUEST_TIMEOUT_S="1.5") as server:
        async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=120) as client:
            whole, second = await asyncio.gather(*(client.post("/prompt", json=asked) for _ in range(2)))
            for response in (whole, second):
                assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
            stream = await client.post("/prompt", json=asked | {"stream": True})
    *_, last = stream.text.strip().split("event: ")
    assert stream.status_code == 200
    assert last.startswith("error")
    assert '"deadline_exceeded"' in last


async def test_a_caller_who_left_does_not_hold_up_the_stop(serve: Serve, tiny_mixtral: Path) -> None:
    with serve(ZOPILOT_GPU_MODEL=str(tiny_mixtral)) as server:
        async with httpx.AsyncClient(base_url=server.url, headers=server.headers) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post("/prompt", json={"prompt": "Hi", "max_tokens": 4000}, timeout=0.5)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 120) == 0
    assert '"status": null' in server.log.read_text()
