"""Grammars and their masks: which bits, which tokens follow, what copies share, and that one failure stays one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zopilot_gpu.engine.grammar import Compiler, Grammar, GrammarError, Mask, Masks, allow, forbid, open_masks
from zopilot_gpu.store.locate import locate
from zopilot_gpu.text.tokenizer import Tokenizer

EOS = 2
VOCAB = 1024


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(locate("demo").directory)


@pytest.fixture
def compiler(tokenizer: Tokenizer) -> Compiler:
    return Compiler(tokenizer.serialised(), VOCAB, [EOS])


def made(compiler: Compiler, schema: Any) -> Grammar:
    return compiler.compile(json.dumps(schema))


def allowed(masks: Mask, row: int, vocab_size: int = VOCAB) -> set[int]:
    bits = np.unpackbits(masks[row].view(np.uint8), bitorder="little")
    return {int(token) for token in np.flatnonzero(bits) if token < vocab_size}


def follow(grammar: Grammar) -> set[int]:
    masks = open_masks(1, VOCAB)
    grammar.fill(masks, 0)
    return allowed(masks, 0)


def spend(grammar: Grammar) -> None:
    """Puts it into an error state, as a limit does."""
    with pytest.raises(GrammarError):
        grammar.accept([EOS])
    assert grammar.failed


@pytest.mark.parametrize("token", [0, 30, 31, 32, 33, 63, 64, 1023])
def test_a_token_is_one_bit(token: int) -> None:
    masks = open_masks(2, VOCAB)
    forbid(masks, 0, [token])
    assert allowed(masks, 0) == set(range(VOCAB)) - {token}
    assert allowed(masks, 1) == set(range(VOCAB))
    masks[:] = 0
    allow(masks, 1, [token])
    assert (allowed(masks, 0), allowed(masks, 1)) == (set(), {token})
    assert masks[1].view(np.uint32)[token // 32] == 1 << token % 32


@pytest.mark.parametrize(("vocab_size", "words"), [(1, 1), (31, 1), (32, 1), (33, 2), (1000, 32), (32000, 1000), (32001, 1001)])
def test_a_mask_has_a_word_for_each_32_tokens(vocab_size: int, words: int) -> None:
    assert open_masks(3, vocab_size).shape == (3, words)


@pytest.mark.parametrize("vocab_size", [1024, 1030, 1056])
def test_a_vocabulary_larger_than_the_tokenizers_or_no_multiple_of_32(tokenizer: Tokenizer, vocab_size: int) -> None:
    grammar = Compiler(tokenizer.serialised(), vocab_size, [EOS]).compile('{"type": "boolean"}')
    masks = open_masks(2, vocab_size)
    grammar.fill(masks, 1)
    first = {tokenizer.decode([token])[:1] for token in allowed(masks, 1, 32 * masks.shape[1])}
    assert first <= {"t", "f"}
    assert first
    assert (masks[0] == -1).all()


def test_the_real_tokenizer_writes_what_the_schema_allows(mixtral_tokenizer: Path) -> None:
    tokenizer = Tokenizer(mixtral_tokenizer)
    grammar = Compiler(tokenizer.serialised(), 32_000, [EOS]).compile('{"enum": ["Zürich GmbH", 12]}')
    text: list[int] = []
    while not grammar.ended:
        masks = open_masks(1, 32_000)
        grammar.fill(masks, 0)
        tokens = grammar.forced() or [max(allowed(masks, 0, 32_000))]
        grammar.accept(tokens)
        text += tokens
    assert tokenizer.decode(text) in {'"Zürich GmbH"', "12"}


def test_what_must_follow_is_given_at_once_and_the_end_is_seen(compiler: Compiler, tokenizer: Tokenizer) -> None:
    grammar = made(
        compiler,
        {"type": "object", "properties": {"total": {"const": 7}}, "required": ["total"], "additionalProperties": False},
    )
    text = grammar.forced()
    assert '{"total": 7}'.startswith(tokenizer.decode(text))
    grammar.accept(text)
    while not grammar.ended:
        tokens = grammar.forced() or [max(follow(grammar))]
        grammar.accept(tokens)
        text += tokens
    assert json.loads(tokenizer.decode([token for token in text if token != EOS])) == {"total": 7}


def test_the_end_may_come_when_the_text_is_whole_and_not_before(compiler: Compiler, tokenizer: Tokenizer) -> None:
    grammar = made(compiler, {"type": "integer", "minimum": 10, "maximum": 99999})
    digit = tokenizer.encode("7")
    assert EOS not in follow(grammar)
    grammar.accept(digit)
    assert EOS not in follow(grammar)
    grammar.accept(digit)
    assert EOS in follow(grammar)
    assert not grammar.ended


def test_each_sequence_has_a_grammar_of_its_own(compiler: Compiler, tokenizer: Tokenizer) -> None:
    schema = {"type": "boolean"}
    one, other = made(compiler, schema), made(compiler, schema)
    one.accept(tokenizer.encode("true"))
    assert one.ended
    assert not other.ended
    spend(other)
    assert not one.failed
    assert {tokenizer.decode([token])[:1] for token in follow(made(compiler, schema))} <= {"t", "f"}


def test_schemas_are_remembered_up_to_a_number_and_a_size(compiler: Compiler) -> None:
    for n in range(70):
        made(compiler, {"const": n})
        made(compiler, {"const": 0})
    assert len(compiler._made) == 64
    assert '{"const": 0}' in compiler._made
    assert '{"const": 1}' not in compiler._made
    for n in range(5):
        made(compiler, {"const": f"{n}" * 40_000})
    assert sum(map(len, compiler._made)) <= 128 * 1024
    assert len(compiler._made) == 3


@pytest.mark.parametrize(
    "schema",
    [
        '{"type": "integer", "minimum": 2, "maximum": 1}',
        '{"not": {}}',
        "[]",
        "{",
        "true",
        '{"type": "array", "items": {"type": "null"}, "minItems": 1000000}',
    ],
)
def test_what_can_not_be_followed_is_refused_before_it_begins(compiler: Compiler, schema: str) -> None:
    with pytest.raises(GrammarError):
        compiler.compile(schema)
    assert schema not in compiler._made


def test_an_error_says_nothing_of_the_text(compiler: Compiler, tokenizer: Tokenizer) -> None:
    grammar = made(compiler, {"const": "secret"})
    grammar.accept(tokenizer.encode('"'))
    with pytest.raises(GrammarError) as error:
        grammar.accept(tokenizer.encode("x"))
    assert str(error.value).isalpha()


@pytest.mark.parametrize("num_healthy", [0, 1, 3])
def test_a_grammar_that_failed_ends_its_sequence_and_no_other(compiler: Compiler, num_healthy: int) -> None:
    failed = made(compiler, {"type": "string"})
    spend(failed)
    healthy = [made(compiler, {"type": "boolean"}) for _ in range(num_healthy)]
    expected = [follow(made(compiler, {"type": "boolean"}))] * num_healthy
    masks = open_masks(num_healthy + 2, VOCAB)
    Masks().start(masks, [(0, failed), *enumerate(healthy, 1)]).result(10)
    assert allowed(masks, 0) == {EOS}
    assert [allowed(masks, row) for row in range(1, num_healthy + 1)] == expected
    assert allowed(masks, num_healthy + 1) == set(range(VOCAB))
    assert not failed.ended
    assert not any(one.failed for one in healthy)
    for call in (failed.check, failed.forced, lambda: failed.fill(masks, 0), lambda: failed.accept([5])):
        with pytest.raises(GrammarError):
            call()


def test_no_grammars_are_no_work() -> None:
    masks = open_masks(1, VOCAB)
    assert (Masks().start(masks, []).result(10) == -1).all()


def test_a_panic_of_the_library_is_an_error_like_others(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3 names it."""

    class Panicking:
        def is_error(self) -> bool:
            raise PanicException

        def __getattr__(self, name: str) -> Any:
            raise PanicException

    grammar = Grammar(Panicking())  # type: ignore[arg-type]
    for call in (lambda: grammar.accept([1]), grammar.forced, lambda: grammar.fill(open_masks(1, VOCAB), 0)):
        with pytest.raises(GrammarError):
            call()
    monkeypatch.setattr("zopilot_gpu.engine.grammar.LLMatcher", Panicking())
    with pytest.raises(GrammarError):
        compiler.compile('{"const": "panic"}')
