"""Holds the templates to their sources, and caller text out of control: one BOS, one `[INST]`, one `[/INST]`.

The tokenizer is Mixtral's own; mistral-common is the independent reading of the same template.
"""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

from zopilot_gpu.errors import InvalidRequest
from zopilot_gpu.text.template import ChatTemplate, InstructTemplate, break_markers, encode_raw, template_for
from zopilot_gpu.text.tokenizer import Tokenizer

CLEAN_PROMPTS = [
    "What is the total?",
    "One line\nand another\n\nand a third",
    "\tindented\n",
    "Überweisung an Größe & Söhne: 1.234,56 €",
    "合計はいくらですか。",
    "مرحبا بالعالم",
    "combining e\u0301 and \U0001f9fe",
    '{"vendor": "Acme", "total": "118.40"}',
    "x" * 300,
    "if (a < b) { return [1, 2]; }",
]
NUM_CONTROL_PROMPTS = 500
SEED = 20_260_101
CONTROL = [
    "<s>", "</s>", "<unk>", "<s", "/s>", "[INST]", "[/INST]", "[INST", "INST]", "[/", "[", "]", "[[INST]INST]",
    "[[/INST]/INST]", "[/[/INST]INST]", "\uff3bINST\uff3d", "[\u200bINST]", "[IN\u00adST]", "[\u0399NST]", "\uff1cs\uff1e",
    "<<SYS>>", "<0x02>", "\u2581[INST]",
]  # fmt: skip
FILLER = ["a", " ", "\n", "total 5", "\u20ac", "\u6f22", "\U0001f9fe", '"', "\\", "\u2581"]


@pytest.fixture(scope="module")
def tokenizer(mixtral_tokenizer: Path) -> Tokenizer:
    return Tokenizer(mixtral_tokenizer)


@pytest.fixture(scope="module")
def instruct(tokenizer: Tokenizer) -> InstructTemplate:
    return InstructTemplate(tokenizer)


@pytest.fixture(scope="module")
def reference() -> Callable[[str], list[int]]:
    """The v1 instruct encoding of mistral-common."""
    mistral: Any = MistralTokenizer.v1()

    def encode(prompt: str) -> list[int]:
        request = ChatCompletionRequest(messages=[UserMessage(content=prompt)])
        ids: list[int] = mistral.encode_chat_completion(request).tokens
        return ids

    return encode


def control_cases() -> list[tuple[str, dict[str, Any] | None]]:
    """Prompts and contexts made of control text, the same on each run."""
    draw = random.Random(SEED)

    def text() -> str:
        return "".join(draw.choice(CONTROL if draw.random() < 0.7 else FILLER) for _ in range(draw.randint(1, 12)))

    def context() -> dict[str, Any] | None:
        return {text(): draw.choice([text(), [text()], {text(): text()}])} if draw.random() < 0.6 else None

    return [(text(), context()) for _ in range(NUM_CONTROL_PROMPTS)]


def places_of(needle: Sequence[int], ids: Sequence[int]) -> list[int]:
    size = len(needle)
    return [at for at in range(len(ids) - size + 1) if list(ids[at : at + size]) == list(needle)]


@pytest.mark.parametrize("prompt", CLEAN_PROMPTS)
def test_instruct_equals_mistral_common(instruct: InstructTemplate, reference: Callable[[str], list[int]], prompt: str) -> None:
    assert instruct.encode(prompt, None) == reference(prompt)


def test_instruct_with_a_context_equals_mistral_common_on_the_folded_text(
    instruct: InstructTemplate, reference: Callable[[str], list[int]]
) -> None:
    context = {"vendor": "Größe", "lines": [{"total": 1.5}, None, True]}
    folded = f"What is due?\n\nContext:\n{json.dumps(context, ensure_ascii=False)}"
    assert instruct.encode("What is due?", context) == reference(folded)


@pytest.mark.parametrize("num_turns", [1, 2, 5])
@pytest.mark.parametrize("system", [None, "Be brief.\nÄ"])
def test_a_conversation_equals_mistral_common(instruct: InstructTemplate, num_turns: int, system: str | None) -> None:
    asked, said = CLEAN_PROMPTS[: num_turns + 1], list(reversed(CLEAN_PROMPTS[:num_turns]))
    turns = [
        turn
        for pair in zip(asked, said, strict=False)
        for turn in (UserMessage(content=pair[0]), AssistantMessage(content=pair[1]))
    ]
    first = [SystemMessage(content=system)] if system else []
    messages: Any = [*first, *turns, UserMessage(content=asked[-1])]
    expected = MistralTokenizer.v1().encode_chat_completion(ChatCompletionRequest(messages=messages)).tokens
    if system:  # folded into the first turn
        asked[0] = f"{system}\n\n{asked[0]}"
    assert instruct.encode(asked[-1], None, list(zip(asked[:-1], said, strict=True))) == expected


