"""What all services are asked: the demo model's questions about small documents, greedy, the same for the same seed."""

from itertools import islice

from zopilot_gpu.bench.workload import Body
from zopilot_gpu.demo.questions import held_out_set

_MAX_TOKENS = 256


def asked(seed: int, count: int) -> list[Body]:
    """Bodies of `POST /prompt`, each with a context."""
    questions = (question for question in held_out_set(seed) if question.context)
    return [
        {"prompt": question.prompt, "context": question.context, "max_tokens": _MAX_TOKENS, "temperature": 0}
        for question in islice(questions, count)
    ]
