"""One sequence of tokens and how far it has come. Plain state; the scheduler and the engine change it, nobody else.

Lengths are named by where the tokens already are:

    | prompt_ids ............ | output_ids ..... |     num_tokens: all that are known
    | in the KV pool ... |                           num_computed
                         | this step |               what the scheduler gives it now
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zopilot_gpu.engine.blocks import Chunk
from zopilot_gpu.engine.grammar import Grammar
from zopilot_gpu.events import GREEDY, Sampling


@dataclass(slots=True, eq=False)
class Sequence:
    """A request in the engine.

    Args:
        request_id: whose it is.
        prompt_ids: at least one token.
        max_tokens: most tokens to generate, at least one.
        sampling: how its tokens are drawn.
        seed: of its draws; two sequences with the same seed, prompt and parameters say the same.
        stop_ids: tokens that end it; the one that did is its last output.
        salt: whose it is: keeps prefix-cache entries of different owners apart, and shares of a step.
        deadline_s: a reading of `time.monotonic()`.
        grammar: what its output has to keep; it moves on with the output.
    """

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    salt: bytes = b""
    deadline_s: float = float("inf")
    grammar: Grammar | None = None
    output_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)  # of its full blocks, as far as they were needed
    num_computed: int = 0
    num_cached: int = 0  # prompt tokens that the prefix cache had when the sequence was first admitted
    num_preemptions: int = 0
    turn: int = 0  # the scheduler's: grows with every step that this is in
    _seen: NDArray[np.bool_] | None = None
    _num_seen: int = 0
    _additions: dict[int, float] | None = None
    _num_added: int = 0

    def seen(self, vocab_size: int) -> NDArray[np.bool_]:
        """[V]: which tokens it has by now. Kept and only added to, since a penalty asks for it at every step."""
        if self._seen is None:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen[self.prompt_ids] = True
        self._seen[self.output_ids[self._num_seen :]] = True
        self._num_seen = len(self.output_ids)
        return self._seen

    def additions(self) -> dict[int, float]:
        """What its bias and the penalties for its output add to the logits, by token. Kept and only added to, as `seen` is."""
        if self._additions is None:
            self._additions = dict(self.sampling.logit_bias)
        frequency, presence = self.sampling.frequency_penalty, self.sampling.presence_penalty
        if frequency or presence:
            first = set(self.output_ids[: self._num_added])
            for token in self.output_ids[self._num_added :]:
                self._additions[token] = self._additions.get(token, 0.0) - frequency - (0 if token in first else presence)
                first.add(token)
            self._num_added = len(self.output_ids)
        return self._additions

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def is_too_short(self) -> bool:
        """Whether its end must not be drawn yet."""
        return len(self.output_ids) < self.sampling.min_tokens

    @property
    def max_total_tokens(self) -> int:
        """Most tokens that it can ever have."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output in one list, made anew."""
        return self.prompt_ids + self.output_ids
