"""The stored tokenizer: the one that the generator's text gives, lossless, and the same for a value wherever it stands."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from zopilot_gpu.demo import MODEL, values, vocabulary
from zopilot_gpu.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer(MODEL)
# Sentencepiece's space comes back as a space, here as in Mixtral.
TEXT = st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"]))


def test_the_stored_tokenizer_is_what_the_code_builds() -> None:
    stored = json.loads((MODEL / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(vocabulary.build().to_str()) == stored
    assert len(stored["model"]["vocab"]) == vocabulary.NUM_PIECES


@given(TEXT)
def test_any_text_comes_back(text: str) -> None:
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@given(TEXT)
def test_no_text_becomes_a_control_token(text: str) -> None:
    assert not TOKENIZER.special_ids.intersection(TOKENIZER.encode(f"<s>{text}</s><unk>"))


def test_the_three_special_pieces_have_mixtrals_ids() -> None:
    assert TOKENIZER.bos == [1]
    assert TOKENIZER.eos_id == 2
    assert sorted(TOKENIZER.special_ids) == [0, 1, 2]


def test_a_value_has_the_same_ids_in_a_context_as_alone() -> None:
    rng = random.Random(2)
    makers = (values.company, values.amount, values.code, values.date, values.iban, values.address, values.exotic, values.email)
    for value in (maker(rng) for maker in makers for _ in range(50)):
        inside = TOKENIZER.encode(json.dumps({"invoice": value, "total": value, "paid": True}, ensure_ascii=False))
        alone = TOKENIZER.encode(value if isinstance(value, str) else json.dumps(value))
        places = [i for i in range(len(inside)) if inside[i : i + len(alone)] == alone]
        assert len(places) >= 2, value


def test_a_word_has_the_same_ids_in_a_key_as_in_a_question() -> None:
    asked = TOKENIZER.encode("What is the zorblat quantum?")
    key = TOKENIZER.encode("zorblat")
    assert [i for i in range(len(asked)) if asked[i : i + len(key)] == key]
    assert TOKENIZER.encode('{"zorblat": 1}')[1 : 1 + len(key)] == key
