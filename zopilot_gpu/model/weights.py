"""Builds a Mixtral from named tensors. Knows the packed names, and in which form weights are held; `checkpoint` knows others'.

Packed tensors, of layer i: `layers.{i}.attention_norm`, `.experts_norm`, `.router` in bf16, and four weights in NF4:

    qkv     [(H + 2K) * h, d]    q, k and v end to end        w13    [E, 2f, d]    w1 above w3, of each expert
    output  [d, H * h]                                        w2     [E, d, f]

each as `X.packed` [..., n / 2] and `X.absmax` [..., n / 64], or for absmax in NF4's nested form `X.absmax_codes` [..., n / 64],
`X.absmax_scales` and `X.absmax_offsets` [..., n / 64 / 256], where n is rows * columns. Of the model: `embedding` [V, d],
`norm` [d] and `head` [V, d], which is absent when tied.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Protocol

import torch

from zopilot_gpu.model import linear
from zopilot_gpu.model.checkpoint import Checkpoint
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.experts import Experts, GroupedExperts, RoutedExperts
from zopilot_gpu.model.mixtral import Layer, Mixtral, rotary_table
from zopilot_gpu.model.nf4 import BLOCK, GROUP, NF4, Nested
from zopilot_gpu.model.parts import Parts, PlainParts

Get = Callable[[str], torch.Tensor]
# NOTE: gate and up by wgmma loop over pieces of 128 columns. Of a single piece Triton makes no loop, and chooses layouts then
# that the inline assembly in it is not written for: it did not compile.
_LEAST_HIDDEN = 256


class Source(Protocol):
    """Tensors by their packed names, on the device."""

    @property
    def device(self) -> torch.device:
        """Where they are put."""
        ...

    def plain(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """One in full. Raises KeyError where it is missing, ValueError where it is of another shape."""
        ...

    def quantised(self, name: str, shape: tuple[int, ...]) -> NF4:
        """One in NF4. Raises KeyError where a part is missing, ValueError where one is of another shape or format."""
        ...


@dataclass(frozen=True, slots=True)
class Thrift:
    """What saves memory of a GPU."""

    in_place: bool = False  # tensors may be used up, so that the model takes the memory that they take and no more
    host_embedding: bool = False  # the embedding stays in the host's memory, pinned; the GPU reads a row of it for each token


_USUAL = Thrift()


def build(config: MixtralConfig, get: Get, dtype: torch.dtype, device: torch.device, *, dequantise: bool = True) -> Mixtral:
    """The model that a checkpoint with transformers' names makes, in bf16 or quantised by bitsandbytes.

    What is in full precision goes through NF4 as it comes in, tensor by tensor on the device, so that all sources give the
    same model. Memory at the end, 8x7B in NF4: 24.5 GB from double quantisation, 25.2 GB from bf16. On the way, a layer's
    experts (0.5 GB) and one source tensor more; in a forward pass, one expert's matrix (0.25 GB).

    Args:
        config: its sizes.
        get: a tensor by its name; raises KeyError for one that is not there.
        dtype: of activations, and of all weights but those in NF4.
        device: where they go.
        dequantise: whether weights are dequantised once, or held in NF4 and multiplied with so.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has the wrong shape or format.
    """
    return _assemble(config, Checkpoint(config, get, device), dtype, dequantise=dequantise, thrift=_USUAL)


def build_packed(
    config: MixtralConfig,
    get: Get,
    dtype: torch.dtype,
    device: torch.device,
    *,
    dequantise: bool = False,
    thrift: Thrift = _USUAL,
) -> Mixtral:
    """The model that packed tensors make; see `build`. Nothing is joined, so nothing is needed twice on the way."""
    return _assemble(config, Packed(get, device), dtype, dequantise=dequantise, thrift=thrift)


def shapes(config: MixtralConfig) -> dict[str, tuple[int, ...]]:
    """Of every tensor by its packed name; of those in NF4, the shape that they have dequantised."""
    width, inner, num_experts = config.hidden_size, config.intermediate_size, config.num_experts
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer = {
        "attention_norm": (width,),
        "qkv": (q_size + 2 * kv_size, width),
        "output": (width, q_size),
        "experts_norm": (width,),
        "router": (num_experts, width),
        "w13": (num_experts, 2 * inner, width),
        "w2": (num_experts, width, inner),
    }
    layers = {f"layers.{index}.{part}": shape for index in range(config.num_layers) for part, shape in layer.items()}
    head = {} if config.tie_embeddings else {"head": (config.vocab_size, width)}
    return {"embedding": (config.vocab_size, width), **layers, "norm": (width,), **head}


def is_quantised(name: str) -> bool:
    """Whether the tensor of this packed name is in NF4."""
    return name.rpartition(".")[2] in {"qkv", "output", "w13", "w2"}


def _assemble(config: MixtralConfig, source: Source, dtype: torch.dtype, *, dequantise: bool, thrift: Thrift) -> Mixtral:
    shape_of = shapes(config)

    def plain(name: str) -> torch.Tensor:
        # NOTE: of a layer a copy. A packed layer is one piece of memory, and a norm that is a view of it would keep all of it
        # beside the tiles that its weights have become: twice the model.
        return source.plain(name, shape_of[name]).to(dtype, copy=name.startswith("layers."))

    make = _by_kernels(config, thrift) if not dequantise and choose_kernels(config, dtype, source.device)[0] else None

    def product(weight: NF4) -> linear.Linear:
        if make:
            return make.linear(weight)
        return linear.dense(weight, dtype) if dequantise else linear.quantised(weight)

    def experts(w13: NF4, w2: NF4) -> Experts:
        if make:
            return make.experts(w13, w2)
        several = ([product(expert) for expert in stack.unbind()] for stack in (w13, w2))
        return RoutedExperts(GroupedExperts(*several), config.num_experts_per_token)

    def layer(name: str) -> Layer:
        qkv, output, w13, w2 = (f"{name}.{part}" for part in ("qkv", "output", "w13", "w2"))
        return Layer(
            attention_norm=plain(f"{name}.attention_norm"),
            qkv=product(source.quantised(qkv, shape_of[qkv])),
            output=product(source.quantised(output, shape_of[output])),
            experts_norm=plain(f"{name}.experts_norm"),
            router=plain(f"{name}.router"),
            experts=experts(source.quantised(w13, shape_of[w13]), source.quantised(w2, shape_of[w2])),
        )

    embedding, norm, head = _ends(plain, source.device, thrift=thrift, tied=config.tie_embeddings)
    return Mixtral(
        config=config,
        embedding=embedding,
        layers=[layer(f"layers.{index}") for index in range(config.num_layers)],
        norm=norm,
        head=head,
        rotary=rotary_table(config, config.max_position, dtype, source.device),
        parts=make.parts if make else PlainParts(),
    )


def _ends(
    plain: Callable[[str], torch.Tensor], device: torch.device, *, thrift: Thrift, tied: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embedding, norm and head. They may be parts of one piece of memory, which is free only when all three have left it."""
    if tied or not thrift.host_embedding:
        embedding, norm = plain("embedding"), plain("norm")
        return embedding, norm, embedding if tied else plain("head")
    embedding, norm, head = plain("embedding").cpu(), plain("norm").cpu(), plain("head").cpu()
    if device.type == "cuda":
        embedding = embedding.pin_memory()
    return embedding, norm.to(device), head.to(device)


