"""Holds the download: only safetensors, configuration and tokenizer; the token in one header only; refusals with a remedy.

The hub is a real server on this machine that speaks the routes that huggingface_hub asks; the download runs in a process
of its own, because the library reads `HF_ENDPOINT` when it is imported.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.locate import locate

MODEL = "acme/tiny"
GATED = "acme/gated"
FAILING = "acme/failing"
COMMIT = "c" * 40
WEIGHTS = "model-00001-of-00001.safetensors"
TOKEN = "hub-token-canary"
WANTED = {
    "config.json": b'{"model_type": "mixtral"}',
    "generation_config.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"pieces",
    "tokenizer_config.json": b"{}",
    "special_tokens_map.json": b"{}",
    "model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}',
    WEIGHTS: bytes(range(256)) * 1000,
}
UNWANTED = [
    "README.md",
    "consolidated.00.safetensors",
    "modeling_tiny.py",
    "original/model.safetensors",
    "pytorch_model.bin",
    "tokenizer_code.py",
    "tokenizer.pkl",
    "weights.pt",
]
FETCH = """
import json, pathlib, sys
from zopilot_gpu import log
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.fetch import fetch
log.configure("debug")
model, revision, cache, token = json.loads(sys.argv[1])
try:
    told = []
    directory = fetch(model, revision, pathlib.Path(cache), token, lambda *seen: told.append(seen))
    print(json.dumps({"directory": str(directory), "told": told}))
except ModelUnavailable as error:
    print(json.dumps({"message": error.message, "detail": error.detail}))
