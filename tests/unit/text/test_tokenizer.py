"""Holds the tokenizer's door: what can't be read is `ModelUnavailable`, paths are for the operator, control text is text."""

import json
from pathlib import Path

import pytest

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.tokenizer import Tokenizer

LLAMA = json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False})


@pytest.mark.parametrize(
    "files",
    [
        None,
        {},
        {"config.json": json.dumps({"model_type": "mixtral"})},
        {"tokenizer_config.json": LLAMA},
        {"tokenizer_config.json": "{"},
        {"tokenizer_config.json": LLAMA, "tokenizer.model": "not sentencepiece"},
        {"tokenizer_config.json": LLAMA, "tokenizer.json": "{}"},
        {"tokenizer_config.json": LLAMA, "tokenizer.json": "{"},
        {"tokenizer_config.json": LLAMA, "tokenizer.json": '{"added_tokens": []}'},
    ],
    ids=[
        "no directory",
        "empty",
        "config only",
        "no vocabulary",
        "broken config",
        "broken model",
        "empty json",
        "broken json",
        "json of no tokenizer",
    ],
)
def test_what_cannot_be_read_is_model_unavailable(tmp_path: Path, files: dict[str, str] | None) -> None:
    directory = tmp_path / "model"
    if files is not None:
        directory.mkdir()
    for name, content in (files or {}).items():
        (directory / name).write_text(content)
    with pytest.raises(ModelUnavailable) as refusal:
        Tokenizer(directory)
    assert str(directory) in str(refusal.value.detail)
    assert refusal.value.message == ModelUnavailable.message  # callers learn no paths


@pytest.mark.parametrize("text", ["<s>", "</s>", "<unk>", "a</s>b", "<s>[INST]"])
def test_special_tokens_in_text_are_ordinary_characters(mixtral_tokenizer: Path, text: str) -> None:
    tokenizer = Tokenizer(mixtral_tokenizer)
    ids = tokenizer.encode(text)
    assert not tokenizer.special_ids & set(ids)
    assert tokenizer.decode(ids) == text


def test_special_tokens_are_ids_where_the_template_asks_for_them(mixtral_tokenizer: Path) -> None:
    tokenizer = Tokenizer(mixtral_tokenizer)
    assert tokenizer.encode("<s></s><unk>", special=True) == [1, 2, 0]
    assert tokenizer.decode([1, 2, 0]) == ""


def test_encoding_adds_no_bos_or_eos(mixtral_tokenizer: Path) -> None:
    tokenizer = Tokenizer(mixtral_tokenizer)
    assert tokenizer.encode("") == []
    assert (tokenizer.bos, tokenizer.eos_id, sorted(tokenizer.special_ids)) == ([1], 2, [0, 1, 2])


def test_the_ids_are_sentencepieces_own(mixtral_tokenizer: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    reference = SentencePieceProcessor(model_file=str(mixtral_tokenizer / "tokenizer.model"))
    tokenizer = Tokenizer(mixtral_tokenizer)
    for text in ("What is the total?", "1.234,56 \u20ac\n\tnext", "\u6f22\u5b57 \U0001f9fe", "a  b   c"):
        assert tokenizer.encode(text) == reference.encode(text)


def test_the_bytes_of_tokens_are_the_bytes_of_the_text(mixtral_tokenizer: Path) -> None:
    text = "Zwölf Flaschen \U0001f377\n\tfor 118.40 € 日本"
    for tokenizer in (Tokenizer(mixtral_tokenizer), Tokenizer(locate("demo").directory)):
        assert b"".join(map(tokenizer.bytes_of, tokenizer.encode(text))).decode().lstrip() == text


def test_the_bytes_of_byte_level_tokens(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    vocab = {piece: number for number, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Fast(models.BPE(vocab, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path)
    assert b"".join(map(tokenizer.bytes_of, tokenizer.encode("zwölf €\n"))).decode() == "zwölf €\n"
