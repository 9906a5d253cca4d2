"""The gate on a served instance: keys on every route, CORS, and what leaks into the log."""

import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import KEY, Serve, Server
from zopilot_gpu.api.auth import OPEN_PATHS
from zopilot_gpu.api.playground import PATHS

ROUTES = {
    "/": "GET",
    "/docs.json": "GET",
    "/health": "GET",
    "/jobs": "GET",
    "/jobs/{id}": "DELETE",
    "/jobs/{id}/events": "GET",
    "/healthz": "GET",
    "/livez": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
    "/ping": "GET",
    "/playground": "GET",
    "/playground/app.js": "GET",
    "/playground/icon.svg": "GET",
    "/playground/style.css": "GET",
    "/prompt": "POST",
    "/readyz": "GET",
    "/schema.json": "GET",
    "/static_content/index.css": "GET",
    "/unknown": "GET",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/models": "GET",
    "/v1/models/{model}": "GET",
    "/v1/unknown": "POST",
    "/warmup": "POST",
}
OPEN = OPEN_PATHS | PATHS | {"/health"}
WRONG_KEYS: list[dict[str, Any]] = [
    {"X-API-Key": "wrong"},
    {"X-API-Key": KEY[:-1]},
    {"X-API-Key": KEY + "x"},
    {"X-API-Key": KEY.upper()},
    {"X-API-Key": "\xe9".encode("latin-1")},
    {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"},
    {"Authorization": "Bearer wrong"},
    {"Authorization": f"Bearer {KEY},other"},
]
NO_KEYS: list[dict[str, Any]] = [{}, {"X-API-Key": ""}, {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Key": KEY}]


def test_every_route_of_the_service_has_a_rule_here(mixtral_server: Server) -> None:
    with mixtral_server.client() as client:
        served = client.get("/schema.json").json()["paths"]
        assert {path.replace(":path}", "}") for path in served} <= set(ROUTES)


@pytest.mark.parametrize(("path", "host"), list(itertools.product(ROUTES, ["127.0.0.1", "livez", "evil.example/livez"])))
def test_a_route_needs_a_key_unless_it_is_open(mixtral_server: Server, path: str, host: str) -> None:
    with mixtral_server.client(headers={"Host": host}) as client:
        for expected, headers in [(401, NO_KEYS), (403, WRONG_KEYS)]:
            for sent in headers:
                status = client.request(ROUTES[path], path, headers=sent).status_code
                assert status == (200 if path in OPEN else expected), (path, sent)


@pytest.mark.parametrize(
    "path", ["/livez/", "//livez", "/LIVEZ", "/livez/../prompt", "/prompt%2f..%2flivez", "/ping;x", "/%70ing/"]
)
def test_a_path_that_looks_open_is_not(mixtral_server: Server, path: str) -> None:
    assert httpx.get(f"{mixtral_server.url}{path}", headers={"X-API-Key": "wrong"}, timeout=60).status_code == 403


def test_any_of_several_keys_is_good_and_health_can_be_closed(serve: Serve, tmp_path: object) -> None:
    with serve(
        ready=False, ZOPILOT_GPU_API_KEY="first, second", ZOPILOT_GPU_MODEL="demo", HEALTH_CHECK_PUBLIC="false"
    ) as server:
        server.headers = {"Authorization": "Bearer second"}
        server.wait_for(lambda health: "status" in health)
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 401
        assert httpx.get(f"{server.url}/health", headers={"X-API-Key": "first"}, timeout=60).status_code == 200


def test_a_preflight_of_an_allowed_origin_passes_without_a_key(mixtral_server: Server) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "X-API-Key, Content-Type",
    }
    response = httpx.options(f"{mixtral_server.url}/prompt", headers=asked, timeout=60)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    refused = httpx.options(f"{mixtral_server.url}/prompt", headers=asked | {"Origin": "https://evil.example"}, timeout=60)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "cors_refused"
    assert "access-control-allow-origin" not in refused.headers


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("authorization,content-type,x-stainless-arch,x-stainless-helper-method,x-stainless-some-new-one", 200),
        ("x-stainless-lang", 200),
        ("openai-organization, openai-project, user-agent", 200),
        ("authorization,x-stainless-lang,x-other", 400),
        ("x-stainless-lang;x", 400),
        ("x-stainless-" + "a" * 100, 400),
    ],
)
def test_a_preflight_of_openais_client_passes(mixtral_server: Server, wanted: str, status: int) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    response = httpx.options(f"{mixtral_server.url}/v1/chat/completions", headers=asked, timeout=60)
    assert response.status_code == status
    allowed = response.headers.get("access-control-allow-headers", "").lower().split(", ")
    assert status == 400 or set(wanted.replace(" ", "").split(",")) <= set(allowed)


@pytest.mark.parametrize(("request_kind", "status"), [("no key", 401), ("bad body", 400), ("no route", 404), ("fine", 200)])
def test_answers_and_errors_carry_the_cors_headers(mixtral_server: Server, request_kind: str, status: int) -> None:
    headers = {"Origin": "https://app.example", "Content-Type": "application/json"}
    if request_kind != "no key":
        headers["X-API-Key"] = KEY
    path = "/nothing" if request_kind == "no route" else "/prompt"
    body = "{" if request_kind == "bad body" else '{"prompt": "Hi", "max_tokens": 1}'
    response = httpx.post(f"{mixtral_server.url}{path}", content=body, headers=headers, timeout=60)
    assert response.status_code == status
    assert response.headers["access-control-allow-origin"] == "https://app.example"
    assert "x-request-id" in response.headers["access-control-expose-headers"].lower()


@pytest.fixture(scope="module")
def talkative(serve: Serve, tiny_mixtral: Path) -> Iterator[Server]:
    """A service that logs all that it ever would."""
    with serve(ZOPILOT_GPU_MODEL=str(tiny_mixtral), ZOPILOT_GPU_LOG_LEVEL="debug") as server:
        yield server


def test_nothing_of_a_request_reaches_the_log_but_its_line(talkative: Server) -> None:
    canaries = [f"canary{number}" for number in range(6)]
    with talkative.client() as client:
        client.post("/prompt", json={"prompt": canaries[0], "context": {canaries[1]: canaries[2]}, "max_tokens": 2})
        streamed = client.post("/prompt", json={"prompt": "Hi", "max_tokens": 8, "temperature": 0, "stream": True})
        canaries += [json.loads(line[6:])["text"] for line in streamed.text.splitlines() if line.startswith('data: {"text"')]
        client.post("/prompt", json={"prompt": [canaries[0]], canaries[1]: canaries[2]})
        client.post("/prompt", content=canaries[0], headers={"Content-Type": "application/json"})
        client.post(f"/nothing?key={canaries[3]}", headers={"X-API-Key": canaries[4], "Cookie": canaries[5]})
    for _ in range(1000):  # the line follows the answer
        log = talkative.log.read_text()
        if '"path": "/nothing"' in log:
            break
        time.sleep(0.05)
    assert '"path": "/nothing"' in log
    assert '"level": "debug"' in log
    assert len(canaries) > 10
    assert [word for word in [*canaries, KEY] if len(word.strip()) > 3 and word in log] == []
