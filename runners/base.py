"""What the API needs of a runner, and what a runner needs of a backend. Knows jobs and events; refuses HTTP and tensors."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from zopilot_gpu.errors import ServiceError
from zopilot_gpu.events import Event, Job

Progress = Callable[[str, float], None]  # told a word and a share, 0 to 1, as loading goes on
Phase = Literal["loading", "ready", "failed", "closed"]


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What an engine has done since it was made (`num_...`), and the tokens in its KV pool as of now."""

    kv_tokens_total: int
    kv_tokens_owned: int
    kv_tokens_cached: int
    num_steps: int
    num_prefix_hits: int
    num_preemptions: int
    num_aborts: int
    num_failures: int


@dataclass(frozen=True, slots=True)
class RunnerState:
    """A snapshot of a runner, cheap to take.

    `step` says in a word what loading is doing; `progress` is its share done, 0 to 1. `runner` is the backend and `why` the
    reason it was chosen; its `num_engines` engines run `max_running` requests at once. `source` is what it was loaded from,
    `packed` or `source`, and `source_why` the reason. `problem` is the operator's sentence when `phase` is `failed`. Memory is
    that of the devices, in bytes; 0 where they have none of their own.
    """

    phase: Phase
    step: str
    progress: float
    model: str
    device: str
    num_running: int
    num_waiting: int
    max_waiting: int
    runner: str | None = None
    why: str | None = None
    source: str | None = None
    source_why: str | None = None
    load_s: float | None = None
    problem: str | None = None
    gpu_name: str | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    engine: EngineStats | None = None
    max_running: int = 1
    num_engines: int = 1


@dataclass(frozen=True, slots=True)
class Pulse:
    """Whether a runner lives.

    `fatal` is the operator's sentence once nothing in this process can mend it; `stalled_s` are the seconds since its engine
    last showed that it moves.
    """

    fatal: str | None = None
    stalled_s: float = 0.0


class Runner(Protocol):
    """Turns jobs into streams of events.

    A runner starts loading when it is made, in the background, and answers `state` at once.
    """

    def state(self) -> RunnerState:
        """How the runner is. Never blocks."""
        ...

    def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        """The events of a job: any number of `Text`, then one `Done`.

        Closing or cancelling the iterator stops the work within a token; its slot is free once that token is done.

        Raises:
            ServiceError: before the first event for a job that is refused, later for one that fails.
        """
        ...

    async def close(self) -> None:
        """Ends all work and gives the device's memory back. Jobs in flight fail as `ShuttingDown`."""
        ...


@dataclass(frozen=True, slots=True)
class BackendState:
    """A snapshot of a backend; see `RunnerState`. `problem` is set once it can't answer any more."""

    num_running: int
    num_waiting: int
    problem: str | None = None
    gpu_name: str | None = None
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    engine: EngineStats | None = None
    max_running: int = 1
    num_engines: int = 1


class Backend(Protocol):
    """A loaded model and its way of running jobs. Lives on one event loop.

    Attributes:
        window: tokens of prompt and answer together.
        vocab_size: its token ids are below this.
    """

    window: int
    vocab_size: int

    def state(self) -> BackendState:
        """How it is. Never blocks and never calls the device."""
        ...

    def pulse(self) -> Pulse:
        """Whether it lives. For any thread; takes no lock."""
        ...

    def abandon(self, error: ServiceError) -> None:
        """Ends all that is in flight with `error`, without the thread that should: it may hang."""
        ...

    def refuse_when_full(self, owner: bytes) -> None:
        """Raises `Overloaded` where `generate` would for a job of `owner`."""
        ...

    def generate(self, job: Job, ids: list[int], max_tokens: int) -> AsyncGenerator[Event, None]:
        """The events of a job whose prompt is `ids`; see `Runner.generate`."""
        ...

    async def close(self) -> None:
        """See `Runner.close`."""
        ...
