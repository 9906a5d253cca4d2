"""What the packed form of a Mixtral is made of: its files, their tensors, and the tensors of a checkpoint behind each.

Knows names and sizes; refuses tensors. Letters as in `zopilot_gpu.model`. Per layer `layers.{i}.`, all flat in row order:

    attention_norm [d] · experts_norm [d] · router [E, d]                        bf16
    qkv · output · w13 · w2, each as
        X.packed                    uint8: two codes a byte, first in the high half; [E, n / 2] where there are experts
        X.absmax                    float32 or bf16, one for each 64 values; or, double quantised,
        X.absmax_codes · _scales · _offsets    uint8 one a block · float32 one for each 256 blocks: table[code] * scale + offset

and `embedding`, `norm`, `head` (absent when tied). A file for each layer, one for the rest. An absmax can be double quantised
where each weight has a multiple of 256 blocks; where not, it is float32.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store import files

BLOCK = 64
GROUP = 256
Absmax = Literal["double", "bfloat16", "float32"]
Tensor = tuple[str, str, tuple[int, ...]]  # name, type as safetensors names it, shape


@dataclass(frozen=True, slots=True)
class Weight:
    """A quantised weight of a checkpoint."""

    name: str
    shape: tuple[int, int]

    @property
    def num_blocks(self) -> int:
        """Blocks of 64 values; a rest is no block."""
        return self.shape[0] * self.shape[1] // BLOCK


@dataclass(frozen=True, slots=True)
class Stack:
    """Weights that lie end to end as one packed tensor; `experts` is the leading dimension, 0 where there is none."""

    name: str
    weights: tuple[Weight, ...]
    experts: int = 0

    def tensors(self, absmax: Absmax) -> Iterator[Tensor]:
        """The packed tensors."""
        blocks = sum(weight.num_blocks for weight in self.weights)
        for suffix, dtype, count in _parts(absmax, blocks):
            yield f"{self.name}.{suffix}", dtype, (self.experts, count // self.experts) if self.experts else (count,)

    def possible(self, wanted: Absmax) -> Absmax:
        """`wanted`, or float32 where double quantisation does not go."""
        fits = all(weight.num_blocks % GROUP == 0 for weight in self.weights)
        return wanted if fits or wanted != "double" else "float32"


def _parts(absmax: Absmax, blocks: int) -> Iterator[tuple[str, str, int]]:
    if absmax == "double":
        yield "absmax_scales", "F32", blocks // GROUP
        yield "absmax_offsets", "F32", blocks // GROUP
        yield "absmax_codes", "U8", blocks
    else:
        yield "absmax", "F32" if absmax == "float32" else "BF16", blocks
    yield "packed", "U8", blocks * BLOCK // 2


@dataclass(frozen=True, slots=True)
class Plain:
    """A tensor that stays as it is, in bf16."""

    name: str
    source: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class File:
    """A file of the packed form."""

    name: str
    plain: tuple[Plain, ...]
    stacks: tuple[Stack, ...] = ()

    def tensors(self, absmax: dict[str, Absmax]) -> list[Tensor]:
        """Its tensors, the widest type first so that each lies at a multiple of its size."""
        found: list[Tensor] = [(item.name, "BF16", item.shape) for item in self.plain]
        found += [tensor for stack in self.stacks for tensor in stack.tensors(absmax[stack.name])]
        return sorted(found, key=lambda tensor: ("F32", "BF16", "U8").index(tensor[1]))


def plan(config: MixtralConfig) -> list[File]:
    """The files of a model's packed form, in the order in which they are made."""
    width, vocabulary = config.hidden_size, config.vocab_size
    rest = [
        Plain("embedding", "model.embed_tokens.weight", (vocabulary, width)),
        Plain("norm", "model.norm.weight", (width,)),
    ]
    if not config.tie_embeddings:
        rest.append(Plain("head", "lm_head.weight", (vocabulary, width)))
    return [File("globals.safetensors", tuple(rest)), *(_layer(config, index) for index in range(config.num_layers))]


def _layer(config: MixtralConfig, index: int) -> File:
    width, inner, experts = config.hidden_size, config.intermediate_size, range(config.num_experts)
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    ours, theirs = f"layers.{index}", f"model.layers.{index}"
    moe = f"{theirs}.block_sparse_moe"
    qkv = [
        Weight(f"{theirs}.self_attn.{part}_proj.weight", (size, width))
        for part, size in (("q", q_size), ("k", kv_size), ("v", kv_size))
    ]
    w13 = [Weight(f"{moe}.experts.{expert}.{part}.weight", (inner, width)) for expert in experts for part in ("w1", "w3")]
    w2 = [Weight(f"{moe}.experts.{expert}.w2.weight", (width, inner)) for expert in experts]
    return File(
        f"layer-{index:03}.safetensors",
        (
            Plain(f"{ours}.attention_norm", f"{theirs}.input_layernorm.weight", (width,)),
            Plain(f"{ours}.experts_norm", f"{theirs}.post_attention_layernorm.weight", (width,)),
            Plain(f"{ours}.router", f"{moe}.gate.weight", (config.num_experts, width)),
        ),
        (
            Stack(f"{ours}.qkv", tuple(qkv)),
            Stack(f"{ours}.output", (Weight(f"{theirs}.self_attn.o_proj.weight", (width, q_size)),)),
            Stack(f"{ours}.w13", tuple(w13), config.num_experts),
            Stack(f"{ours}.w2", tuple(w2), config.num_experts),
        ),
    )


def packed_bytes(config: MixtralConfig, absmax: Absmax = "double") -> int:
    """Size of the packed form: 24.5e9 for Mixtral-8x7B."""
    sizes = {"F32": 4, "BF16": 2, "U8": 1}
    return sum(
        prod(shape) * sizes[dtype]
        for file in plan(config)
        for _, dtype, shape in file.tensors({stack.name: stack.possible(absmax) for stack in file.stacks})
    )


def why_not_packed(directory: Path) -> str | None:
    """What keeps the model in `directory` from having a packed form; None when nothing does."""
    try:
        layout = plan(read_config(directory))
    except ModelUnavailable as problem:
        return problem.detail
    weights = [weight for file in layout for stack in file.stacks for weight in stack.weights]
    odd = [weight for weight in weights if weight.num_blocks * BLOCK != weight.shape[0] * weight.shape[1]]
    return f"{odd[0].name} {odd[0].shape} is not a whole number of blocks of {BLOCK}" if odd else None


def read_config(directory: Path) -> MixtralConfig:
    """The sizes of the model in `directory`.

    Raises:
        ModelUnavailable: config.json can't be read, or is not that of a Mixtral.
    """
    path = directory / "config.json"
    try:
        return MixtralConfig.from_json(json.loads(files.read(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelUnavailable(detail=f"{path} is not that of a Mixtral: {error!r}.") from error
