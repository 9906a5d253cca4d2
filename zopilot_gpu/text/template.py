"""Turn a caller's prompt and context into token ids, with the caller's text kept out of the control vocabulary.

Knows the instruct templates; refuses to let caller text become one of their markers.
Control tokens are placed as ids, around caller text that was encoded on its own with special tokens
switched off, so `</s>` in a prompt is four ordinary characters. `[INST]` and `[/INST]` are ordinary
pieces in Mixtral's vocabulary, so encoding can't tell ours from a caller's: the literal is broken.

Source of the Mixtral form: the model card of Mixtral-8x7B-Instruct-v0.1,
`<s>[INST] instruction [/INST] answer</s>[INST] instruction [/INST]`.

Try it: `python -m pytest tests/unit/text/test_template.py`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.text.tokenizer import Tokenizer

_MARKER = re.compile(r"\[(/?INST\])")
_SLOT = "\N{OBJECT REPLACEMENT CHARACTER}"

History = Sequence[tuple[str, str]]  # what the user said, and what the model answered


class Template(Protocol):
    """Encodes a conversation as the prefix that the model continues with its answer."""

    def encode(self, prompt: str, context: Mapping[str, Any] | None, history: History = ()) -> list[int]:
        """Token ids of the whole prefill, with exactly one BOS where the model has one.

        Raises:
            InvalidRequest: 422 where the model's template has no place for a history.
        """
        ...


def encode_raw(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Token ids of a text to be continued as it is, with exactly one BOS where the model has one."""
    return [*tokenizer.bos, *tokenizer.encode(break_markers(prompt))]


def fold(prompt: str, context: Mapping[str, Any] | None) -> str:
    """The user turn as one text: the instruction, and under it the context as JSON."""
    if not context:
        return prompt
    return f"{prompt}\n\nContext:\n{json.dumps(context, ensure_ascii=False)}"


def break_markers(text: str) -> str:
    """Caller text with `[INST]` and `[/INST]` broken by a space: `[ INST]`, `[ /INST]`."""
    return _MARKER.sub(r"[ \1", text)


class InstructTemplate:
    """Mixtral's template: BOS `[INST]` user text `[/INST]`, and for each turn before it the model's text and EOS."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._head = tokenizer.encode("[INST]")
        self._tail = tokenizer.encode("[/INST]")
        self._end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]

    def encode(self, prompt: str, context: Mapping[str, Any] | None, history: History = ()) -> list[int]:
        """See `Template.encode`."""
        ids = list(self._tokenizer.bos)
        for asked, said in history:
            ids += [*self._turn(asked), *self._tokenizer.encode(break_markers(said)), *self._end]
        return ids + self._turn(fold(prompt, context))

    def _turn(self, text: str) -> list[int]:
        return [*self._head, *self._tokenizer.encode(break_markers(text)), *self._tail]


class ChatTemplate:
    """Any other model's own chat template: rendered around a slot for each turn, then cut there.

    The template's text is encoded with special tokens on, the caller's with them off.
    A tokenizer without a chat template gets BOS and the plain text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._single = self._frame(1)

    def encode(self, prompt: str, context: Mapping[str, Any] | None, history: History = ()) -> list[int]:
        """See `Template.encode`."""
        texts = [text for pair in history for text in pair] + [fold(prompt, context)]
        ids, *rest = self._frame(len(texts)) if history else self._single
        ids = list(ids)
        for text, after in zip(texts, rest, strict=True):
            ids += [*self._tokenizer.encode(break_markers(text)), *after]
        return ids

    def _frame(self, num_turns: int) -> list[list[int]]:
        """What stands before, between and after so many turns."""
        try:
            pieces = self._tokenizer.render_chat(*[_SLOT] * num_turns).split(_SLOT)
        except ValueError:
            pieces = []
        if len(pieces) != num_turns + 1:
            raise InvalidRequest(422, "history_unsupported", "This model's chat template takes one turn of the user only.")
        frame = [self._tokenizer.encode(piece, special=True) for piece in pieces]
        bos = self._tokenizer.bos
        return frame if frame[0][: len(bos)] == bos else [[*bos, *frame[0]], *frame[1:]]


def template_for(model_type: str, tokenizer: Tokenizer) -> Template:
    """The template of an architecture (`model_type` of its config.json)."""
    if model_type in {"mixtral", "mistral"}:
        return InstructTemplate(tokenizer)
    return ChatTemplate(tokenizer)
