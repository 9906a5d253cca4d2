"""Holds the one shape of every error: whoever raised or answered it, with the request's id, and never with its cause."""

import json
from typing import Any

import pytest
from starlette.types import ASGIApp, Receive, Scope, Send

from zopilot_gpu.api import request
from zopilot_gpu.api.failures import ErrorResponse, Failures
from zopilot_gpu.errors import (
    DeadlineExceeded,
    Forbidden,
    InvalidRequest,
    ModelLoading,
    ModelUnavailable,
    Overloaded,
    ServiceError,
    Unauthorised,
)

SECRET = "canary-of-the-cause"
OWN_HEADERS = [(b"content-type", b"text/html"), (b"content-length", b"7"), (b"set-cookie", b"a=b"), (b"server", b"other")]
KEPT_HEADERS = [(b"allow", b"GET, HEAD"), (b"retry-after", b"9"), (b"www-authenticate", b"Basic")]


def answering(status: int, headers: list[tuple[bytes, bytes]]) -> ASGIApp:
    """Another framework's answer, in two pieces."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"canary-", "more_body": True})
        await send({"type": "http.response.body", "body": b"of the other"})

    return app


def raising(error: Exception) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise error

    return app


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (418, "invalid_request"),
        (500, "internal_error"),
        (503, "not_ready"),
    ],
)
async def test_errors_of_other_frameworks_get_our_shape_and_keep_their_status(client: Any, status: int, code: str) -> None:
    async with client(Failures(answering(status, OWN_HEADERS))) as http:
        response = await http.get("/", headers={"X-Request-ID": "rid-1"})
    assert response.status_code == status
    body = response.json()
    assert (sorted(body), body["success"], sorted(body["error"])) == (
        ["error", "success"],
        False,
        ["code", "message", "request_id"],
    )
    assert (body["error"]["code"], body["error"]["request_id"]) == (code, "rid-1")
    assert "canary" not in response.text
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)
    assert not {"set-cookie", "server"} & set(response.headers)


@pytest.mark.parametrize("status", [401, 405, 503])
async def test_headers_that_a_client_acts_on_stay(client: Any, status: int) -> None:
    async with client(Failures(answering(status, OWN_HEADERS + KEPT_HEADERS))) as http:
        response = await http.get("/")
    kept = {name: response.headers[name] for name in ("allow", "retry-after", "www-authenticate")}
    assert kept == {"allow": "GET, HEAD", "retry-after": "9", "www-authenticate": "Basic"}


async def test_not_ready_says_when_to_try_again(client: Any) -> None:
    async with client(Failures(answering(503, OWN_HEADERS))) as http:
        assert int((await http.get("/")).headers["retry-after"]) > 0


@pytest.mark.parametrize("status", [200, 202, 204, 302])
async def test_other_answers_pass_unchanged_but_for_the_id(raw: Any, status: int) -> None:
    sent = await raw(Failures(answering(status, list(OWN_HEADERS))), headers=[(b"x-request-id", b"rid-1")])
    assert sent.messages[0]["headers"] == [*OWN_HEADERS, (b"x-request-id", b"rid-1")]
    assert sent.body == b"canary-of the other"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        ExceptionGroup(SECRET, [OSError(SECRET)]),
        UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, SECRET),
        ServiceError(detail=SECRET),
        ModelUnavailable(detail=SECRET),
        Overloaded(detail=SECRET, retry_after_s=3),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_the_cause_of_an_error_is_not_in_the_answer(client: Any, error: Exception) -> None:
    async with client(Failures(raising(error))) as http:
        response = await http.get("/")
    assert response.status_code == getattr(error, "status", 500)
    assert response.json()["error"]["code"] == getattr(error, "code", "internal_error")
    assert SECRET not in f"{response.headers} {response.text}"


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (Overloaded(retry_after_s=3), 429, {"retry-after": "3"}),
        (ModelLoading(retry_after_s=5), 503, {"retry-after": "5"}),
        (Unauthorised(), 401, {"www-authenticate": "Bearer"}),
        (Forbidden(), 403, {"www-authenticate": "Bearer"}),
        (InvalidRequest(408, "body_timeout", "Slow."), 408, {"connection": "close"}),
        (InvalidRequest(413, "body_too_large", "Large."), 413, {"connection": "close"}),
        (InvalidRequest(422, "invalid_request", "Wrong."), 422, {}),
        (DeadlineExceeded(), 504, {}),
    ],
    ids=lambda value: value.code if isinstance(value, ServiceError) else None,
)
async def test_our_errors_are_told_once_with_the_headers_of_their_kind(
    client: Any, error: ServiceError, status: int, headers: dict[str, str]
) -> None:
    async def returning(scope: Scope, receive: Receive, send: Send) -> None:
        await ErrorResponse(error)(scope, receive, send)

    acted_on = {"retry-after", "www-authenticate", "connection"}
    for app in (raising(error), returning):
        async with client(Failures(app)) as http:
            response = await http.get("/", headers={"X-Request-ID": "rid-1"})
        assert response.status_code == status
        assert response.json() == {
            "success": False,
            "error": {"code": error.code, "message": error.message, "request_id": "rid-1"},
        }
        assert {name: value for name, value in response.headers.items() if name in acted_on} == headers


async def test_an_error_after_the_answer_began_adds_nothing_to_it(raw: Any) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        raise ValueError(SECRET)

    sent = await raw(Failures(app))
    assert (sent.status, sent.body) == (200, b"begun")
    assert len(sent.messages) == 2


@pytest.mark.parametrize("sent_id", ["rid-1", "a" * 64, "A.b_c-9", "0"])
async def test_a_well_formed_request_id_is_kept(client: Any, echo: ASGIApp, sent_id: str) -> None:
    async with client(Failures(echo)) as http:
        assert (await http.get("/", headers={"X-Request-ID": sent_id})).headers["x-request-id"] == sent_id


@pytest.mark.parametrize("sent_id", [None, b"", b"a" * 65, b"a b", b"a\nb", b"a\n", "ä".encode(), b"{}", b"<script>"])
async def test_any_other_request_id_is_replaced_by_a_fresh_one(raw: Any, echo: ASGIApp, sent_id: bytes | None) -> None:
    headers = [] if sent_id is None else [(b"x-request-id", sent_id)]
    made = set()
    for _ in range(2):
        sent = await raw(Failures(echo), headers=headers)
        made.add(dict(sent.messages[0]["headers"])[b"x-request-id"])
    assert len(made) == 2
    assert all(len(one) == 32 and one.isalnum() for one in made)


async def test_the_id_in_the_body_is_the_one_in_the_header_and_of_the_request(raw: Any) -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(request.current().request_id)
        raise Overloaded

    sent = await raw(Failures(app))
    in_header = dict(sent.messages[0]["headers"])[b"x-request-id"].decode()
    assert [in_header] == seen == [json.loads(sent.body)["error"]["request_id"]]
