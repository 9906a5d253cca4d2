"""The tokens of one answer as text: what may be sent by now, and whether it has ended."""

from collections.abc import Collection, Sequence

from zopilot_gpu.events import Done, FinishReason, Logprob, Score, TokenLogprob, Usage
from zopilot_gpu.text.detokenize import Detokenizer, StopStrings
from zopilot_gpu.text.tokenizer import Tokenizer


class Answer:
    """Takes token ids as they come, gives out text that is final.

    Args:
        tokenizer: of the model that answers.
        eos_ids: tokens that end the answer and are no part of its text.
        stop: strings that do the same.
    """

    def __init__(self, tokenizer: Tokenizer, eos_ids: Collection[int], stop: Sequence[str]) -> None:
        self._detokenizer = Detokenizer(tokenizer.decode)
        self._stops = StopStrings(stop)
        self._tokenizer = tokenizer
        self._scores: list[Score] = []
        self._special_ids = tokenizer.special_ids
        self._eos_ids = frozenset(eos_ids)
        self._num_tokens = 0
        self._ended = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string or an end-of-sequence token has come: more tokens say nothing."""
        return self._ended or self._stops.hit

    def push(self, token_ids: Sequence[int], scores: Sequence[Score] | None = None) -> str:
        """The text that is final with these tokens, often none. `scores`, if any, are theirs; see `take_logprobs`."""
        text = ""
        for at, token in enumerate(token_ids):
            if scores and not (self.stopped or token in self._eos_ids or token in self._special_ids):
                self._scores.append(scores[at])
            self._num_tokens += 1
            if token in self._eos_ids:
                self._ended = True
            elif token not in self._special_ids:
                text += self._stops.push(self._detokenizer.push(token))
        return text

    def take_logprobs(self) -> tuple[TokenLogprob, ...]:
        """Those of the tokens pushed since the last call, but for tokens that are no text."""
        taken, self._scores = self._scores, []
        name = self._tokenizer.bytes_of
        return tuple(
            TokenLogprob(name(one.token_id), one.logprob, tuple(Logprob(name(token), value) for token, value in one.top))
            for one in taken
        )

    def flush(self) -> str:
        """What was held back, once no more tokens come."""
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()

    def done(self, num_prompt_tokens: int, num_cached_tokens: int = 0, *, whole: bool = False) -> Done:
        """The last event of the answer; `whole` where something else than its text says that it is complete."""
        reason: FinishReason = "stop" if self.stopped or whole else "length"
        return Done(reason, Usage(num_prompt_tokens, num_cached_tokens, self._num_tokens))
