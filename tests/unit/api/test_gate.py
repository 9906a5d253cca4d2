"""Holds the whole gate: its order, what the settings open, and what browsers are told."""

from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp, Message

from zopilot_gpu.api.gate import through_the_gate
from zopilot_gpu.settings import Settings

KEY = "key-of-the-tests"
ORIGIN = "https://app.example"
PREFLIGHT = {
    "Origin": ORIGIN,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "X-API-Key, Content-Type",
}


def gate(app: ASGIApp, **settings: Any) -> ASGIApp:
    return through_the_gate(app, Settings(api_key=(SecretStr(KEY),), **settings))


async def test_without_a_key_neither_headers_nor_body_are_looked_at(raw: Any, echo: ASGIApp) -> None:
    async def receive() -> Message:
        pytest.fail("the body was read")

    headers = [(b"x-filler", b"y" * 1000)] * 200
    assert (await raw(gate(echo), receive, path="/prompt", method="POST", headers=headers)).status == 401


@pytest.mark.parametrize(
    ("content_type", "content", "status"),
    [("text/plain", b"{", 415), ("application/json", b"{", 400), ("application/json", b"{}", 422)],
)
async def test_limits_come_before_parsing_and_parsing_before_the_route(
    client: Any, echo: ASGIApp, content_type: str, content: bytes, status: int
) -> None:
    async with client(gate(echo)) as http:
        response = await http.post("/prompt", content=content, headers={"X-API-Key": KEY, "Content-Type": content_type})
    assert response.status_code == status
    assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(("public", "status"), [(True, 200), (False, 401)])
async def test_health_is_open_unless_the_settings_close_it(client: Any, echo: ASGIApp, public: bool, status: int) -> None:  # noqa: FBT001
    async with client(gate(echo, health_check_public=public)) as http:
        assert (await http.get("/health")).status_code == status
        assert (await http.get("/ping")).status_code == 200
        assert (await http.get("/metrics")).status_code == 401


async def test_a_preflight_of_an_allowed_origin_needs_no_key(client: Any, echo: ASGIApp) -> None:
    async with client(gate(echo, allowed_origins=(ORIGIN,))) as http:
        response = await http.options("/prompt", headers=PREFLIGHT)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert response.headers["access-control-allow-methods"] == "DELETE, GET, POST"
    assert {"X-API-Key", "Authorization", "Content-Type"} <= set(response.headers["access-control-allow-headers"].split(", "))
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "refused",
    [
        {"Origin": "https://other.example"},
        {"Origin": f"{ORIGIN}.other.example"},
        {"Origin": "null"},
        {"Access-Control-Request-Method": "PUT"},
        {"Access-Control-Request-Headers": "X-Other"},
    ],
    ids=str,
)
async def test_any_other_preflight_is_refused_in_the_documented_shape(
    client: Any, echo: ASGIApp, refused: dict[str, str]
) -> None:
    async with client(gate(echo, allowed_origins=(ORIGIN,))) as http:
        response = await http.options("/prompt", headers=PREFLIGHT | {"X-Request-ID": "rid-1"} | refused)
    assert response.status_code == 400
    assert response.json()["success"] is False
    assert (response.json()["error"]["code"], response.json()["error"]["request_id"]) == ("cors_refused", "rid-1")
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("allowed", "origin", "told"),
    [
        ((ORIGIN,), ORIGIN, ORIGIN),
        ((ORIGIN,), "https://other.example", None),
        (("*",), "https://any.example", "*"),
        ((), ORIGIN, None),
    ],
)
@pytest.mark.parametrize("key", [KEY, "wrong"], ids=["answer", "refusal"])
async def test_answers_and_refusals_tell_the_browser_the_same(
    client: Any, echo: ASGIApp, allowed: tuple[str, ...], origin: str, told: str | None, key: str
) -> None:
    async with client(gate(echo, allowed_origins=allowed)) as http:
        response = await http.get("/health", headers={"Origin": origin})
        refusal = await http.get("/metrics", headers={"Origin": origin, "X-API-Key": key})
    for one in (response, refusal):
        assert one.headers.get("access-control-allow-origin") == told
    assert refusal.status_code == (200 if key == KEY else 403)


async def test_a_browser_may_read_the_id_and_when_to_try_again(client: Any, echo: ASGIApp) -> None:
    async with client(gate(echo, allowed_origins=(ORIGIN,))) as http:
        response = await http.get("/health", headers={"Origin": ORIGIN})
    assert set(response.headers["access-control-expose-headers"].split(", ")) == {"X-Request-ID", "Retry-After", "Location"}


async def test_without_origins_a_preflight_is_a_request_like_any_other(client: Any, echo: ASGIApp) -> None:
    async with client(gate(echo)) as http:
        assert (await http.options("/prompt", headers=PREFLIGHT)).status_code == 401
