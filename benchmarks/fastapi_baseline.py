"""The service that this one replaces, as people write it: FastAPI, transformers' `generate()`, a lock, one file.

It has no keys, limits, streams or cancellation, and serves the demo model on the CPU. Tokenizer and template are ours, so
that its texts can be compared; the model is loaded as `runners.causal_lm` does it. The answer has the shape of docs/api.md
as far as `zopilot_gpu.bench` reads it.

Try it: `python -m benchmarks.fastapi_baseline --port 8000`.
"""

import threading
import time
from typing import Annotated, Any

import torch
import typer
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModelForCausalLM

from zopilot_gpu.demo import MODEL
from zopilot_gpu.text.template import template_for
from zopilot_gpu.text.tokenizer import Tokenizer


class Asked(BaseModel):
    """The fields of `POST /prompt` that it knows, with the same defaults."""

    prompt: str
    context: dict[str, Any] | None = None
    max_tokens: int = 1024
    temperature: float = 0.1
    top_p: float = 0.95
    top_k: int = 50
    repetition_penalty: float = 1.1
    seed: int | None = None


def build_app() -> FastAPI:
    """The application, with the model loaded."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=torch.bfloat16, device_map={"": "cpu"}, use_safetensors=True, local_files_only=True
    ).eval()
    tokenizer = Tokenizer(MODEL)
    template = template_for("mixtral", tokenizer)
    one_at_a_time = threading.Lock()
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/prompt")
    def prompt(asked: Asked) -> dict[str, Any]:
        arrived_s = time.monotonic()
        ids = torch.tensor([template.encode(asked.prompt, asked.context)])
        with one_at_a_time:
            if asked.seed is not None:
                torch.manual_seed(asked.seed)
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **_how(asked))
        new = out[0, ids.shape[1] :].tolist()
        usage = {"prompt_tokens": ids.shape[1], "cached_tokens": 0, "completion_tokens": len(new)}
        metadata = {"processing_time_seconds": time.monotonic() - arrived_s, "usage": usage}
        return {"success": True, "output": tokenizer.decode(new), "metadata": metadata}

    return app


def _how(asked: Asked) -> dict[str, Any]:
    common = {"max_new_tokens": asked.max_tokens, "repetition_penalty": asked.repetition_penalty}
    if asked.temperature < 0.01:
        return common | {"do_sample": False}
    return common | {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k}


def main(port: Annotated[int, typer.Option(help="On 127.0.0.1.")] = 8000) -> None:
    """Serve until interrupted."""
    uvicorn.run(build_app(), host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
