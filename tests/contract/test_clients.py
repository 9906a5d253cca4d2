"""The ways in that the README shows: BentoML's Python client, curl and the command line, against a served instance."""

import http.server
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest
from bentoml.exceptions import UnprocessableEntity

from tests.conftest import KEY, Server, free_port

ASKED: dict[str, Any] = {"prompt": "Tell me.", "context": {"vendor": "Acme"}, "max_tokens": 12, "temperature": 0}


@pytest.fixture(scope="module")
def expected(mixtral_server: Server) -> str:
    with mixtral_server.client() as client:
        return str(client.post("/prompt", json=ASKED).json()["output"])


def run(*command: str, stdin: str = "", **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=120, env=env, check=False)


def curl(line: str) -> dict[str, Any]:
    """What a shell line `curl URL -H ... -d BODY` prints; where there is no curl, what it would."""
    words = shlex.split(line)
    if shutil.which("curl"):
        return dict(json.loads(run(*words, "-sS", PATH=os.environ["PATH"]).stdout))
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    return dict(httpx.post(words[1], headers=headers, content=words[words.index("-d") + 1], timeout=60).json())


def test_the_bentoml_client(mixtral_server: Server, expected: str) -> None:
    with bentoml.SyncHTTPClient(mixtral_server.url, token=KEY) as client:
        answer = client.prompt(**ASKED)
        assert answer["output"] == expected
        assert answer["metadata"]["usage"]["completion_tokens"] == 12
        with pytest.raises(UnprocessableEntity, match="max_tokens: Input should be greater than or equal to 1"):
            client.prompt(prompt="Hi", max_tokens=0)


async def test_the_async_bentoml_client(mixtral_server: Server, expected: str) -> None:
    async with bentoml.AsyncHTTPClient(mixtral_server.url, token=KEY) as client:
        answer = await client.prompt(**ASKED)
    assert answer["output"] == expected


def test_the_bentoml_client_with_a_wrong_key(mixtral_server: Server) -> None:
    program = f"import bentoml; bentoml.SyncHTTPClient({mixtral_server.url!r}, token='wrong')"
    answer = run(sys.executable, "-c", program)
    assert answer.returncode == 1
    assert "BentoMLException: Failed to fetch schema" in answer.stderr


def test_curl(mixtral_server: Server, expected: str) -> None:
    headers = f"-H 'X-API-Key: {KEY}' -H 'Content-Type: application/json'"
    answer = curl(f"curl {mixtral_server.url}/prompt {headers} -d '{json.dumps(ASKED)}'")
    assert answer["output"] == expected


def cli(server: Server, *arguments: str, stdin: str = "", key: str = KEY) -> "subprocess.CompletedProcess[str]":
    executable = str(Path(sys.executable).with_name("zopilot-gpu"))
    return run(executable, *arguments, stdin=stdin, ZOPILOT_GPU_URL=server.url, ZOPILOT_GPU_API_KEY=key, COLUMNS="120")


OPTIONS = ("prompt", "Tell me.", "--max-tokens", "12", "--temperature", "0")


def test_the_command_line_with_a_context_file(mixtral_server: Server, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "context.json"
    file.write_text(json.dumps(ASKED["context"]))
    answer = cli(mixtral_server, *OPTIONS, "--context", str(file), "--metadata")
    assert (answer.returncode, answer.stdout) == (0, expected + "\n")
    assert json.loads(answer.stderr)["finish_reason"] == "length"


def test_the_command_line_with_a_context_on_standard_input(mixtral_server: Server, expected: str) -> None:
    answer = cli(mixtral_server, *OPTIONS, "--context", "-", stdin=json.dumps(ASKED["context"]))
    assert (answer.returncode, answer.stdout) == (0, expected + "\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "key", "said"),
    [
        (OPTIONS, "", "wrong", "This key is not valid."),
        (("prompt", " "), "", KEY, "prompt: must not be empty"),
        ((*OPTIONS, "--context", "-"), "[1]", KEY, "must hold a JSON object"),
        ((*OPTIONS, "--context", "-"), "{", KEY, "is not JSON"),
        ((*OPTIONS, "--url", "http://127.0.0.1:9"), "", KEY, "No answer from http://127.0.0.1:9"),
    ],
)
def test_the_command_line_says_what_is_wrong_in_one_line(
    mixtral_server: Server, arguments: tuple[str, ...], stdin: str, key: str, said: str
) -> None:
    answer = cli(mixtral_server, *arguments, stdin=stdin, key=key)
    assert answer.returncode == 1
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr


def test_serve_makes_a_key_says_when_it_is_ready_and_stops_with_the_service(tiny_llama: Path) -> None:
    executable = str(Path(sys.executable).with_name("zopilot-gpu"))
    env = {
        "PATH": os.environ["PATH"],
        "ZOPILOT_GPU_MODEL": str(tiny_llama),
        "ZOPILOT_GPU_DEVICE": "cpu",
        "PORT": str(free_port()),
    }
    with subprocess.Popen(
        [executable, "serve"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as serving:
        assert serving.stdout is not None
        (line,) = (line for line in iter(serving.stdout.readline, "Press Ctrl-C to stop.\n") if line.startswith("curl "))
        assert curl(line)["success"]
        serving.terminate()
        assert serving.wait(120) == 0


def test_serve_without_the_model_says_so_and_fails(tmp_path: Path) -> None:
    executable = str(Path(sys.executable).with_name("zopilot-gpu"))
    env = {
        "PATH": os.environ["PATH"],
        "ZOPILOT_GPU_MODEL": "nobody/nothing",
        "HF_HOME": str(tmp_path),
        "PORT": str(free_port()),
    }
    answer = run(executable, "serve", **env)
    assert answer.returncode == 1
    assert "ZOPILOT_GPU_ALLOW_DOWNLOAD" in answer.stdout


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, b'event: text\r\ndata: {"text": "half an ans"}\r\n\r\n', "The answer was cut."),
        (200, b"event: text\r\ndata: {\r\n\r\n", "is not this service"),
        (502, b"<html>Bad gateway</html>", "is not this service"),
    ],
)
def test_the_command_line_against_something_broken(status: int, body: bytes, said: str) -> None:
    class Broken(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        executable = str(Path(sys.executable).with_name("zopilot-gpu"))
        answer = run(executable, "prompt", "Hi", "--url", f"http://127.0.0.1:{server.server_port}")
    assert answer.returncode == 1
    assert said in answer.stderr
    assert "Traceback" not in answer.stderr
