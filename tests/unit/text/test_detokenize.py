"""Holds incremental text to the whole: pieces join to what decoding at once gives; a stop cuts at one place."""

from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from zopilot_gpu.text.detokenize import Detokenizer, StopStrings
from zopilot_gpu.text.tokenizer import Tokenizer

REPLACEMENT = "\ufffd"
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ALPHABET = "ab\n\u20ac"  # few letters, so that stops overlap each other and the text


@cache
def tokenizer_in(directory: Path) -> Tokenizer:
    return Tokenizer(directory)


def pieces_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer.decode)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.flush()]


@settings(deadline=None, max_examples=300)
@given(text=TEXTS)
@example(text="")
@example(text="  two  spaces \n\n and lines ")
@example(text="\u20ac\U0001f9fe\U0001f468\u200d\U0001f469\u200d\U0001f467 e\u0301")
@example(text=f"a{REPLACEMENT}{REPLACEMENT}b{REPLACEMENT}")
@example(text="\u2581 \u2581")
def test_pieces_join_to_the_text_that_decoding_at_once_gives(mixtral_tokenizer: Path, text: str) -> None:
    tokenizer = tokenizer_in(mixtral_tokenizer)
    ids = tokenizer.encode(text)
    assert "".join(pieces_of(tokenizer, ids)) == tokenizer.decode(ids)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS.filter(lambda text: REPLACEMENT not in text))
@example(text="\U0001f9fe\U0001f9fe\u6f22\U00020000")
def test_a_character_spread_over_tokens_is_never_given_out_in_parts(mixtral_tokenizer: Path, text: str) -> None:
    tokenizer = tokenizer_in(mixtral_tokenizer)
    assert not any(REPLACEMENT in piece for piece in pieces_of(tokenizer, tokenizer.encode(text)))


def test_a_character_is_given_out_with_its_last_byte(mixtral_tokenizer: Path) -> None:
    tokenizer = tokenizer_in(mixtral_tokenizer)
    ids = tokenizer.encode("a\U0001f9feb")
    assert len(ids) == 6  # one id a byte of the character in the middle
    assert pieces_of(tokenizer, ids) == ["a", "", "", "", "\U0001f9fe", "b", ""]


def test_bytes_that_never_become_a_character_come_out_at_the_end(mixtral_tokenizer: Path) -> None:
    tokenizer = tokenizer_in(mixtral_tokenizer)
    ids = tokenizer.encode("a\U0001f9fe")[:-2]
    pieces = pieces_of(tokenizer, ids)
    assert "".join(pieces[:-1]) == "a"
    assert pieces[-1] == REPLACEMENT * 2


def test_decoding_looks_at_the_tail_only(mixtral_tokenizer: Path) -> None:
    tokenizer = tokenizer_in(mixtral_tokenizer)
    lengths: list[int] = []

    def decode(ids: list[int]) -> str:
        lengths.append(len(ids))
        return tokenizer.decode(ids)

    detokenizer = Detokenizer(decode)
    for token_id in tokenizer.encode("a long answer with \U0001f9fe in it, " * 50):
        detokenizer.push(token_id)
    assert max(lengths) <= 12


def cut(text: str, places: list[int]) -> list[str]:
    borders = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[begin:end] for begin, end in pairwise(borders)]


def expected_of(text: str, stops: list[str]) -> str:
    """Text up to the stop that is complete first; of those complete at the same character, the longest.

    This is the only reading that does not depend on how text is cut: at the moment when a stop is complete, what follows
    has not been seen.
    """
    found = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(found)[1]] if found else text


@settings(max_examples=1000)
@given(
    text=st.text(ALPHABET, max_size=20),
    stops=st.lists(st.text(ALPHABET, min_size=1, max_size=5), max_size=4),
    places=st.lists(st.integers(0, 1000), max_size=20),
)
@example(text="abab", stops=["bab", "ab"], places=[])
@example(text="xabc", stops=["abc", "b"], places=[])
@example(text="xabc", stops=["abc", "b"], places=[1, 2, 3])
def test_stops_cut_at_one_place_however_the_text_arrives(text: str, stops: list[str], places: list[int]) -> None:
    stop_strings = StopStrings(stops)
    given_out = ""
    for piece in cut(text, places):
        given_out += stop_strings.push(piece)
        assert expected_of(text, stops).startswith(given_out)  # nothing of a stop leaks on the way
    assert stop_strings.hit == any(stop in text for stop in stops)
    assert given_out + stop_strings.flush() == expected_of(text, stops)


@pytest.mark.parametrize(
    ("stops", "pieces", "given_out"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["</a>"], ["x<", "/", "b"], ["x", "", "</b"]),
        (["</a>"], ["x<", "/a", ">y", "z"], ["x", "", "", ""]),
        (["\n\n"], ["x\n", "y\n", "\n"], ["x", "\ny", ""]),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""]),
    ],
)
def test_text_is_held_only_while_it_may_begin_a_stop(stops: list[str], pieces: list[str], given_out: list[str]) -> None:
    stop_strings = StopStrings(stops)
    assert [stop_strings.push(piece) for piece in pieces] == given_out