def test_control_text_anywhere_in_a_conversation_never_becomes_control(
    tokenizer: Tokenizer, instruct: InstructTemplate
) -> None:
    head, tail = tokenizer.encode("[INST]"), tokenizer.encode("[/INST]")
    cases = [prompt for prompt, _ in control_cases()]
    for asked, said, prompt in zip(cases[0::3], cases[1::3], cases[2::3], strict=False):
        ids = instruct.encode(prompt, None, [(asked, said)])
        assert [token for token in ids if token in tokenizer.special_ids] == [tokenizer.bos[0], tokenizer.eos_id]
        assert (len(places_of(head, ids)), len(places_of(tail, ids))) == (2, 2), (asked, said, prompt)
        raw = encode_raw(tokenizer, prompt)
        assert raw[0] == tokenizer.bos[0]
        assert not tokenizer.special_ids & set(raw[1:])
        assert not [marker for marker in ("[INST]", "[/INST]") if marker in tokenizer.decode(raw)]


def test_control_text_of_a_caller_never_becomes_control(tokenizer: Tokenizer, instruct: InstructTemplate) -> None:
    head, tail = tokenizer.encode("[INST]"), tokenizer.encode("[/INST]")
    for prompt, context in control_cases():
        ids = instruct.encode(prompt, context)
        assert ids[0] == tokenizer.bos[0]
        assert not tokenizer.special_ids & set(ids[1:]), (prompt, context)
        assert places_of(head, ids) == [1], (prompt, context)
        assert places_of(tail, ids) == [len(ids) - len(tail)], (prompt, context)
        text = tokenizer.decode(ids)
        assert (text.count("[INST]"), text.count("[/INST]")) == (1, 1), (prompt, context)


def test_the_control_cases_would_catch_a_template_that_joins_text(tokenizer: Tokenizer) -> None:
    joined = [tokenizer.encode(f"<s>[INST] {prompt} [/INST]", special=True) for prompt, _ in control_cases()]
    with_special_ids = [ids for ids in joined if tokenizer.special_ids & set(ids[1:])]
    with_markers = [ids for ids in joined if tokenizer.decode(ids).count("[INST]") > 1]
    assert len(with_special_ids) > NUM_CONTROL_PROMPTS / 3
    assert len(with_markers) > NUM_CONTROL_PROMPTS / 3


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("[INST]", "[ INST]"),
        ("[/INST]", "[ /INST]"),
        ("[[INST]INST]", "[[ INST]INST]"),
        ("[INST][/INST]", "[ INST][ /INST]"),
        ("[inst] [INSTALL] [/ INST]", "[inst] [INSTALL] [/ INST]"),
    ],
)
def test_markers_are_broken_by_a_space_and_the_rest_is_kept(text: str, broken: str) -> None:
    assert break_markers(text) == broken


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"a": "ü", "b": [1, None]}, 'Sum?\n\nContext:\n{"a": "ü", "b": [1, null]}'),
        ({}, "Sum?"),
        (None, "Sum?"),
    ],
)
def test_the_context_stands_as_json_under_the_instruction(
    tokenizer: Tokenizer, instruct: InstructTemplate, context: dict[str, Any] | None, expected: str
) -> None:
    assert tokenizer.decode(instruct.encode("Sum?", context)) == f"[INST] {expected} [/INST]"


def test_chat_template_surrounds_the_prompt_with_the_models_own_form(tiny_llama: Path) -> None:
    tokenizer = Tokenizer(tiny_llama)
    ids = ChatTemplate(tokenizer).encode("Hello", {"a": 1})
    head, tail = tokenizer.encode("<s><|user|>", special=True), tokenizer.encode("</s><|assistant|>", special=True)
    assert ids == [*head, *tokenizer.encode('Hello\n\nContext:\n{"a": 1}'), *tail]
    assert ids.count(tokenizer.bos[0]) == 1


def test_chat_template_keeps_a_callers_control_text_ordinary(tiny_llama: Path) -> None:
    tokenizer = Tokenizer(tiny_llama)
    plain = ChatTemplate(tokenizer).encode("Hello", None)
    hostile = ChatTemplate(tokenizer).encode("<s>Hello</s><unk>", {"</s>": "<s>"})
    assert tokenizer.eos_id in plain  # the template's own
    for special in tokenizer.special_ids:
        assert hostile.count(special) == plain.count(special)


def test_chat_template_with_a_history_or_without_a_place_for_one(tiny_llama: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ChatTemplate(Tokenizer(tiny_llama)).encode("And now?", None, [("Hello", "Hi")])
    assert refusal.value.code == "history_unsupported"
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(tiny_llama / name, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}<|assistant|>"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer(tmp_path)
    ids = ChatTemplate(tokenizer).encode("And now?", None, [("Hello </s>", "Hi")])
    pieces = ["<s><|user|>", "Hello </s>", "</s><|assistant|>", "Hi", "</s><|user|>", "And now?", "</s><|assistant|>"]
    assert ids == [token for at, piece in enumerate(pieces) for token in tokenizer.encode(piece, special=at % 2 == 0)]


def test_a_tokenizer_without_a_chat_template_gets_bos_and_the_text(tokenizer: Tokenizer) -> None:
    assert ChatTemplate(tokenizer).encode("Hello </s>", None) == [*tokenizer.bos, *tokenizer.encode("Hello </s>")]


@pytest.mark.parametrize(
    ("model_type", "kind"), [("mixtral", InstructTemplate), ("mistral", InstructTemplate), ("llama", ChatTemplate)]
)
def test_the_architecture_chooses_the_template(tokenizer: Tokenizer, model_type: str, kind: type) -> None:
    assert isinstance(template_for(model_type, tokenizer), kind)
