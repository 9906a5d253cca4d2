"""`/jobs` on a served instance: the life of a job, batches, idempotency, who sees what, streams, and who waits for whom."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import KEY, ROOT, Serve, Server
from zopilot_gpu.api.schemas import PromptResponse

OTHER_KEY = "key-of-somebody-else"
TALKATIVE = {"prompt": "Return all fields as JSON.", "context": {f"field_{n}": f"value {n}" for n in range(12)}}
ENDED = {"done", "failed", "cancelled"}


@pytest.fixture(scope="module")
def server(serve: Serve) -> Iterator[Server]:
    with serve(ZOPILOT_GPU_MODEL="demo", ZOPILOT_GPU_API_KEY=f"{KEY},{OTHER_KEY}", ZOPILOT_GPU_JOBS_RUNNING="2") as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def asked(number: int) -> dict[str, Any]:
    return {"prompt": "What is the total?", "context": {"vendor": f"Acme {number}", "total": f"{number}8.{number % 10}5"}}


def ended(client: httpx.Client, job_id: str, timeout_s: float = 120) -> dict[str, Any]:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        job: dict[str, Any] = client.get(f"/jobs/{job_id}").json()
        if job["state"] in ENDED:
            return job
        time.sleep(0.05)
    pytest.fail(f"not ended: {job}")


def events(response: httpx.Response) -> list[dict[str, str]]:
    blocks = response.text.replace("\r\n", "\n").strip().split("\n\n")
    found = [dict(line.split(": ", 1) for line in block.split("\n") if not line.startswith(":")) for block in blocks]
    return [fields for fields in found if fields]


def test_a_job_is_taken_in_and_its_result_is_what_prompt_answers(client: httpx.Client) -> None:
    taken = client.post("/jobs", json=asked(3) | {"temperature": 0})
    assert taken.status_code == 202
    assert taken.json()["state"] == "queued"
    assert taken.headers["location"] == f"/jobs/{taken.json()['id']}"
    job = ended(client, taken.json()["id"])
    assert (job["state"], job["attempt"]) == ("done", 1)
    result = PromptResponse.model_validate(job["result"], strict=True, extra="forbid")
    assert result.output == "38.35"
    assert result.metadata.request_id == job["id"]
    plain = client.post("/prompt", json=asked(3) | {"temperature": 0}).json()
    assert set(plain["metadata"]) == set(job["result"]["metadata"])
    assert job["created_at"] <= job["started_at"] <= job["ended_at"]


def test_a_job_keeps_its_schema(client: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"total": {"type": "string", "maxLength": 12}}, "required": ["total"]}
    taken = client.post("/jobs", json=asked(4) | {"json_schema": schema, "max_tokens": 200}).json()
    job = ended(client, taken["id"])
    assert job["state"] == "done"
    assert set(job["result"]["output"]) == {"total"}


def test_a_batch_is_many_jobs_of_one_body(client: httpx.Client) -> None:
    taken = client.post("/jobs", json={"prompts": [asked(number) for number in range(12)]})
    assert taken.status_code == 202
    batch, jobs = taken.json()["batch"], taken.json()["jobs"]
    assert len({job["id"] for job in jobs}) == 12
    for number, job in enumerate(jobs):
        assert ended(client, job["id"])["result"]["output"] == f"{number}8.{number % 10}5"
    listed = client.get(taken.headers["location"]).json()["jobs"]
    assert [job["id"] for job in listed] == [job["id"] for job in reversed(jobs)]
    assert {job["batch"] for job in listed} == {batch}


WRONG: list[tuple[Any, int, str, str]] = [
    ({}, 422, "invalid_request", "prompt: Field required"),
    ({"prompt": "Hi", "max_token": 3}, 422, "invalid_request", "max_token: unknown field"),
    ({"prompt": " "}, 422, "invalid_request", "prompt: must not be empty"),
    ({"prompt": "Hi", "stream": True}, 422, "invalid_request", "stream:"),
    (
        {"prompt": "Hi", "callback_url": "https://example.com/"},
        422,
        "callback_refused",
        "callback_url: this service sends none",
    ),
    ({"prompts": []}, 422, "invalid_request", "prompts:"),
    ({"prompts": [{"prompt": "Hi"}] * 1001}, 422, "invalid_request", "prompts:"),
    ({"prompts": [{"prompt": "Hi"}], "prompt": "Hi"}, 422, "invalid_request", "prompt: unknown field"),
    ({"prompts": [{"prompt": "Hi"}, {"prompt": ""}]}, 422, "invalid_request", "prompts.1.prompt:"),
    ({"prompts": [{"prompt": "Hi"}, {"prompt": " "}]}, 422, "invalid_request", "prompts.1.prompt:"),
    ({"prompt": "Hi", "json_schema": {"type": "objet"}}, 422, "json_schema_invalid", "json_schema:"),
    ([], 422, "invalid_request", "Input should be an object"),
]


@pytest.mark.parametrize(("body", "status", "code", "message"), WRONG)
def test_what_prompt_refuses_a_job_refuses(client: httpx.Client, body: Any, status: int, code: str, message: str) -> None:
    refused = client.post("/jobs", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code), refused.text
    assert refused.json()["error"]["message"].startswith(message.removesuffix(" this service sends none"))


def test_what_only_the_model_can_refuse_is_the_result_of_a_job(client: httpx.Client) -> None:
    job = ended(client, client.post("/jobs", json={"prompt": "word " * 4000}).json()["id"])
    assert job["state"] == "failed"
    assert job["result"]["error"]["code"] == "context_length_exceeded"
    assert job["result"]["error"]["request_id"] == job["id"]


def test_the_same_key_and_body_are_the_same_job_and_another_body_is_refused(client: httpx.Client) -> None:
    def submit(body: Any, key: str) -> httpx.Response:
        return client.post("/jobs", json=body, headers={"Idempotency-Key": key})

    first, again, other = submit(asked(5), "a-1"), submit(asked(5), "a-1"), submit(asked(6), "a-1")
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
    batches = [submit({"prompts": [asked(1), asked(2)]}, "a-2").json() for _ in range(2)]
    assert [job["id"] for job in batches[0]["jobs"]] == [job["id"] for job in batches[1]["jobs"]]
    foreign = client.post("/jobs", json=asked(6), headers={"Idempotency-Key": "a-1", "X-API-Key": OTHER_KEY})
    assert foreign.status_code == 202
    for bad in ("", "x" * 201):
        assert submit(asked(5), bad).json()["error"]["code"] == "idempotency_key_invalid"


async def test_the_same_key_twenty_times_at_once_is_one_job(server: Server) -> None:
    headers = server.headers | {"Idempotency-Key": "at-once"}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        taken = await asyncio.gather(*(client.post("/jobs", json=asked(7)) for _ in range(20)))
    assert {response.status_code for response in taken} == {202}
    assert len({response.json()["id"] for response in taken}) == 1


def test_jobs_are_counted_in_the_metrics(client: httpx.Client) -> None:
    def counted(series: str) -> int:
        (line,) = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{series} ")]
        return round(float(line.rpartition(" ")[2]))

    before = counted('zopilot_gpu_jobs{state="done"}')
    ended(client, client.post("/jobs", json=asked(4)).json()["id"])
    assert counted('zopilot_gpu_jobs{state="done"}') > before  # jobs of other tests may end meanwhile
    assert counted('zopilot_gpu_callbacks_total{outcome="gave_up"}') == 0


def test_keys_do_not_see_each_others_jobs(client: httpx.Client) -> None:
    other = {"X-API-Key": OTHER_KEY}
    own = client.post("/jobs", json=asked(8)).json()["id"]
    for method, path in [("GET", f"/jobs/{own}"), ("GET", f"/jobs/{own}/events"), ("DELETE", f"/jobs/{own}")]:
        refused = client.request(method, path, headers=other)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "job_not_found"), path
    assert own not in client.get("/jobs?limit=200", headers=other).text
    assert own in client.get("/jobs?limit=200").text
    assert ended(client, own)["state"] == "done"


def test_pages_give_every_job_once(client: httpx.Client) -> None:
    batch = client.post("/jobs", json={"prompts": [asked(number) for number in range(7)]}).json()
    seen, after, pages = [], "", 0
    while pages < 10:
        page = client.get(f"/jobs?batch={batch['batch']}&limit=3{after}").json()
        seen += [job["id"] for job in page["jobs"]]
        pages += 1
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert pages == 3
    assert seen == [job["id"] for job in reversed(batch["jobs"])]
    for wrong in ("limit=0", "limit=201", "limit=x", "after=-1", "after=" + "9" * 30, "state=gone", "size=3"):
        assert client.get(f"/jobs?{wrong}").status_code == 422, wrong
    for job in batch["jobs"]:
        ended(client, job["id"])
    assert len(client.get(f"/jobs?batch={batch['batch']}&state=done").json()["jobs"]) == 7


def test_the_stream_of_a_job_begins_at_its_beginning_whenever_it_is_asked_for(client: httpx.Client) -> None:
    job_id = client.post("/jobs", json=TALKATIVE).json()["id"]
    live = events(client.get(f"/jobs/{job_id}/events"))
    assert live[0]["event"] == "state"
    assert live[-1]["event"] == "done"
    output = ended(client, job_id)["result"]["output"]
    texts = [event for event in live if event["event"] == "text"]
    assert len(texts) > 3
    assert "".join(json.loads(event["data"])["text"] for event in texts) == output == json.loads(live[-1]["data"])["output"]
    late = events(client.get(f"/jobs/{job_id}/events"))
    assert [event["event"] for event in late] == ["text", "done"]
    assert json.loads(late[0]["data"])["text"] == output
    rest = events(client.get(f"/jobs/{job_id}/events", headers={"Last-Event-ID": texts[1]["id"]}))
    read = "".join(json.loads(event["data"])["text"] for event in texts[:2])
    assert read + json.loads(rest[0]["data"])["text"] == output


def test_a_waiting_and_a_running_job_can_be_cancelled(server: Server, client: httpx.Client) -> None:
    jobs = client.post("/jobs", json={"prompts": [TALKATIVE | {"seed": n, "temperature": 2.0} for n in range(8)]}).json()[
        "jobs"
    ]
    waiting = client.delete(f"/jobs/{jobs[-1]['id']}").json()
    assert waiting["state"] == "cancelled"
    for job in jobs[:-1]:
        client.delete(f"/jobs/{job['id']}")
    states = {ended(client, job["id"])["state"] for job in jobs}
    assert "cancelled" in states
    assert events(client.get(f"/jobs/{jobs[-1]['id']}/events"))[-1]["event"] == "cancelled"
    server.wait_for(lambda health: health["queue"]["num_running"] == 0)
    assert client.delete(f"/jobs/{jobs[-1]['id']}").json()["state"] == "cancelled"  # once more changes nothing


async def test_an_interactive_request_does_not_wait_for_the_jobs(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        batch = (await client.post("/jobs", json={"prompts": [TALKATIVE] * 40})).json()
        most = 0
        for number in range(10):
            assert (await client.post("/prompt", json=asked(number))).status_code == 200
            most = max(most, (await client.get("/health")).json()["queue"]["num_running"])
        left = (await client.get(f"/jobs?batch={batch['batch']}&limit=200&state=queued")).json()["jobs"]
        for job in batch["jobs"]:
            await client.delete(f"/jobs/{job['id']}")
    assert left, "the batch was over before the requests were"
    assert most <= 3  # two jobs and the request


async def test_keys_take_turns(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=60) as client:
        flood = (await client.post("/jobs", json={"prompts": [TALKATIVE] * 60})).json()
        one = (await client.post("/jobs", json=asked(9), headers={"X-API-Key": OTHER_KEY})).json()["id"]
        for _ in range(600):
            if (await client.get(f"/jobs/{one}", headers={"X-API-Key": OTHER_KEY})).json()["state"] == "done":
                break
            await asyncio.sleep(0.05)
        left = (await client.get(f"/jobs?batch={flood['batch']}&limit=200&state=queued")).json()["jobs"]
        for job in flood["jobs"]:
            await client.delete(f"/jobs/{job['id']}")
    assert len(left) > 40


def test_the_command_line_submits_watches_lists_and_cancels(server: Server, tmp_path: Path) -> None:
    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", "from zopilot_gpu.cli import app; app()", "jobs", *arguments]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "ZOPILOT_GPU_URL": server.url, "ZOPILOT_GPU_API_KEY": KEY}
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)

    context = tmp_path / "invoice.json"
    context.write_text(json.dumps(asked(2)["context"]))
    job_id = run("submit", "What is the total?", "--context", str(context)).stdout.strip()
    assert run("watch", job_id).stdout == "28.25\n"
    assert json.loads(run("get", job_id).stdout)["result"]["output"] == "28.25"
    assert job_id in run("ls", "--state", "done").stdout
    assert run("cancel", job_id).stdout == "done\n"
    missing = run("get", "nothing")
    assert (missing.returncode, missing.stderr) == (1, "zopilot-gpu: There is no such job, or not with this key.\n")
    many = tmp_path / "many.json"
    many.write_text(json.dumps({"prompts": [asked(1), asked(2)]}))
    assert len(run("submit", "--body", str(many)).stdout.split()) == 2


def test_the_line_is_bounded(serve: Serve) -> None:
    with serve(ready=False, ZOPILOT_GPU_MODEL="nobody/nothing", ZOPILOT_GPU_JOBS_MAX="5") as server:
        server.wait_for(lambda health: health["status"] == "unavailable")
        with server.client() as client:
            while client.get("/jobs").status_code == 503:  # not open yet
                time.sleep(0.05)
            assert client.post("/jobs", json={"prompts": [asked(1)] * 4}).status_code == 202
            full = client.post("/jobs", json={"prompts": [asked(1)] * 2})
            assert (full.status_code, full.json()["error"]["code"]) == (429, "jobs_full")
            assert int(full.headers["retry-after"]) > 0
            assert client.post("/jobs", json=asked(1)).status_code == 202


def test_what_has_ended_is_forgotten_in_time(serve: Serve) -> None:
    with serve(ZOPILOT_GPU_MODEL="demo", ZOPILOT_GPU_JOBS_RETENTION_S="1") as server, server.client() as client:
        job_id = client.post("/jobs", json=asked(1)).json()["id"]
        deadline_s = time.monotonic() + 120
        while client.get(f"/jobs/{job_id}").status_code != 404 and time.monotonic() < deadline_s:
            time.sleep(0.1)
        assert client.get(f"/jobs/{job_id}").status_code == 404
        assert client.get("/jobs").json()["jobs"] == []
