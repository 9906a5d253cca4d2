"""The slow ways to a token, one sequence, in the same run as ours: the model's plain parts, and transformers with bitsandbytes.

    plain parts     `parts.PlainParts` and `experts.RoutedExperts`, weights in NF4: the twin of our kernels
    transformers    the same sizes in `MixtralForCausalLM`, its products by bitsandbytes' 4-bit layers: the plain runner's model

Where a part of it is not installed it is left out, with the reason.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch.nn.functional import linear

from zopilot_gpu.bench.gpu import made_up
from zopilot_gpu.bench.gpu.clock import elapsed_s, settle
from zopilot_gpu.bench.gpu.sizes import Sizes
from zopilot_gpu.engine.kv_cache import BLOCK_SIZE
from zopilot_gpu.model.experts import GroupedExperts, RoutedExperts
from zopilot_gpu.model.linear import Linear, quantised
from zopilot_gpu.model.mixtral import Layer, Mixtral, rotary_table
from zopilot_gpu.model.nf4 import NF4
from zopilot_gpu.model.parts import PlainParts
from zopilot_gpu.model.weights import Packed, shapes


class LeftOut(Exception):
    """Something that is needed is not there; the text says what."""


def by_plain_parts(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """A decode step of one sequence by the plain parts."""
    product, how = _product(device)
    model = _plain_model(sizes, device, product)
    room = -(-sizes.context // BLOCK_SIZE) + 1
    caches = made_up.pools(model.config, room, model.embedding, 0.5)

    def step(number: int) -> object:
        place = sizes.context - 1 - number
        return model.forward(made_up.batch([(place, place + 1)], model.config, device, room), caches).argmax(-1).tolist()

    return _step_of(step, sizes, device) | {"products": how}


def _product(device: torch.device) -> tuple[Callable[[NF4], Linear], str]:
    """What multiplies with a weight in NF4, and its name: bitsandbytes where it is there and works."""
    try:
        float(quantised(made_up.weight((128, 128), device))(made_up.normal(device, 1, 128)).sum())
    except Exception as error:  # noqa: BLE001  (what a library raises that was built for another CUDA is its own affair)
        return _by_dequantising, f"dequantised each time, since bitsandbytes did not work ({type(error).__name__})"
    return quantised, "bitsandbytes gemm_4bit" if device.type == "cuda" else "dequantised each time"


def _by_dequantising(weight: NF4) -> Linear:
    return lambda x: linear(x, weight.dequantise(x.dtype))


def _plain_model(sizes: Sizes, device: torch.device, product: Callable[[NF4], Linear]) -> Mixtral:
    """The model of `subject.make_model`, of the same weights, by plain parts."""
    config, dtype = sizes.config, torch.bfloat16
    source, table = Packed(made_up.packed_tensors(config, device, nested=False), device), shapes(config)

    def plain(name: str) -> torch.Tensor:
        return source.plain(name, table[name])

    def layer(name: str) -> Layer:
        one = {part: source.quantised(f"{name}.{part}", table[f"{name}.{part}"]) for part in ("qkv", "output", "w13", "w2")}
        several = ([product(expert) for expert in one[part].unbind()] for part in ("w13", "w2"))
        return Layer(
            attention_norm=plain(f"{name}.attention_norm"),
            qkv=product(one["qkv"]),
            output=product(one["output"]),
            experts_norm=plain(f"{name}.experts_norm"),
            router=plain(f"{name}.router"),
            experts=RoutedExperts(GroupedExperts(*several), config.num_experts_per_token),
        )

    layers = [layer(f"layers.{index}") for index in range(config.num_layers)]
    rotary = rotary_table(config, config.max_position, dtype, device)
    return Mixtral(config, plain("embedding"), layers, plain("norm"), plain("head"), rotary, PlainParts())


def by_transformers(sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """A decode step of one sequence by transformers and bitsandbytes.

    Raises:
        LeftOut: one of them is not installed, or transformers is one whose experts bitsandbytes does not quantise.
    """
    for package in ("transformers", "bitsandbytes", "accelerate"):
        if find_spec(package) is None:
            raise LeftOut(f"{package} is not installed")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its warnings are advice for developers
    import bitsandbytes  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    version = transformers.__version__
    if int(version.partition(".")[0]) >= 5:
        raise LeftOut(
            f"transformers {version} keeps experts in 3-D parameters, which bitsandbytes leaves in bf16: 4.57 does not"
        )
    began_s = time.perf_counter()
    model = _transformers_model(sizes, device)
    settle(device)
    built_s = time.perf_counter() - began_s
    with torch.inference_mode():
        ids = torch.randint(3, sizes.config.vocab_size, (1, sizes.context - 1), device=device)
        state: dict[str, Any] = {"kv": model(ids, use_cache=True).past_key_values}

        def step(number: int) -> object:
            out = model(ids[:, number : number + 1], past_key_values=state["kv"], use_cache=True)
            state["kv"] = out.past_key_values
            return out.logits[:, -1].argmax(-1).tolist()

        found = _step_of(step, sizes, device)
    return found | {"built_s": built_s, "transformers": version, "bitsandbytes": bitsandbytes.__version__}


def _transformers_model(sizes: Sizes, device: torch.device) -> Any:
    """Random weights, quantised on the device by bitsandbytes, doubly, as the plain runner has them."""
    from accelerate import init_empty_weights  # noqa: PLC0415
    from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: PLC0415
    from transformers import MixtralConfig, MixtralForCausalLM  # noqa: PLC0415

    config = sizes.config
    theirs = MixtralConfig(
        vocab_size=config.vocab_size, hidden_size=config.hidden_size, intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers, num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim, num_local_experts=config.num_experts, num_experts_per_tok=config.num_experts_per_token,
        max_position_embeddings=config.max_position, rope_theta=config.rope_theta, dtype=torch.bfloat16,
    )  # fmt: skip
    with init_empty_weights(include_buffers=False):
        model = MixtralForCausalLM(theirs)
    for name, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and name.rpartition(".")[2] not in {"gate", "lm_head"}:
            rows, columns = module.weight.shape
            values = made_up.normal(device, rows, columns) * columns**-0.5
            with init_empty_weights():
                made = Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
            made.weight = Params4bit(values, requires_grad=False, quant_type="nf4", compress_statistics=True).to(device)
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, made)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            values = made_up.normal(device, *parameter.shape)
            values = values.abs() if parameter.dim() == 1 else values * parameter.shape[-1] ** -0.5
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, torch.nn.Parameter(values, requires_grad=False))
    return model.to(device).eval()


def _step_of(step: Callable[[int], object], sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """Median of a few steps after one that is not counted."""
    step(0)
    seconds = median(elapsed_s(partial(step, number), device) for number in range(1, 1 + sizes.baseline_steps))
    return {"ms": seconds * 1000, "tokens_per_s": 1 / seconds, "steps": sizes.baseline_steps}
