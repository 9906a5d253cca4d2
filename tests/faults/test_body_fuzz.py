"""Bodies of every kind thrown at a served instance: each gets a clear answer, none a 5xx, none slow, and the service lives.

`ZOPILOT_GPU_FUZZ_INPUTS=20000 python -m pytest tests/faults/test_body_fuzz.py -s` for the long run; the seed is fixed.
"""

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from tests.conftest import Server
from tests.twins.schemas import all_schemas

NUM_INPUTS = int(os.environ.get("ZOPILOT_GPU_FUZZ_INPUTS", "800"))
SEED = 20261123
SCHEMAS = list(all_schemas().values())
VALID: list[dict[str, Any]] = [
    {"prompt": "Hi", "max_tokens": 1},
    {"prompt": "Hi", "max_tokens": 1, "context": {"a": [1, None, {"b": "ü"}]}, "temperature": 0},
    {"prompt": "Hi", "max_tokens": 2, "seed": 3, "stop": ["a", "b"], "top_k": 0, "top_p": 1, "stream": True},
]
ODD: list[Any] = [
    None, True, 0, -1, 1e308, -0.0, 2**63, 10**400, "", "\0", "\ud7ff", "a" * 5000, "[/INST]", "</s>", [], {}, [[]] * 9,
    {"": {}}, {"__proto__": 1}, "NaN", float("nan"), float("inf"), "\u202e", "\U0001f984" * 9, [None] * 50,
    {"a": {"a": {"a": "a"}}},
]  # fmt: skip
KEYS = [
    *VALID[2],
    "context",
    "temperature",
    "repetition_penalty",
    "json_schema",
    "max_token",
    "",
    "prompt\0",
    "__class__",
    "self",
]


def changed_value(draw: random.Random) -> bytes:
    body = dict(draw.choice(VALID))
    for _ in range(draw.randint(1, 3)):
        body[draw.choice(KEYS)] = draw.choice(ODD)
    return json.dumps(body).encode()


def removed_key(draw: random.Random) -> bytes:
    body = dict(draw.choice(VALID))
    body.pop(draw.choice([key for key in body if key != "max_tokens"]))
    return json.dumps(body).encode()


def changed_bytes(draw: random.Random) -> bytes:
    body = bytearray(json.dumps(draw.choice(VALID)).encode())
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(body))
        body[at : at + draw.randint(0, 2)] = draw.randbytes(draw.randint(0, 2))
    return bytes(body)


def cut_or_repeated(draw: random.Random) -> bytes:
    body = json.dumps(draw.choice(VALID)).encode()
    return body[: draw.randrange(len(body))] if draw.random() < 0.5 else body * draw.randint(2, 3)


def noise(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(0, 300))


def nested(draw: random.Random) -> bytes:
    depth = draw.choice([10, 100, 190, 250, 5000])
    opening, closing = draw.choice([(b'{"a":', b"}"), (b"[", b"]")])
    return b'{"prompt": "Hi", "max_tokens": 1, "context": {"c": ' + opening * depth + b"1" + closing * depth + b"}}"


def schema(draw: random.Random) -> bytes:
    """A body with a schema as it is, or with some of its text taken from another."""
    text, other = (json.dumps(draw.choice(SCHEMAS)) for _ in range(2))
    body = json.dumps({"prompt": "Hi", "max_tokens": draw.randint(1, 8), "json_schema": "..."})
    at, piece = draw.randrange(len(text)), draw.choice(["type", *(part for part in other.split('"') if part.isalnum())])
    cut = text[:at] + piece + text[at + draw.randint(0, 9) :]
    return body.replace('"..."', draw.choice([text, text.replace("type", piece, 1), cut])).encode()


def valid(draw: random.Random) -> bytes:
    return json.dumps(draw.choice(VALID)).encode()


KINDS: list[Callable[[random.Random], bytes]] = [
    changed_value, changed_value, removed_key, changed_bytes, changed_bytes, cut_or_repeated, noise, nested, valid, schema,
    schema,
]  # fmt: skip
EXPECTED = {200, 400, 413, 415, 422, 429}


async def test_no_body_gets_an_unexpected_answer_or_ends_the_process(mixtral_server: Server) -> None:
    draw = random.Random(SEED)
    bodies = iter([(kind.__name__, kind(draw)) for kind in draw.choices(KINDS, k=NUM_INPUTS)])
    seen: Counter[int] = Counter()
    slowest_s = 0.0
    worker = mixtral_server.health()["uptime_s"]

    async def send_all(client: httpx.AsyncClient) -> None:
        nonlocal slowest_s
        for kind, body in bodies:
            began_s = time.monotonic()
            response = await client.post("/prompt", content=body, headers={"Content-Type": "application/json"})
            if response.status_code != 200:
                slowest_s = max(slowest_s, time.monotonic() - began_s)
                assert set(response.json()["error"]) == {"code", "message", "request_id"}, body
            seen[response.status_code] += 1
            assert response.status_code in EXPECTED, (kind, response.status_code, body[:300])

    async with httpx.AsyncClient(base_url=mixtral_server.url, headers=mixtral_server.headers, timeout=60) as client:
        await asyncio.gather(*(send_all(client) for _ in range(4)))
    print(f"\nseed {SEED}: {NUM_INPUTS} inputs, answers {dict(seen)}, slowest refusal {slowest_s:.2f} s")  # noqa: T201
    assert seen[200] > NUM_INPUTS * 0.1
    assert seen[400] + seen[422] > NUM_INPUTS * 0.4
    assert slowest_s < 30  # 2 on quiet cores; what is waited for here is one that hangs
    assert mixtral_server.health()["uptime_s"] > worker  # the same process as before
