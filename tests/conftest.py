"""What the tests share: tiny real models on disk, and real servers over them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

from runners.environment import set_before_torch

set_before_torch()  # as the runner does

ROOT = Path(__file__).parents[1]
KEY = "key-of-the-tests"
TINY = {
    "vocab_size": 32_000,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": True,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "legacy": False,
}


@dataclass
class Server:
    """A served instance: its address, its process, and what it wrote."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path
    headers: dict[str, str] = field(default_factory=lambda: {"X-API-Key": KEY})

    def client(self, headers: dict[str, str] | None = None) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers if headers is None else headers, timeout=60)

    def health(self) -> dict[str, Any]:
        return dict(httpx.get(f"{self.url}/health", headers=self.headers, timeout=60).json())

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 120) -> dict[str, Any]:
        """The first /health that meets `condition`."""
        deadline_s = time.monotonic() + timeout_s
        health: dict[str, Any] = {}
        while time.monotonic() < deadline_s:
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                health = self.health()
            except (httpx.TransportError, ValueError):
                time.sleep(0.1)
                continue
            if condition(health):
                return health
            time.sleep(0.05)
        pytest.fail(f"not within {timeout_s} s: {health}\n{self.log.read_text()[-4000:]}")


Serve = Callable[..., AbstractContextManager[Server]]


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process, by force where it does not go by itself."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextmanager
def serving(
    directory: Path, *, working_dir: Path = ROOT, target: str = "service:ZopilotGPU", ready: bool = True, **env: str
) -> Iterator[Server]:
    """`bentoml serve` in a process of its own, with only the environment that a test names."""
    port = free_port()
    log = directory / f"server-{port}.log"
    inherited = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    settings = {"ZOPILOT_GPU_API_KEY": KEY, "ZOPILOT_GPU_DEVICE": "cpu", "BENTOML_DO_NOT_TRACK": "True", "HF_HUB_OFFLINE": "1"}
    settings["ZOPILOT_GPU_JOBS_PATH"] = str(directory / f"jobs-{port}.db")
    command = [sys.executable, "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=working_dir, env=inherited | settings | env, stdout=output, stderr=output)
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        if ready:
            server.wait_for(lambda health: health["status"] == "ok", timeout_s=240)
        yield server
    finally:
        stop(process)


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """A context manager that starts a server with the settings it is given."""
    directory = tmp_path_factory.mktemp("servers")
    return lambda **options: serving(directory, **options)


@pytest.fixture(scope="session")
def mixtral_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real Mixtral v0.1 tokenizer, as a model directory holds it."""
    import mistral_common

    directory = tmp_path_factory.mktemp("tokenizer")
    shutil.copy(Path(mistral_common.__file__).parent / "data" / "tokenizer.model.v1", directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text(json.dumps(LLAMA_TOKENIZER_CONFIG))
    return directory


@pytest.fixture(scope="session")
def tiny_mixtral(tmp_path_factory: pytest.TempPathFactory, mixtral_tokenizer: Path) -> Path:
    """A Mixtral of random weights in bf16, sharded over several files, with the real tokenizer."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(**TINY, num_local_experts=4, max_position_embeddings=4096)
    directory = tmp_path_factory.mktemp("tiny-mixtral")
    shutil.copytree(mixtral_tokenizer, directory, dirs_exist_ok=True)
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(directory, max_shard_size="4MB")
    return directory


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, mixtral_tokenizer: Path) -> Path:
    """A Llama of random weights in one file, with a chat template of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**TINY, max_position_embeddings=256, bos_token_id=1, eos_token_id=2)
    directory = tmp_path_factory.mktemp("tiny-llama")
    shutil.copytree(mixtral_tokenizer, directory, dirs_exist_ok=True)
    template = "{{ bos_token }}<|user|>{{ messages[0]['content'] }}</s><|assistant|>"
    (directory / "tokenizer_config.json").write_text(json.dumps(LLAMA_TOKENIZER_CONFIG | {"chat_template": template}))
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def demo_of(serve: Serve) -> Iterator[Callable[[str], Server]]:
    """The served demo model by the name of a runner, started once: for tests that leave it as it was."""
    with ExitStack() as running:
        yield cache(lambda runner: running.enter_context(serve(ZOPILOT_GPU_MODEL="demo", ZOPILOT_GPU_RUNNER=runner)))


@pytest.fixture(scope="session")
def demo(demo_of: Callable[[str], Server]) -> Server:
    """The served demo model."""
    return demo_of("mixtral")


@pytest.fixture(scope="session")
def mixtral_server(serve: Serve, tiny_mixtral: Path) -> Iterator[Server]:
    """A served Mixtral of random weights: it talks nonsense for as long as it is let, here up to 256 tokens."""
    with serve(
        ZOPILOT_GPU_MODEL=str(tiny_mixtral), ZOPILOT_GPU_MAX_CONTEXT_TOKENS="256", ALLOWED_ORIGINS="https://app.example"
    ) as server:
        yield server
