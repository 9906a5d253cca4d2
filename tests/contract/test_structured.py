"""`json_schema` over HTTP on the demo model, on each backend: right values, streams, limits, many at once, bombs beside."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import bentoml
import httpx
import jsonschema_rs
import pytest

from tests.conftest import KEY, Server
from tests.contract.test_prompt import events
from tests.faults.bombs import BOMBS
from tests.twins.schemas import DOCUMENTS

CONTEXT = {"vendor": "Acme", "total": "118.40", "due_date": "2026-12-01"}
FIELDS = {
    "type": "object",
    "properties": {
        "vendor": {"type": "string", "maxLength": 20},
        "total": {"type": "string", "pattern": r"^\d+\.\d{2}$"},
        "due_date": {"type": "string", "format": "date"},
    },
    "required": ["vendor", "total", "due_date"],
}
ASKED = {"prompt": "Return all fields as JSON.", "context": CONTEXT, "max_tokens": 200, "temperature": 0, "seed": 1}


@pytest.fixture(scope="module", params=["mixtral", "plain"])
def server(request: pytest.FixtureRequest, demo_of: Callable[[str], Server]) -> Server:
    return demo_of(request.param)


def post(server: Server, **fields: Any) -> httpx.Response:
    with server.client() as client:
        return client.post("/prompt", json=ASKED | fields)


def value(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    assert response.json()["metadata"]["output_type"] == "json"
    return response.json()["output"]


def refusal(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_the_fields_of_an_invoice_come_as_a_value(server: Server) -> None:
    output = value(post(server, json_schema=FIELDS))
    assert list(output) == ["vendor", "total", "due_date"]
    assert output == CONTEXT
    assert jsonschema_rs.Draft202012Validator(FIELDS, validate_formats=True).is_valid(output)


def test_any_json_object_may_be_asked_for(server: Server) -> None:
    assert isinstance(value(post(server, json_schema={"type": "object"})), dict)


def test_the_pieces_of_a_stream_are_the_value_of_its_end(server: Server) -> None:
    whole = value(post(server, json_schema=FIELDS))
    *texts, (last, done) = events(post(server, json_schema=FIELDS, stream=True))
    assert last == "done"
    assert len(texts) > 3
    assert json.loads("".join(data["text"] for _, data in texts)) == done["output"] == whole


def test_an_answer_that_is_cut_is_no_answer(server: Server) -> None:
    assert refusal(post(server, json_schema=FIELDS, max_tokens=5)) == (422, "output_truncated")
    streamed = post(server, json_schema=FIELDS, max_tokens=5, stream=True)
    assert streamed.status_code == 200
    *texts, (last, error) = events(streamed)
    assert {name for name, _ in texts} == {"text"}
    assert (last, error["error"]["code"]) == ("error", "output_truncated")


def test_what_can_not_be_followed_is_refused_before_a_stream_begins(server: Server) -> None:
    for stream in (False, True):
        refused = post(server, json_schema={"type": "array", "uniqueItems": True}, stream=stream)
        assert refusal(refused) == (422, "json_schema_unsupported")


def test_min_tokens_are_kept(server: Server) -> None:
    usual = post(server, prompt="What is the total?").json()
    longer = post(server, prompt="What is the total?", min_tokens=30).json()
    assert usual["metadata"]["usage"]["completion_tokens"] < 30 <= longer["metadata"]["usage"]["completion_tokens"]
    assert longer["output"].startswith(usual["output"])
    assert value(post(server, json_schema={"const": 1}, min_tokens=30)) == 1


async def test_callers_with_and_without_schemas_do_not_disturb_each_other(server: Server) -> None:
    schemas = [None, FIELDS, *list(DOCUMENTS.values())[-6:]]
    bodies = [ASKED | {"json_schema": schema, "max_tokens": 80} for schema in schemas]
    with server.client() as client:
        alone = [client.post("/prompt", json=body) for body in bodies]
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=120) as client:
        bombs = [client.post("/prompt", json=ASKED | {"json_schema": BOMBS[name](), "max_tokens": 8}) for name in HARMFUL]
        answers = await asyncio.gather(*(client.post("/prompt", json=body) for body in bodies * 2), *bombs)
    for index, response in enumerate(answers[: 2 * len(bodies)]):
        expected = alone[index % len(bodies)]
        assert response.status_code == expected.status_code
        assert response.json().get("output") == expected.json().get("output")
    assert sum(response.status_code == 200 for response in alone) >= 2


HARMFUL = ["2,000 optional properties", "giant const", "minItems 10^9", "100 patterns at once", "a chain of 199 $ref"]


@pytest.mark.parametrize("name", HARMFUL)
def test_a_bomb_is_refused_or_cut_or_kept(server: Server, name: str) -> None:
    response = post(server, json_schema=BOMBS[name](), max_tokens=8, temperature=1)
    if response.status_code != 200:
        status, code = refusal(response)
        assert status == 422
        assert code in {"json_schema_invalid", "json_schema_unsupported", "output_truncated"}


def test_the_bentoml_client_gets_the_value(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url, token=KEY) as client:
        answer = client.prompt(**ASKED, json_schema=FIELDS)
    assert answer["output"]["total"] == "118.40"
