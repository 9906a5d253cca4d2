"""Holds the keys: who is let in, by which header, to which path, and in constant time."""

import hmac
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zopilot_gpu.api import request
from zopilot_gpu.api.auth import OPEN_PATHS, Auth
from zopilot_gpu.api.failures import Failures
from zopilot_gpu.api.keys import KeyRing

KEYS = ["key-one", "key-two", "schlüssel", "clé-à", "key-Å"]
Headers = list[tuple[bytes, bytes]]


async def tells_authorised(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers whether the request counts as authorised."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(request.current().authorised).encode()})


def gate(keys: list[str] | None = None) -> ASGIApp:
    return Failures(Auth(tells_authorised, keys=KeyRing.of(KEYS if keys is None else keys), open_paths=OPEN_PATHS))


def own(key: bytes) -> Headers:
    return [(b"x-api-key", key)]


def bearer(key: bytes, scheme: bytes = b"Bearer ") -> Headers:
    return [(b"authorization", scheme + key)]


CASES: list[tuple[Headers, int]] = [
    ([], 401),
    *[(own(key.encode()), 200) for key in KEYS],
    *[(bearer(key.encode()), 200) for key in KEYS],
    (bearer(b"key-one", b"bearer "), 200),
    (bearer(b"key-one", b"BEARER   "), 200),
    (own(b" key-one "), 200),
    (own(b""), 401),
    (own(b"  "), 401),
    (bearer(b""), 401),
    (bearer(b"", b"Bearer"), 401),
    (bearer(b"key-one", b""), 401),
    (bearer(b"key-one", b"Basic "), 401),
    (bearer(b"key-one", b"Bearer="), 401),
    (own(b"key-on"), 403),
    (own(b"key-one1"), 403),
    (own(b"KEY-ONE"), 403),
    (own(b"key-one,key-two"), 403),
    (own("schlüssel".encode("latin-1")), 403),
    (own(bytes(range(128, 256))), 403),
    (own(b"k" * 10_000), 403),
    (own(b"key-one") + bearer(b"wrong"), 200),
    (own(b"wrong") + bearer(b"key-one"), 403),
    (own(b"") + bearer(b"key-one"), 200),
    (own(b"wrong") + own(b"key-one"), 403),
    ([(b"x-api-key-2", b"key-one"), (b"cookie", b"x-api-key=key-one")], 401),
]


@pytest.mark.parametrize(("headers", "status"), CASES, ids=repr)
async def test_a_key_in_either_header_lets_in_and_nothing_else_does(raw: Any, headers: Headers, status: int) -> None:
    sent = await raw(gate(), path="/prompt", headers=headers)
    assert sent.status == status
    if status != 200:
        assert (b"www-authenticate", b"Bearer") in sent.messages[0]["headers"]
        assert b"key-one" not in sent.body


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
async def test_open_paths_need_no_key(raw: Any, path: str) -> None:
    assert (await raw(gate(), path=path)).status == 200
    assert (await raw(gate(), path=path, headers=own(b"wrong"))).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/", "", "ping", "/ping/", "/PING", "//ping", "/./ping", "/x/../ping", "/ping/../prompt", "/ping%2f", "/ping\0",
        "/ping ", "/ping;a", "/ping?a", "/pingx", "/health", "/metrics", "/prompt", "/docs.json", "/schema.json", "http://test/ping",
    ],
)  # fmt: skip
async def test_every_other_path_needs_one(raw: Any, path: str) -> None:
    assert (await raw(gate(), path=path)).status == 401


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE", "BREW"])
async def test_no_method_goes_without_a_key(raw: Any, method: str) -> None:
    assert (await raw(gate(), path="/prompt", method=method)).status == 401


@pytest.mark.parametrize(
    ("path", "headers", "authorised"),
    [
        ("/ping", [], b"False"),
        ("/ping", own(b"wrong"), b"False"),
        ("/ping", own(b"key-one"), b"True"),
        ("/x", own(b"key-one"), b"True"),
    ],
)
async def test_an_open_path_still_knows_whether_the_key_was_right(
    raw: Any, path: str, headers: Headers, authorised: bytes
) -> None:
    assert (await raw(gate(), path=path, headers=headers)).body == authorised


async def test_without_any_key_configured_everybody_is_let_in(raw: Any) -> None:
    for headers in ([], own(b"anything")):
        assert (await raw(gate([]), path="/prompt", headers=headers)).body == b"True"


@pytest.mark.parametrize("sent_key", [b"key-one", b"schl\xc3\xbcssel", b"wrong", b"k", b"k" * 1000])
async def test_every_key_is_compared_by_its_digest_whichever_matches(
    raw: Any, monkeypatch: pytest.MonkeyPatch, sent_key: bytes
) -> None:
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def counting(first: bytes, second: bytes) -> bool:
        compared.append((len(first), len(second)))
        return compare(first, second)

    monkeypatch.setattr(hmac, "compare_digest", counting)
    await raw(gate(), path="/prompt", headers=own(sent_key))
    assert compared == [(32, 32)] * len(KEYS)


@pytest.mark.parametrize("headers", [[], own(b"key-one")])
async def test_a_websocket_is_closed(headers: Headers) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await gate()({"type": "websocket", "path": "/ping", "headers": headers}, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]


async def test_lifespan_passes() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["type"])

    async def nothing(*_: Any) -> Any:
        pytest.fail("not for this test")

    await Auth(app, keys=KeyRing.of(KEYS), open_paths=OPEN_PATHS)({"type": "lifespan"}, nothing, nothing)
    assert seen == ["lifespan"]
