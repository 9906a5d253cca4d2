"""Whatever step comes, its kernels were compiled before: the kinds that are warmed up have all that a step is compiled for."""

import random
from collections.abc import Iterator

import pytest

from zopilot_gpu.engine import graphs
from zopilot_gpu.engine.warmup import kinds
from zopilot_gpu.model.kernels.routing import compiled_for as routed_for

MAX_ROWS = 128
Class = tuple[object, ...]


def special(count: int) -> int:
    """Triton compiles a kernel for an argument that is 1, for multiples of 16, and for others."""
    return 1 if count == 1 else 16 if count % 16 == 0 else 0


def compiled_for(num_tokens: int, lengths: list[int], width: int) -> Iterator[Class]:
    """What the kernels of a step of sequences of these lengths are compiled for."""
    yield "experts", num_tokens if num_tokens <= graphs.TOKENS[-1] else "many"
    yield "routing", *routed_for(num_tokens, 8, 2, 64).items()
    decodes = lengths.count(1)
    chunks = sum(-(-length // 16) for length in lengths if length > 1)
    if decodes:
        splits = min(32, max(1, 5 * 132 // (8 * decodes)))  # of a card with 132 multiprocessors
        yield "decodes", special(decodes), width, splits.bit_length()
    if chunks:
        yield "chunks", special(chunks), width


@pytest.mark.parametrize("max_blocks", [8, 64, 65, 300, 2048])
@pytest.mark.parametrize("max_step_tokens", [1024, 2048, 3000])
def test_no_step_meets_a_kernel_that_was_not_compiled(max_blocks: int, max_step_tokens: int) -> None:
    warm = set[Class]()
    for kind in kinds(MAX_ROWS, max_step_tokens, max_blocks):
        first = kind.num_sequences - 1
        warm |= set(compiled_for(kind.num_tokens, [1] * first + [kind.num_tokens - first], kind.width))
    widths = graphs.table_widths(max_blocks)
    assert widths[-1] >= max_blocks
    dice = random.Random(max_blocks)
    for _ in range(2000):
        lengths = [1] * dice.choice([0, 1, 5, 16, 100]) + [
            dice.randint(2, max_step_tokens // 3) for _ in range(dice.randint(0, 3))
        ]
        if not lengths or len(lengths) > MAX_ROWS or sum(lengths) > max_step_tokens:
            continue
        num_tokens = graphs.padded(sum(lengths))
        filled = lengths + [1] * (num_tokens - sum(lengths))
        assert set(compiled_for(num_tokens, filled, dice.choice(widths))) <= warm, lengths
    for rows in range(1, MAX_ROWS + 1):
        form = min(size for size in (*graphs.TOKENS, MAX_ROWS) if size >= rows)
        assert set(compiled_for(form, [1] * form, widths[-1])) <= warm


def test_sizes_are_few_and_none_is_much_too_large() -> None:
    assert {graphs.padded(count) for count in range(1, 1025)} == set(graphs.TOKENS) - {0}
    assert [graphs.padded(count) for count in (1, 3, 17, 129, 513, 1025, 2048)] == [1, 4, 24, 192, 768, 1025, 2048]
    assert all(graphs.padded(count) <= count * 1.6 + 2 for count in range(1, 3000))
