"""What a sequence may say next, where its text has to keep a JSON Schema. Knows llguidance and token ids; no torch.

    Compiler    schema ──▶ Grammar, under limits, remembered by the schema's text
    Grammar     one sequence's place in its schema: which tokens may follow, which must
    Masks       a step's masks, computed on a thread of their own while the model computes logits

A mask is a row of bits, token t being bit t % 32 of word t // 32.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from zopilot_gpu.errors import InvalidRequest

Mask = NDArray[np.int32]

_REMEMBERED = 64
_REMEMBERED_CHARS = 128 * 1024  # of all their schemas: memory grows with the text, some 500 bytes for each
_OPTIONS: Any = {  # a TypedDict of the library that exists for type checkers only
    "item_separator": ", ",  # as json.dumps writes, and as models have read it
    "key_separator": ": ",
    "whitespace_flexible": False,
    "whitespace_pattern": None,
    "coerce_one_of": False,
    "lenient": False,
    "json_allowed_escapes": 'nrbtf\\"',  # NOTE: with \u, "\u0061" would be a name that no property "a" stands for
    "json_allow_general_unicode_escapes": False,
}


class GrammarError(ValueError):
    """A schema can't be followed; the text says why, in terms of the schema."""


def unfollowable() -> InvalidRequest:
    """What the caller is told of an answer whose schema met a limit on the way."""
    return InvalidRequest(422, "json_schema_unsupported", "json_schema: is too large to be followed to the end of this answer")


class Grammar:
    """The place of one sequence in its schema."""

    def __init__(self, matcher: LLMatcher) -> None:
        self.matcher = matcher

    @property
    def ended(self) -> bool:
        """Whether the text is whole and nothing can follow."""
        return self.matcher.is_stopped() and not self.failed

    @property
    def failed(self) -> bool:
        """Whether a limit was met. NOTE: the mask then allows the end of the sequence, and nothing else."""
        return self.matcher.is_error()

    def accept(self, token_ids: Sequence[int]) -> None:
        """Moves on by tokens that the mask allowed.

        Raises:
            GrammarError: it did not, or a limit was met.
        """
        with _no_panic():
            self.matcher.consume_tokens(list(token_ids))
        self.check()

    def forced(self) -> list[int]:
        """The tokens that have to follow, as the tokenizer would write them; often none.

        Raises:
            GrammarError: a limit was met.
        """
        with _no_panic():
            tokens = self.matcher.compute_ff_tokens()
        self.check()
        return tokens

    def fill(self, masks: Mask, row: int) -> None:
        """Writes the mask of the next token into one row of `masks`; `Masks` does the same for many.

        Raises:
            GrammarError: a limit was met.
        """
        words = masks[row]
        with _no_panic():
            self.matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        self.check()

    def check(self) -> None:
        """Raises GrammarError where a limit was met."""
        if self.failed:
            raise GrammarError(self.matcher.stop_reason())  # NOTE: get_error() holds the caller's text


class Compiler:
    """Makes grammars for one tokenizer.

    Args:
        tokenizer: as the tokenizers library writes it (tokenizer.json).
        vocab_size: V, the columns of the logits.
        eos_ids: tokens that may end a text that is whole.
    """

    def __init__(self, tokenizer: str, vocab_size: int, eos_ids: Collection[int]) -> None:
        self._tokenizer = LLTokenizer(tokenizer, n_vocab=vocab_size, eos_token=sorted(eos_ids))
        self._limits = LLParserLimits(
            initial_lexer_fuel=500_000,
            step_lexer_fuel=100_000,
            step_max_items=20_000,
            max_lexer_states=50_000,
            max_grammar_size=100_000,
        )
        self._made: OrderedDict[str, LLMatcher] = OrderedDict()

    def compile(self, schema: str) -> Grammar:
        """The grammar of a JSON Schema, at its beginning. For one thread at a time.

        Raises:
            GrammarError: the schema has no instance, or asks for what the library does not know, or is too large.
        """
        matcher = self._made.get(schema)
        if matcher is None:
            matcher = self._make(schema)
            self._made[schema] = matcher
            while len(self._made) > _REMEMBERED or sum(map(len, self._made)) > _REMEMBERED_CHARS:
                self._made.popitem(last=False)
        else:
            self._made.move_to_end(schema)
        return Grammar(matcher.deep_copy())

    def _make(self, schema: str) -> LLMatcher:
        with _no_panic():
            try:
                grammar = LLMatcher.grammar_from_json_schema(schema, overrides=_OPTIONS)
            except ValueError as error:
                raise GrammarError(str(error)) from None
            matcher = LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
            if matcher.is_error():
                raise GrammarError(matcher.get_error().partition("<state>")[0])
            ahead = matcher.deep_copy()  # many limits are met with the first mask
            ahead.consume_tokens(ahead.compute_ff_tokens())
            ahead.compute_bitmask()
        if ahead.is_error():
            raise GrammarError(f"it is too large to be followed ({ahead.stop_reason()})")
        return matcher


class Masks:
    """Computes the masks of a step beside the model."""

    def __init__(self) -> None:
        self._executor = LLExecutor()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="masks")

    def start(self, masks: Mask, grammars: Sequence[tuple[int, Grammar]]) -> "Future[Mask]":
        """Begins to write the masks of `grammars` into their rows of `masks`.

        A grammar that meets a limit gets a mask for the end of its sequence, and is in error: see `Grammar.check`.
        """
        return self._thread.submit(self._fill, masks, [(grammar.matcher, row) for row, grammar in grammars])

    def _fill(self, masks: Mask, matchers: list[tuple[LLMatcher, int]]) -> Mask:
        if matchers:
            with _no_panic():
                self._executor.unsafe_compute_mask_ptr(matchers, masks.ctypes.data, masks.strides[0], len(masks))
        return masks


@contextmanager
def _no_panic() -> Iterator[None]:
    """NOTE: a panic of the library comes as a BaseException, which no thread here would outlive."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            raise GrammarError("the grammar library failed") from None
        raise


def open_masks(num_rows: int, vocab_size: int) -> Mask:
    """[R, ceil(V / 32)] masks that allow everything."""
    return np.full((num_rows, -(-vocab_size // 32)), -1, dtype=np.int32)


def forbid(masks: Mask, row: int, token_ids: Collection[int]) -> None:
    """Takes `token_ids` out of one row."""
    words = masks[row].view(np.uint32)
    for token in token_ids:
        words[token // 32] &= np.uint32(0xFFFFFFFF ^ 1 << token % 32)


def allow(masks: Mask, row: int, token_ids: Collection[int]) -> None:
    """Puts `token_ids` into one row."""
    words = masks[row].view(np.uint32)
    for token in token_ids:
        words[token // 32] |= np.uint32(1 << token % 32)
