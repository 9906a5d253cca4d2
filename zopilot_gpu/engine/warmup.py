"""What is done once on a GPU before anything is served: every kernel compiled, and the memory of a step measured.

Knows which sizes of steps there are; writes to the padding block alone, so it runs on any pool, even one without a block.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from zopilot_gpu.engine import graphs, sampler
from zopilot_gpu.engine.draws import choose_kernel, load_kernel
from zopilot_gpu.engine.inputs import padding_slots
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE, PoolSize, make_pools
from zopilot_gpu.engine.seats import Seated
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.mixtral import Mixtral

_RUN = 16  # tokens of a prompt that attention takes as one; see `zopilot_gpu.model.kernels.attention`
# Triton compiles anew for a count that is 1, that is a multiple of 16, and for all others.
_COUNTS = (1, 2, 16)
_POWERS = (2048,)  # tokens of steps that are not filled up, whose routing is compiled for the next one
_GRAPH_BYTES = 6 * 1024**2  # what the driver keeps of a graph of a few hundred kernels: 5.2 and 5.8 MiB on an H100


@dataclass(frozen=True, slots=True)
class Kind:
    """A step to warm up: its tokens, its sequences, of which all but the last have one token, and the width of its tables."""

    num_tokens: int
    num_sequences: int
    width: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Bytes that a step needs beside weights and pools, any step and the largest of decodes, and how many graphs come."""

    step_bytes: int
    decode_bytes: int
    num_graphs: int

    @property
    def reserved_bytes(self) -> int:
        """What has to stay free for steps and for graphs, whose memory is apart and as large as the largest one's."""
        return self.step_bytes + self.decode_bytes * 2 + self.num_graphs * _GRAPH_BYTES


def warm_up(model: Mixtral, kv_dtype: torch.dtype, *, max_rows: int, max_step_tokens: int, max_blocks: int) -> Measured:
    """Runs a step of every kind once.

    Args:
        model: on a GPU; on a CPU nothing is measured.
        kv_dtype: of the pools.
        max_rows: most sequences at once.
        max_step_tokens: most tokens of a step.
        max_blocks: most blocks of a sequence.
    """
    device = model.device
    pools = make_pools(model.config, PoolSize(0, "padding alone"), kv_dtype, device)
    widest = graphs.table_widths(max_blocks)[-1]
    kernel = load_kernel() if choose_kernel(model.config.vocab_size, device)[0] else None

    def run(kind: Kind) -> None:
        logits = model.forward(_padding(kind, max_rows, model.config.max_position, device), pools)
        if len(logits) in (1, max_rows):
            _draw_from(logits, kernel)

    for kind in kinds(max_rows, max_step_tokens, max_blocks):
        run(kind)
    num_graphs = len(graphs.row_counts(max_rows)) * len(graphs.table_widths(max_blocks))
    return Measured(
        step_bytes=_most_bytes(lambda: run(Kind(max_step_tokens, 1, widest)), device),
        decode_bytes=_most_bytes(lambda: run(Kind(max_rows, max_rows, widest)), device),
        num_graphs=num_graphs if model.parts.can_be_captured else 0,
    )


def kinds(max_rows: int, max_step_tokens: int, max_blocks: int) -> Iterator[Kind]:
    """Steps after which no other meets a kernel that is not compiled."""
    widths = graphs.table_widths(max_blocks)
    sizes = {count for count in (*graphs.TOKENS, *_POWERS) if count <= max_step_tokens} | {max_rows}
    # Attention splits a context by the width of its table and by how many decode: beside each size an odd number of these.
    decodes = {Kind(size, size, widths[0]) for size in sizes if size <= max_rows}
    decodes |= {Kind(size, size - 2, widths[0]) for size in sizes if 8 <= size <= max_rows}
    for width in widths:
        yield from (replace(kind, width=width) for kind in decodes)
        yield from (Kind(count * _RUN, 1, width) for count in _COUNTS if count * _RUN <= max_step_tokens)
    yield from (Kind(size, min(size, max_rows), widths[0]) for size in sizes)
    yield Kind(max_step_tokens, 1, widths[0])


def _most_bytes(run: Callable[[], None], device: torch.device) -> int:
    if device.type != "cuda":
        run()
        return 0
    torch.cuda.synchronize(device)
    _empty_cache()
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    most = torch.cuda.max_memory_allocated(device) - before
    _empty_cache()  # the pool's size is from what is then free
    return most


def _empty_cache() -> None:
    with graphs.no_capture:  # of another engine, on another GPU
        torch.cuda.empty_cache()


def _padding(kind: Kind, max_rows: int, max_position: int, device: torch.device) -> Batch:
    """A step of nobody's on pools of the padding block alone."""
    num_tokens, num_sequences, width = kind.num_tokens, kind.num_sequences, kind.width
    first = num_sequences - 1
    lengths = [1] * first + [num_tokens - first]
    starts = [*range(num_sequences), num_tokens]
    # NOTE: the last sequence may be longer than `width` blocks or than the model's context: nothing is read beyond either.
    positions = [0] * first + [min(place, max_position - 1) for place in range(num_tokens - first)]
    width = max(width, -(-lengths[-1] // BLOCK_SIZE))
    rows = [start - 1 for start in starts[1:]]
    rows += rows[-1:] * (max_rows - len(rows) if num_tokens > max_rows else 0)  # the most logits beside the most tokens

    def put(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, device=device)

    return Batch(
        put([0] * num_tokens),
        put(positions),
        torch.from_numpy(padding_slots(0, num_tokens)).to(device),
        starts,
        lengths,
        torch.zeros(num_sequences, width, dtype=torch.int32, device=device),
        put(rows),
    )


@torch.inference_mode()
def _draw_from(logits: torch.Tensor, kernel: sampler.Kernel | None) -> None:
    """In every way there is, on all rows."""
    count, vocab_size = logits.shape
    device = logits.device
    everyone, zeros = torch.arange(count, device=device), torch.zeros(count, vocab_size, dtype=torch.bool, device=device)
    one = torch.zeros(2, 1, dtype=torch.int64, device=device), torch.zeros(1, device=device)
    how = torch.ones(sampler.NUM_PARAMETERS, count, device=device)
    masks = torch.full((count, -(-vocab_size // 32)), -1, dtype=torch.int32, device=device)
    if kernel:
        for allowed in (None, masks):
            kernel(logits, how, allowed, Seated(everyone, zeros, everyone.clone()))
    logits = sampler.mask(logits, masks)
    tokens = sampler.sample(logits, sampler.Rows(how, any_few=True, many=everyone, seen=zeros, added=one), kernel)
    sampler.score(logits, tokens, 1)