@dataclass(frozen=True, slots=True)
class _Makers:
    """What holds weights in NF4 and computes with them."""

    linear: Callable[[NF4], linear.Linear]
    experts: Callable[[NF4, NF4], Experts]
    parts: Parts


def choose_kernels(config: MixtralConfig, dtype: torch.dtype, device: torch.device) -> tuple[bool, str]:
    """Whether our kernels compute with weights in NF4, and why."""
    if device.type != "cuda":
        return False, "the kernels are for a GPU"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return False, "the kernels need sm_80 or newer: they multiply in bf16"
    if dtype != torch.bfloat16:
        return False, f"the kernels compute in bf16, not {dtype}"
    others = [shape for name, shape in shapes(config).items() if is_quantised(name) and (shape[-2] % 16 or shape[-1] % 128)]
    if others:
        return False, f"the kernels take matrices of whole tiles, 16 by 128, and not {others[0]}"
    if config.hidden_size < _LEAST_HIDDEN:
        return False, f"the kernels take a hidden size of {_LEAST_HIDDEN} or more, and not {config.hidden_size}"
    return True, "a GPU with bf16, and all matrices are whole tiles"


def _by_kernels(config: MixtralConfig, thrift: Thrift) -> _Makers:
    from zopilot_gpu.model.kernels.parts import KernelParts  # noqa: PLC0415  (triton is for a GPU)
    from zopilot_gpu.model.kernels.weights import TiledExperts, TiledLinear  # noqa: PLC0415

    top_k, in_place = config.num_experts_per_token, thrift.in_place
    make_experts = partial(TiledExperts, top_k=top_k, in_place=in_place)
    return _Makers(partial(TiledLinear, in_place=in_place), make_experts, KernelParts())


class Packed:
    """A `Source` of tensors that have the packed names already."""

    def __init__(self, get: Get, device: torch.device) -> None:
        self._get, self.device = get, device

    def plain(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """See `Source`."""
        return self._take(name, shape, torch.bfloat16)

    def quantised(self, name: str, shape: tuple[int, ...]) -> NF4:
        """See `Source`."""
        *leading, size = *shape[:-2], prod(shape[-2:])
        packed = self._take(f"{name}.packed", (*leading, size // 2), torch.uint8)
        blocks, groups = (*leading, size // BLOCK), (*leading, size // BLOCK // GROUP)
        try:
            absmax = self._take(f"{name}.absmax", blocks, torch.bfloat16, torch.float32)
        except KeyError:
            codes = self._take(f"{name}.absmax_codes", blocks, torch.uint8)
            parts = [self._take(f"{name}.absmax_{part}", groups, torch.float32) for part in ("scales", "offsets")]
            return NF4(packed, Nested(codes, *parts), shape)
        return NF4(packed, absmax, shape)

    def _take(self, name: str, shape: tuple[int, ...], *dtypes: torch.dtype) -> torch.Tensor:
        tensor = self._get(name)
        if tensor.shape != shape or tensor.dtype not in dtypes:
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}, not {dtypes[0]} {shape}")
        return tensor.to(self.device)
