"""Answer questions with the stored model, the way the service's plain runner does.

Knows transformers' generate and the service's template; refuses to sample in any way but the two that are measured.

Try it: `python -m zopilot_gpu.demo.measure --questions 20`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from zopilot_gpu.demo.batches import Encoder
from zopilot_gpu.demo.questions import Question

GREEDY: dict[str, Any] = {"do_sample": False}
DEFAULT_SAMPLING: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.1,
    "top_p": 0.95,
    "top_k": 50,
    "repetition_penalty": 1.1,
}


def load(directory: Path) -> Any:
    """The pre-quantised model of a directory, on the CPU, in bf16."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True, trust_remote_code=False
    )
    return model.eval()


@torch.inference_mode()
def answer(model: Any, encoder: Encoder, questions: Sequence[Question], how: dict[str, Any], seed: int = 0) -> list[str]:
    """Answers in the order of the questions, all in one batch, padded on the left.

    Args:
        model: what `load` returned.
        encoder: of the same directory.
        questions: one or more.
        how: `GREEDY` or `DEFAULT_SAMPLING`, keywords of transformers' generate.
        seed: of torch's generator, which sampling draws from.
    """
    prompts = [encoder.prompt(question) for question in questions]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    limit = 16 + max(len(encoder.answer(question)) for question in questions)
    torch.manual_seed(seed)
    answers = model.generate(ids, attention_mask=mask, max_new_tokens=limit, **how)
    return [encoder.tokenizer.decode(row[longest:].tolist()) for row in answers]


def in_batches(questions: Sequence[Question], batch_size: int) -> list[list[Question]]:
    """Questions of similar length together, in batches."""
    ordered = sorted(questions, key=lambda question: (len(question.answer), len(str(question.context))))
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]
