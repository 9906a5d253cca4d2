"""One sequence of tokens and how far it has come. Plain state; the scheduler and the engine change it, nobody else.

Lengths are named by where the tokens already are:

    | prompt_ids ............ | output_ids ..... | pending |     num_tokens
    | in the KV pool ... |                                       num_computed
                         | this step |                           what the scheduler gives it now

*Pending* tokens are drawn and on the device; the host has not read them yet. It counts on them and knows no value.
"""

from dataclasses import dataclass, field

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
    num_pending: int = 0  # drawn in steps that are launched and not read
    num_cached: int = 0  # prompt tokens that the prefix cache had when the sequence was first admitted
    num_preemptions: int = 0
    num_sealed: int = 0  # of its blocks
    turn: int = 0  # the scheduler's: grows with every step that this is in
    ended: bool = False  # the scheduler has removed it: what is still drawn for it is nobody's
    seat: int = -1  # its row of what the engine keeps of running sequences; -1 while it waits
    num_tabled: int = 0  # blocks that its seat's row of block tables has
    num_noted: int = 0  # tokens that its seat has noted for the repetition penalty
    _additions: dict[int, float] | None = None
    _num_added: int = 0

    def additions(self) -> dict[int, float]:
        """What its bias and the penalties for its output add to the logits, by token. Kept and only added to."""
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
    def num_known(self) -> int:
        """Tokens whose values the host has: prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens that there are: known and pending."""
        return self.num_known + self.num_pending

    @property
    def num_missing(self) -> int:
        """Tokens that have to be computed before another one is drawn; none once all that were asked for are drawn."""
        return 0 if len(self.output_ids) + self.num_pending >= self.max_tokens else self.num_tokens - self.num_computed

    @property
    def is_too_short(self) -> bool:
        """Whether its end must not be drawn yet."""
        return len(self.output_ids) + self.num_pending < self.sampling.min_tokens

    @property
    def waits_for_its_tokens(self) -> bool:
        """Whether the host has to read its last token before the next can be drawn: a grammar, or penalties by count."""
        return bool(self.grammar or self.sampling.frequency_penalty or self.sampling.presence_penalty)

    @property
    def max_total_tokens(self) -> int:
        """Most tokens that it can ever have."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def token_ids(self) -> list[int]:
        """Those that are known in one list, made anew."""
        return self.prompt_ids + self.output_ids

    def token_ids_between(self, begin: int, end: int) -> list[int]:
        """The tokens from `begin` to below `end`, -1 for one that is pending."""
        size = len(self.prompt_ids)
        if end <= size:
            return self.prompt_ids[begin:end]
        found = self.prompt_ids[begin:] + self.output_ids[max(0, begin - size) : end - size]
        return found + [-1] * (end - begin - len(found))