"""

Asked = tuple[str, str, dict[str, str]]


class Hub(BaseHTTPRequestHandler):
    """Speaks for one hub: what is asked goes to `asked` as (method, path, headers)."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[Asked]]
    break_once: ClassVar[set[str]]
    slow: ClassVar[set[str]]
    sizes: ClassVar[dict[str, int]]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        route = self.path.partition("?")[0].strip("/").split("/")
        if route[:2] == ["api", "models"]:
            self._answer_info("/".join(route[2:4]))
        elif "/".join(route[:2]) == GATED:
            self._answer(401, b"", {"X-Error-Code": "GatedRepo"})
        else:
            self._answer_file("/".join(route[4:]))

    def _answer_info(self, model: str) -> None:
        if model == FAILING:
            self._answer(500, b"")
        elif model not in {MODEL, GATED}:
            self._answer(401, b"", {"X-Error-Code": "RepoNotFound"})
        else:
            siblings = [{"rfilename": name, "size": self.sizes.get(name)} for name in (*WANTED, *UNWANTED)]
            self._answer(200, json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode())

    def _answer_file(self, name: str) -> None:
        content = WANTED.get(name, b"unwanted")
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        begin = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._answer(206 if begin else 200, content[begin:], headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.path.rpartition("/")[2] in self.break_once:
            self.break_once.clear()
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.path.rpartition("/")[2] in self.slow:
            self.wfile.write(body[: len(body) // 2])
            time.sleep(2.5)
            body = body[len(body) // 2 :]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    class ThisHub(Hub):
        asked: ClassVar[list[Asked]] = []
        break_once: ClassVar[set[str]] = set()
        slow: ClassVar[set[str]] = set()
        sizes: ClassVar[dict[str, int]] = {name: len(content) for name, content in WANTED.items()}
        url = ""

    with ThreadingHTTPServer(("127.0.0.1", 0), ThisHub) as server:
        ThisHub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield ThisHub
        server.shutdown()
        thread.join()


def fetch(endpoint: str, cache: Path, model: str = MODEL, revision: str | None = None) -> tuple[dict[str, Any], str]:
    """What `fetch` gave or raised, and all that its process wrote."""
    env = {"PATH": os.environ["PATH"], "HOME": str(cache), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", FETCH, json.dumps([model, revision, str(cache), TOKEN])]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    outcome: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return outcome, run.stdout + run.stderr


def files_asked(hub: Any) -> set[str]:
    return {path.split("/resolve/", 1)[1].partition("/")[2] for _, path, _ in hub.asked if "/resolve/" in path}


def test_only_weights_configuration_and_tokenizer_are_downloaded_and_then_found(hub: Any, tmp_path: Path) -> None:
    outcome, _ = fetch(hub.url, tmp_path / "hub")
    found = locate(MODEL, None, [tmp_path])
    assert (str(found.directory), found.revision) == (outcome["directory"], COMMIT)
    assert {path.name: path.read_bytes() for path in found.directory.rglob("*")} == WANTED
    assert files_asked(hub) == set(WANTED)


def test_the_token_travels_in_one_header_and_is_written_nowhere(hub: Any, tmp_path: Path) -> None:
    _, written = fetch(hub.url, tmp_path)
    assert TOKEN not in written
    assert "download_done" in written
    assert all(headers.get("authorization") == f"Bearer {TOKEN}" for _, _, headers in hub.asked)
    elsewhere = [(path, {**headers, "authorization": ""}) for _, path, headers in hub.asked]
    assert TOKEN not in json.dumps(elsewhere)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_a_second_download_takes_no_file_again(hub: Any, tmp_path: Path) -> None:
    fetch(hub.url, tmp_path)
    hub.asked.clear()
    fetch(hub.url, tmp_path)
    assert [path for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path] == []


def test_a_download_goes_on_where_an_earlier_try_broke(hub: Any, tmp_path: Path) -> None:
    content = WANTED[WEIGHTS]
    left = tmp_path / "models--acme--tiny" / "blobs" / f"{hashlib.sha256(content).hexdigest()}.incomplete"
    left.parent.mkdir(parents=True)
    left.write_bytes(content[:1000])
    outcome, _ = fetch(hub.url, tmp_path)
    assert (Path(outcome["directory"]) / WEIGHTS).read_bytes() == content
    ranges = [headers.get("range") for method, path, headers in hub.asked if method == "GET" and path.endswith(WEIGHTS)]
    assert ranges == ["bytes=1000-"]


def test_a_connection_that_breaks_is_model_unavailable_and_the_next_try_completes(hub: Any, tmp_path: Path) -> None:
    hub.break_once.add(WEIGHTS)
    broken, _ = fetch(hub.url, tmp_path / "hub")
    assert "check the network" in broken["detail"]
    with pytest.raises(ModelUnavailable, match=WEIGHTS):
        locate(MODEL, None, [tmp_path])
    fetch(hub.url, tmp_path / "hub")
    assert (locate(MODEL, None, [tmp_path]).directory / WEIGHTS).read_bytes() == WANTED[WEIGHTS]


@pytest.mark.parametrize(
    ("model", "remedy"),
    [
        (GATED, "accept its terms on the hub and set HF_TOKEN"),
        ("acme/unknown", "HF_TOKEN may not see it"),
        (FAILING, "check the network"),
        ("/mnt/not/a/repository", "ORG/NAME"),
    ],
)
def test_a_refusal_of_the_hub_comes_with_its_remedy(hub: Any, tmp_path: Path, model: str, remedy: str) -> None:
    outcome, written = fetch(hub.url, tmp_path, model)
    assert remedy in outcome["detail"]
    assert model in outcome["detail"]
    assert model not in outcome["message"]
    assert TOKEN not in written


def test_a_hub_out_of_reach_is_model_unavailable_with_the_place_to_look(tmp_path: Path) -> None:
    outcome, written = fetch("http://127.0.0.1:9", tmp_path)  # the discard port: nothing listens
    assert "check the network" in outcome["detail"]
    assert str(tmp_path) in outcome["detail"]
    assert TOKEN not in written


def test_what_has_no_room_is_refused_before_a_byte_is_taken(hub: Any, tmp_path: Path) -> None:
    hub.sizes[WEIGHTS] = 10**18
    outcome, _ = fetch(hub.url, tmp_path)
    assert "1000000000.0 GB are missing" in outcome["detail"]
    assert files_asked(hub) == set()


def test_progress_is_what_has_arrived_on_the_disk(hub: Any, tmp_path: Path) -> None:
    hub.slow.add(WEIGHTS)
    outcome, _ = fetch(hub.url, tmp_path)
    total = sum(map(len, WANTED.values()))
    assert {(step, in_all) for step, _, in_all in outcome["told"]} == {("downloading", total)}
    assert all(0 <= done <= total for _, done, _ in outcome["told"])
