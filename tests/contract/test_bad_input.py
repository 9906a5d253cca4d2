"""The table of bad input in docs/api.md, row by row against a served instance: same status, same code, same sentence."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import KEY, Server

JSON = {"X-API-Key": KEY, "Content-Type": "application/json"}
ROW = re.compile(r"\| (?P<case>[^|]+) \| (?P<status>\d{3}) \| `(?P<code>\w+)` \| (?P<message>.+) \|$")


def fields(**changed: Any) -> dict[str, Any]:
    return {"json": {"prompt": "Hi", "max_tokens": 2} | changed, "headers": {"X-API-Key": KEY}}


def raw(content: bytes, content_type: str = "application/json") -> dict[str, Any]:
    return {"content": content, "headers": JSON | {"Content-Type": content_type}}


def trickle() -> Iterator[bytes]:
    yield from [b" " * 65_536] * 40


CASES: dict[str, dict[str, Any]] = {
    "no key": {"json": {"prompt": "Hi"}},
    "wrong key": {"json": {"prompt": "Hi"}, "headers": {"X-API-Key": "wrong"}},
    "wrong key as Bearer": {"json": {"prompt": "Hi"}, "headers": {"Authorization": "Bearer wrong"}},
    "key that is not ASCII": {"json": {"prompt": "Hi"}, "headers": {"X-API-Key": "schlüssel".encode()}},
    "unknown route": {"url": "/nothing", **fields()},
    "a slash too many": {"url": "/prompt/", **fields()},
    "wrong method": {"method": "GET", "headers": {"X-API-Key": KEY}},
    "more than 64 headers": {"json": {"prompt": "Hi"}, "headers": {"X-API-Key": KEY} | {f"X-{n}": "1" for n in range(80)}},
    "10 MB body": raw(b'{"prompt": "' + b"a" * 10_000_000 + b'"}'),
    "chunked body that grows too large": {"content": trickle, "headers": JSON},
    "two keys": {"json": {"prompt": "Hi"}, "headers": [("X-API-Key", KEY), ("X-API-Key", KEY)]},
    "compressed body": {"content": b'{"prompt": "Hi"}', "headers": JSON | {"Content-Encoding": "gzip"}},
    "text/plain": raw(b'{"prompt": "Hi"}', "text/plain"),
    "multipart form": {"files": {"prompt": b"Hi"}, "headers": {"X-API-Key": KEY}},
    "multipart without a boundary": raw(b"prompt", "multipart/form-data"),
    "URL-encoded form": raw(b"prompt=Hi", "application/x-www-form-urlencoded"),
    "empty body": {"headers": JSON},
    "not JSON": raw(b"{prompt: Hi}"),
    "bytes that are not UTF-8": raw(b'{"prompt": "\xff\xfe"}'),
    "half a surrogate pair": raw(rb'{"prompt": "\ud800"}'),
    "JSON nested 1,000 deep": raw(b'{"prompt": "Hi", "context": ' + b'{"a":' * 1000 + b"1" + b"}" * 1000 + b"}"),
    "JSON array": raw(b'["Hi"]'),
    "no prompt": raw(b"{}"),
    "empty prompt": fields(prompt=""),
    "blank prompt": fields(prompt=" \n "),
    "prompt with U+0000": fields(prompt="a\0b"),
    "prompt is a number": fields(prompt=5),
    "unknown field": fields(max_token=5),
    "context is a list": fields(context=[1]),
    "NaN in the context": raw(b'{"prompt": "Hi", "context": {"a": NaN}}'),
    "max_tokens 0": fields(max_tokens=0),
    "max_tokens 10^18": fields(max_tokens=10**18),
    "max_tokens is text": fields(max_tokens="5"),
    "max_tokens is a fraction": fields(max_tokens=1.5),
    "temperature -1": fields(temperature=-1),
    "temperature NaN": raw(b'{"prompt": "Hi", "temperature": NaN}'),
    "top_p 0": fields(top_p=0),
    "top_k 10^6": fields(top_k=10**6),
    "repetition_penalty 0": fields(repetition_penalty=0),
    "seed 2^64": fields(seed=2**64),
    "five stop strings": fields(stop=["a", "b", "c", "d", "e"]),
    "empty stop string": fields(stop=[""]),
    "stream is text": fields(stream="yes"),
    "two wrong fields": fields(top_p=2, seed=-1),
    "json_schema is text": fields(json_schema="object"),
    "json_schema is none": fields(json_schema={"type": "objet"}),
    "json_schema refers to elsewhere": fields(json_schema={"$ref": "https://example.com/schema.json"}),
    "json_schema has no instance": fields(json_schema={"type": "integer", "minimum": 2, "maximum": 1}),
    "json_schema can't be followed": fields(json_schema={"type": "array", "uniqueItems": True}),
    "json_schema nested 40 deep": fields(json_schema=json.loads('{"items":' * 40 + "{}" + "}" * 40)),
    "json_schema and stop": fields(json_schema={"type": "object"}, stop=["x"]),
    "json_schema and too few tokens": fields(json_schema={"type": "string", "minLength": 50}, max_tokens=8),
    "prompt beyond the context window": fields(prompt="word " * 400),
}


def documented() -> dict[str, re.Match[str]]:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    rows = (ROW.match(line) for line in page.splitlines())
    return {row["case"]: row for row in rows if row}


def test_the_documented_cases_are_the_tested_ones_and_the_table_holds_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "api.md").read_text()
    _, _, rows = page.partition("| Request | Status | `code` | `message` |\n|---|---|---|---|\n")
    assert list(documented()) == list(CASES)
    assert all(ROW.match(row) for row in rows.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_a_bad_request_gets_the_documented_answer(mixtral_server: Server, case: str) -> None:
    request = dict(CASES[case])
    method, url = request.pop("method", "POST"), request.pop("url", "/prompt")
    if callable(request.get("content")):
        request["content"] = request["content"]()
    response = httpx.request(method, f"{mixtral_server.url}{url}", timeout=20, **request)
    body = response.json()
    request_id = body["error"].pop("request_id")
    assert response.headers["x-request-id"] == request_id
    assert response.headers["content-type"] == "application/json"
    row = documented()[case]
    assert (response.status_code, body) == (
        int(row["status"]),
        {"success": False, "error": {"code": row["code"], "message": row["message"]}},
    )


def test_after_all_of_it_the_service_answers(mixtral_server: Server) -> None:
    with mixtral_server.client() as client:
        assert client.post("/prompt", json={"prompt": "Hi", "max_tokens": 1}).status_code == 200
