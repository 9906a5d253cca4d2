"""The tokens of an answer as text: nothing that must not be in it, and the right end."""

from pathlib import Path

import pytest

from zopilot_gpu.events import Logprob, Score, TokenLogprob, Usage
from zopilot_gpu.text.answer import Answer
from zopilot_gpu.text.tokenizer import Tokenizer

EOS = 2


@pytest.fixture(scope="module")
def tokenizer(mixtral_tokenizer: Path) -> Tokenizer:
    return Tokenizer(mixtral_tokenizer)


def told(answer: Answer, ids: list[int]) -> str:
    text = ""
    for token_id in ids:
        text += answer.push([token_id])
        if answer.stopped:
            break
    return text + answer.flush()


@pytest.mark.parametrize("text", ["The total is 118.40.", "zwölf Flaschen \U0001f377\n\n日本", "a\tb"])
def test_all_of_a_text_comes_through(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    answer = Answer(tokenizer, [EOS], ())
    assert told(answer, ids) == text
    assert not answer.stopped
    assert answer.done(7, 3).finish_reason == "length"
    assert answer.done(7, 3).usage == Usage(7, 3, len(ids))


def test_the_end_of_sequence_ends_it_and_counts_as_a_token(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, [EOS], ())
    ids = tokenizer.encode("Yes.")
    assert told(answer, [*ids, EOS, *ids]) == "Yes."
    assert answer.done(1).finish_reason == "stop"
    assert answer.done(1).usage.completion_tokens == len(ids) + 1


def test_a_stop_string_ends_it_and_is_no_part_of_it(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, [EOS], ("\nUser:",))
    assert told(answer, tokenizer.encode("Yes.\nUser: and?")) == "Yes."
    assert answer.done(1).finish_reason == "stop"


def test_other_special_tokens_say_nothing(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, [EOS], ())
    assert told(answer, [1, *tokenizer.encode("Yes."), 0]) == "Yes."


def test_log_probabilities_come_with_the_text_that_their_tokens_make(tokenizer: Tokenizer) -> None:
    answer = Answer(tokenizer, [EOS], ())
    ids = [*tokenizer.encode("a 日"), EOS]
    said = []
    for number, token in enumerate(ids):
        text = answer.push([token], [Score(token, -float(number), ((token, -0.5),))])
        said.append((text, answer.take_logprobs() if text else ()))
    tokens = [one for _, several in said for one in several]
    assert b"".join(one.token for one in tokens).decode() == " a 日"
    assert tokens[1] == TokenLogprob(tokens[1].token, -1.0, (Logprob(tokens[1].token, -0.5),))
    assert len(tokens) == len(ids) - 1  # the end is no text
    assert all(several for text, several in said if text)
