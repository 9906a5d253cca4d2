"""Store trained weights as the package's NF4 model, and prove that the stored files give the same logits.

Knows bitsandbytes through transformers; refuses to leave anything of this machine in the files (paths, names).
The router, the head, the embeddings and the norms stay bf16.

Try it: `python -m zopilot_gpu.demo.quantise /tmp/demo-weights /tmp/demo-model`.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from zopilot_gpu.demo import MODEL
from zopilot_gpu.demo.answering import load

# NOTE: transformers 4.57.3 to 4.57.6 warn of a wrong Mistral regex for any local tokenizer whose config.json names one
# of these versions, whatever the model. Below it, they look at the model type, and Mixtral is none of those concerned.
_WRITTEN_BY = "4.57.1"
_PROBE = tuple(range(3, 160))


def _settings() -> BitsAndBytesConfig:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.uint8,
        llm_int8_skip_modules=["gate", "lm_head"],
    )


def _rewrite(path: Path, **changes: Any) -> None:
    """Set these keys of a JSON file; None removes one."""
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    kept = {key: value for key, value in content.items() if value is not None or key not in changes}
    path.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@torch.inference_mode()
def _logits(model: Any) -> torch.Tensor:
    logits: torch.Tensor = model(torch.tensor([_PROBE])).logits
    return logits


def quantise(weights: Path, target: Path) -> None:
    """Quantise the model in `weights` on the CPU, save it to `target`, and load it again from there.

    Raises:
        ValueError: the reloaded model's logits differ.
    """
    model: Any = AutoModelForCausalLM.from_pretrained(
        weights, quantization_config=_settings(), dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True
    )
    target.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(target)
    (target / "model.safetensors").chmod(0o644)  # safetensors writes for the owner alone
    _rewrite(target / "config.json", _name_or_path=None, transformers_version=_WRITTEN_BY)
    generation = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (target / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (target / name).exists():
            shutil.copy(MODEL / name, target / name)
    if not torch.equal(_logits(model), _logits(load(target))):
        raise ValueError(f"The model read back from {target} answers differently.")


def main(
    weights: Annotated[Path, typer.Argument(help="A directory that `train` wrote.")],
    target: Annotated[Path, typer.Argument(help="Where the NF4 model goes.")] = MODEL,
) -> None:
    """Quantise trained weights."""
    quantise(weights, target)


if __name__ == "__main__":
    typer.run(main)
