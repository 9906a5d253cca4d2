"""Weights, inputs and batches without a source, made on the device; the same for the same seed. Nothing is zero.

Absmax has either sign, for the codes' mean is not zero, and embeddings outweigh what layers add: else all tokens would drift to
the same experts, and a step would read fewer weights than it does of a model that was trained.
"""

import zlib
from collections.abc import Callable
from itertools import accumulate

import torch

from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.model.batch import Batch
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.nf4 import BLOCK, GROUP, NF4, Nested
from zopilot_gpu.model.weights import shapes

Span = tuple[int, int]  # of a sequence, the positions of its tokens in a step: from, to


def generator(device: torch.device, *salt: object) -> torch.Generator:
    """Of numbers that look random and are the same for the same salt."""
    return torch.Generator(device).manual_seed(zlib.crc32(repr(salt).encode()))


def weight(config_shape: tuple[int, ...], device: torch.device, *salt: object, nested: bool = False) -> NF4:
    """Random NF4 of this shape [..., rows, columns], with the spread of a network of this width."""
    random = generator(device, config_shape, salt)
    *leading, rows, columns = config_shape
    size, scale = rows * columns, 1.7 * columns**-0.5
    packed = torch.randint(0, 256, (*leading, size // 2), generator=random, device=device, dtype=torch.uint8)
    blocks = (*leading, size // BLOCK)
    if nested:
        codes = torch.randint(0, 256, blocks, generator=random, device=device, dtype=torch.uint8)
        groups = (*leading, size // BLOCK // GROUP)
        scales = (torch.rand(groups, generator=random, device=device) + 1.5) * scale
        return NF4(packed, Nested(codes, scales, torch.zeros(groups, device=device)), config_shape)
    sign = torch.randint(0, 2, blocks, generator=random, device=device) * 2 - 1
    absmax = ((torch.rand(blocks, generator=random, device=device) + 0.5) * scale * sign).bfloat16()
    return NF4(packed, absmax, config_shape)


def packed_tensors(config: MixtralConfig, device: torch.device, *, nested: bool) -> Callable[[str], torch.Tensor]:
    """All tensors of a model by their packed names (see `model.weights`), made when they are asked for."""
    table = shapes(config)
    made: dict[str, NF4] = {}  # the weight whose parts are being asked for

    def part_of(base: str, part: str) -> torch.Tensor:
        if base not in made:
            made.clear()
            made[base] = weight(table[base], device, base, nested=nested)
        absmax = made[base].absmax
        parts: dict[str, torch.Tensor] = {"packed": made[base].packed}
        if isinstance(absmax, Nested):
            parts |= {"absmax_codes": absmax.codes, "absmax_scales": absmax.scales, "absmax_offsets": absmax.offsets}
        else:
            parts["absmax"] = absmax
        return parts[part]

    def get(name: str) -> torch.Tensor:
        if name not in table:
            base, _, part = name.rpartition(".")
            return part_of(base, part)
        shape = table[name]
        values = torch.randn(shape, generator=generator(device, name), device=device, dtype=torch.bfloat16)
        if name == "embedding":
            return values * 16
        return values * shape[-1] ** -0.5 if len(shape) > 1 else values.abs()

    return get


def normal(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Fresh normal values; other ones at each call."""
    return torch.randn(shape, device=device, dtype=dtype)


def batch(spans: list[Span], config: MixtralConfig, device: torch.device, room: int) -> Batch:
    """One step of these sequences, each with `room` blocks of its own; logits of each one's last token."""
    positions = [place for begin, end in spans for place in range(begin, end)]
    slots = [index * room * BLOCK_SIZE + place for index, (begin, end) in enumerate(spans) for place in range(begin, end)]
    starts = [0, *accumulate(end - begin for begin, end in spans)]
    tables = [[index * room + block for block in range(room)] for index in range(len(spans))]
    random = generator(torch.device("cpu"), "tokens", spans)
    ids = torch.randint(0, config.vocab_size, (len(positions),), generator=random)

    def put(values: list[int] | list[list[int]]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    last = put([start - 1 for start in starts[1:]])
    return Batch(ids.to(device), put(positions), put(slots), starts, [end for _, end in spans], put(tables), last)


def pools(config: MixtralConfig, num_blocks: int, like: torch.Tensor, fill: float) -> list[torch.Tensor]:
    """One a layer, filled with one value; NaN shows whoever reads what nobody wrote."""
    shape = (2, num_blocks, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
    return [torch.full(shape, fill, dtype=like.dtype, device=like.device) for _ in range(config.num_layers)]
