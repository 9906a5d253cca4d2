"""`POST /prompt` over HTTP on a random-weight Mixtral: shapes, streams, sampling, stops and limits."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import KEY, Serve, Server
from zopilot_gpu.api.schemas import PromptResponse

WINDOW = 256


@pytest.fixture(scope="module", params=["mixtral", "plain"])
def server(request: pytest.FixtureRequest, serve: Serve, tiny_mixtral: Path) -> Iterator[Server]:
    """A Mixtral of random weights, on each backend."""
    settings = {"ZOPILOT_GPU_MODEL": str(tiny_mixtral), "ZOPILOT_GPU_MAX_CONTEXT_TOKENS": str(WINDOW)}
    with serve(ZOPILOT_GPU_RUNNER=request.param, **settings) as server:
        assert server.health()["model"]["runner"] == request.param
        yield server


ASKED = {"prompt": "Tell me.", "max_tokens": 24, "seed": 7, "temperature": 1.0}


def post(server: Server, **fields: Any) -> dict[str, Any]:
    with server.client() as client:
        response = client.post("/prompt", json=ASKED | fields)
    assert response.status_code == 200, response.text
    return dict(response.json())


def events(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in response.text.replace("\r\n", "\n").strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_an_answer_has_the_documented_shape(server: Server) -> None:
    with server.client() as client:
        response = client.post("/prompt", json=ASKED | {"context": {"a": 1}}, headers={"X-Request-ID": "abc-1"})
    body = response.json()
    metadata = PromptResponse.model_validate(body, strict=True, extra="forbid").metadata
    assert response.headers["x-request-id"] == metadata.request_id == "abc-1"
    assert metadata.prompt_length == len(ASKED["prompt"])  # type: ignore[arg-type]
    assert metadata.context_provided
    assert metadata.output_type == "text"
    assert metadata.finish_reason == "length"
    assert metadata.usage.completion_tokens == 24
    assert metadata.usage.prompt_tokens > 10
    assert metadata.usage.cached_tokens == 0
    assert abs(datetime.fromisoformat(metadata.generated_at) - datetime.now(UTC)) < timedelta(minutes=1)
    assert 0 < metadata.processing_time_seconds < 60


def test_a_stream_tells_the_same_answer_piece_by_piece(server: Server) -> None:
    whole = post(server)
    with server.client() as client:
        response = client.post("/prompt", json=ASKED | {"stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *texts, (last, done) = events(response)
    assert {name for name, _ in texts} == {"text"}
    assert len(texts) > 5
    assert last == "done"
    assert "".join(data["text"] for _, data in texts) == done["output"] == whole["output"]
    assert set(done) == set(whole)
    assert done["metadata"]["usage"] == whole["metadata"]["usage"]


def test_a_stream_that_is_refused_is_not_a_200(server: Server) -> None:
    with server.client() as client:
        response = client.post("/prompt", json=ASKED | {"stream": True, "prompt": "word " * 400})
    assert response.status_code == 422
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(server: Server) -> None:
    answers = [post(server, seed=seed)["output"] for seed in (7, 7, 8)]
    assert answers[0] == answers[1] != answers[2]


def test_without_a_seed_answers_differ(server: Server) -> None:
    assert post(server, seed=None)["output"] != post(server, seed=None)["output"]


def test_temperature_0_is_greedy_whatever_the_seed(server: Server) -> None:
    answers = {post(server, seed=seed, temperature=0)["output"] for seed in (1, 2, None)}
    assert len(answers) == 1


@pytest.mark.parametrize("size", [1, 3])
def test_a_stop_string_ends_the_answer_and_never_shows(server: Server, size: int) -> None:
    whole: str = post(server)["output"]
    stop = whole[10 : 10 + size]
    cut = whole.index(stop)
    answer = post(server, stop=[stop, "never in it"])
    assert answer["output"] == whole[:cut]
    assert answer["metadata"]["finish_reason"] == "stop"
    assert answer["metadata"]["usage"]["completion_tokens"] < 24
    with server.client() as client:
        streamed = client.post("/prompt", json=ASKED | {"stop": [stop], "stream": True})
    assert "".join(data["text"] for name, data in events(streamed) if name == "text") == whole[:cut]


def test_the_context_window_cuts_an_answer_that_max_tokens_would_allow(server: Server) -> None:
    usage = post(server, max_tokens=1024)["metadata"]["usage"]
    assert usage["prompt_tokens"] + usage["completion_tokens"] == WINDOW


def test_a_bearer_token_and_defaults_are_enough(server: Server) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    response = httpx.post(f"{server.url}/prompt", json={"prompt": "Hi", "max_tokens": 1}, headers=headers, timeout=60)
    assert response.status_code == 200
