"""One sequence of tokens and how far it has come. Plain state; the scheduler and the engine change it, nobody else.

Lengths are named by where the tokens already are:

    | prompt_ids ............ | output_ids ..... |     num_tokens: all that are known
    | in the KV pool ... |                           num_computed
                         | this step |               what the scheduler gives it now
"""

from dataclasses import dataclass, field

from zopilot_gpu.engine.blocks import Chunk
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
        salt: keeps prefix-cache entries of different owners apart.
        deadline_s: a reading of `time.monotonic()`.
    """

    request_id: str
    prompt_ids: list[int]
    max_tokens: int
    sampling: Sampling = GREEDY
    seed: int = 0
    stop_ids: frozenset[int] = frozenset()
    salt: bytes = b""
    deadline_s: float = float("inf")
    output_ids: list[int] = field(default_factory=list)
    block_ids: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)  # of its full blocks, as far as they were needed
    num_computed: int = 0
    num_cached: int = 0  # prompt tokens that the prefix cache had when the sequence was first admitted
    num_preemptions: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens known so far: prompt and output."""
        return len(self.prompt_ids) + len(self.output_ids)

    @property
    def max_total_tokens(self) -> int:
        """Most tokens that it can ever have."""
        return len(self.prompt_ids) + self.max_tokens

    @property
    def token_ids(self) -> list[int]:
        """Prompt and output in one list, made anew."""
        return self.prompt_ids + self.output_ids
