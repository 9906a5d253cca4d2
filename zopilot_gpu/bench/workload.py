"""What is sent, how, and when it is due. Knows words, ranges and seeds; refuses the network and the clock.

Everything is a function of the seed: the same plan sends the same bodies in the same order, at the same times in an open loop.

    | shared prefix, or as many words of its own | own words | instruction |      one prompt

Try it: `python -c "from zopilot_gpu.bench.workload import *; print(next(bodies(Mix(Span(5, 9), Span(8, 8)), 1)))"`.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

Body = dict[str, Any]
_INSTRUCTION = "Tell a long story with these words."
_TEXT = """
account address amount annual answer apple april autumn balance bank basket bicycle blue board bottle bread bridge budget
building cable camera candle carpet castle chair city clock coffee contract copper corner country currency daughter delivery
desert dinner discount doctor document door evening factory farmer field finger flower forest friday garden glass green
hammer harbour honey hotel husband index insurance invoice island january journey kettle kitchen ladder language leather
letter library machine market meadow mirror monday morning mountain museum needle number ocean office orange order paper
parcel payment pencil picture pocket quarter railway receipt river salary saturday school season shipment silver station
street summer supplier table teacher ticket total umbrella valley vendor village voucher wagon water weather window winter
yellow
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True)
class Span:
    """A range of whole numbers, both ends in it; drawn from evenly. Written `LOW:HIGH`, or one number."""

    low: int
    high: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The range that `text` writes.

        Raises:
            ValueError: it writes none, or one that is empty or begins below 1.
        """
        low, _, high = text.partition(":")
        span = cls(int(low), int(high or low))
        if not 1 <= span.low <= span.high:
            raise ValueError(f"{text} is no range of whole numbers from 1 on")
        return span

    def __str__(self) -> str:
        return f"{self.low}:{self.high}"

    def draw(self, rng: random.Random) -> int:
        """A number in the range."""
        return rng.randint(self.low, self.high)


@dataclass(frozen=True, slots=True)
class Mix:
    """What the requests are like.

    `shared_share` of them begin with the same `shared_prefix_words` words; the others with as many of their own, so that both
    kinds are equally long.
    """

    prompt_words: Span
    max_tokens: Span
    shared_prefix_words: int = 0
    shared_share: float = 1.0
    temperature: float = 0.0
    json_schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send and how.

    Args:
        mix: what the requests are like.
        num_callers: of a closed loop; ignored where there is a rate.
        rate: requests a second of an open loop.
        num_requests: how many are measured, at most; None is no limit.
        duration_s: no request is begun (closed loop) or due (open loop) later than this.
        num_warm_up: requests before, in no figure; like the measured ones, but none is the same.
        seed: of everything that is drawn.
    """

    mix: Mix
    num_callers: int
    rate: float | None
    num_requests: int | None
    duration_s: float | None
    num_warm_up: int
    seed: int


def bodies(mix: Mix, seed: int, part: str = "measured") -> Iterator[Body]:
    """Bodies of `POST /prompt` without end. Another `part` has the same shared prefix and other requests."""
    shared = _words(random.Random(f"{seed} shared prefix"), mix.shared_prefix_words)
    rng = random.Random(f"{seed} {part}")
    while True:
        prefix = shared if rng.random() < mix.shared_share else _words(rng, mix.shared_prefix_words)
        words = prefix + _words(rng, mix.prompt_words.draw(rng))
        body: Body = {
            "prompt": f"{' '.join(words)}\n\n{_INSTRUCTION}",
            "max_tokens": mix.max_tokens.draw(rng),
            "temperature": mix.temperature,
            "seed": rng.getrandbits(32),
            "stream": True,
        }
        if mix.json_schema is not None:
            body["json_schema"] = mix.json_schema
        yield body


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """When requests are due, in seconds from the start, without end: a Poisson process of `rate` a second."""
    rng = random.Random(f"{seed} arrivals")
    due_s = 0.0
    while True:
        due_s += rng.expovariate(rate)
        yield due_s


def _words(rng: random.Random, count: int) -> list[str]:
    return [rng.choice(_WORDS) for _ in range(count)]
