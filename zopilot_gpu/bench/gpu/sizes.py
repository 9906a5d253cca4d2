"""How large a run is: the model's sizes, and the ladders of what is measured. Plain values."""

from dataclasses import dataclass, replace

from zopilot_gpu.model.config import MixtralConfig

MIXTRAL = MixtralConfig(32_000, 4096, 14_336, 32, 32, 8, 128, 8, 2, 1e6, 1e-5, 32_768, tie_embeddings=False)
DEMO = MixtralConfig(512, 128, 128, 2, 4, 2, 32, 4, 2, 1e6, 1e-5, 1024, tie_embeddings=False)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a run measures."""

    name: str
    config: MixtralConfig
    tokens: tuple[int, ...]  # M of a layer of experts
    nested_tokens: tuple[int, ...]  # the same with double quantisation
    rows: tuple[int, ...]  # of one matrix, norms, head and sampling
    contexts: tuple[tuple[int, int], ...]  # attention of a decode: sequences, positions of each
    chunks: tuple[tuple[int, int], ...]  # attention of a prefill: tokens of the chunk, positions with them
    batches: tuple[int, ...]  # decode through the engine
    context: int
    steps: int  # decode steps timed
    profiled: tuple[int, ...]  # batches whose step is split into its parts
    prompts: tuple[int, ...]  # prefill through the engine
    packed: str  # the made-up model of the store that is loaded
    baseline_steps: int
    copies: int  # of weights, so that no cache holds them
    repeats: int
    copy_bytes: int
    matmul: int
    seed: int | None = None  # of all inputs; None for others in each run

    @property
    def kv_tokens(self) -> int:
        """Positions of the pool that all of it fits in."""
        return max(*self.prompts, max(self.batches) * (self.context + self.steps + 64)) + 256


FULL = Sizes(
    name="full",
    config=MIXTRAL,
    tokens=(1, 4, 8, 16, 32, 64, 128, 512, 1024, 4096),
    nested_tokens=(1, 8, 32, 128),
    rows=(1, 8, 32, 128, 512),
    contexts=((1, 512), (32, 512), (128, 512), (1, 16_384)),
    chunks=((512, 512), (512, 4096), (4096, 4096)),
    batches=(1, 8, 32, 64, 128),
    context=512,
    steps=40,
    profiled=(1, 32),
    prompts=(512, 4096, 16_384),
    packed="mixtral-8x7b-slice",
    baseline_steps=4,
    copies=3,
    repeats=20,
    copy_bytes=4 << 30,
    matmul=8192,
)
QUICK = replace(
    FULL,
    name="quick",
    tokens=(1, 8, 32, 128, 1024),
    nested_tokens=(1, 32),
    rows=(1, 32, 128),
    contexts=((1, 512), (32, 512)),
    chunks=((512, 512), (4096, 4096)),
    batches=(1, 8, 32, 64),
    steps=20,
    prompts=(512, 4096),
    baseline_steps=2,
    repeats=10,
)
TINY = Sizes(
    name="demo",
    config=DEMO,
    tokens=(1, 5),
    nested_tokens=(1,),
    rows=(1, 3, 20),
    contexts=((2, 40),),
    chunks=((20, 40),),
    batches=(1, 2),
    context=32,
    steps=3,
    profiled=(1,),
    prompts=(32, 64),
    packed="demo-size",
    baseline_steps=1,
    copies=1,
    repeats=1,
    copy_bytes=1 << 22,
    matmul=256,
    seed=0,  # outputs so few that their rounding errors do not average out: one draw in a thousand would be above the bound
)
