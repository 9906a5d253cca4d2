"""Turn a caller's prompt and context into token ids, with the caller's text kept out of the control vocabulary.

Knows the instruct templates; refuses to let caller text become one of their markers.
Control tokens are placed as ids, around caller text that was encoded on its own with special tokens
switched off, so `</s>` in a prompt is four ordinary characters. `[INST]` and `[/INST]` are ordinary
pieces in Mixtral's vocabulary, so encoding can't tell ours from a caller's: the literal is broken.

Source of the Mixtral form: the model card of Mixtral-8x7B-Instruct-v0.1,
`<s>[INST] instruction [/INST] answer</s>`.

Try it: `python -m pytest tests/unit/text/test_template.py`.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, Protocol

from zopilot_gpu.text.tokenizer import Tokenizer

_MARKER = re.compile(r"\[(/?INST\])")
_SLOT = "\N{OBJECT REPLACEMENT CHARACTER}"


class Template(Protocol):
    """Encodes one user turn as the prefix that the model continues with its answer."""

    def encode(self, prompt: str, context: Mapping[str, Any] | None) -> list[int]:
        """Token ids of the whole prefill, with exactly one BOS where the model has one."""
        ...


def fold(prompt: str, context: Mapping[str, Any] | None) -> str:
    """The user turn as one text: the instruction, and under it the context as JSON."""
    if not context:
        return prompt
    return f"{prompt}\n\nContext:\n{json.dumps(context, ensure_ascii=False)}"


def break_markers(text: str) -> str:
    """Caller text with `[INST]` and `[/INST]` broken by a space: `[ INST]`, `[ /INST]`."""
    return _MARKER.sub(r"[ \1", text)


class InstructTemplate:
    """Mixtral's template: BOS `[INST]` user text `[/INST]`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._head = [*tokenizer.bos, *tokenizer.encode("[INST]")]
        self._tail = tokenizer.encode("[/INST]")

    def encode(self, prompt: str, context: Mapping[str, Any] | None) -> list[int]:
        """See `Template.encode`."""
        return [*self._head, *self._tokenizer.encode(break_markers(fold(prompt, context))), *self._tail]


class ChatTemplate:
    """Any other model's own chat template: rendered once around a slot, then cut there.

    The template's text is encoded with special tokens on, the caller's with them off.
    A tokenizer without a chat template gets BOS and the plain text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        head, _, tail = tokenizer.render_chat(_SLOT).partition(_SLOT)
        self._head = tokenizer.encode(head, special=True)
        self._tail = tokenizer.encode(tail, special=True)
        if tokenizer.bos and self._head[:1] != tokenizer.bos:
            self._head = [*tokenizer.bos, *self._head]

    def encode(self, prompt: str, context: Mapping[str, Any] | None) -> list[int]:
        """See `Template.encode`."""
        return [*self._head, *self._tokenizer.encode(break_markers(fold(prompt, context))), *self._tail]


def template_for(model_type: str, tokenizer: Tokenizer) -> Template:
    """The template of an architecture (`model_type` of its config.json)."""
    if model_type in {"mixtral", "mistral"}:
        return InstructTemplate(tokenizer)
    return ChatTemplate(tokenizer)
