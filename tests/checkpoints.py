"""Tiny Mixtral checkpoints for tests of the store, and what bitsandbytes makes of their weights."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zopilot_gpu.store import synthetic
from zopilot_gpu.store.layout import Stack, plan, read_config

TINY = (2, 128, 256, 4, 2, 4, 256)  # its k and v have half a group of blocks, so that qkv can't be double quantised

Tensors = dict[str, torch.Tensor]


def make_tiny(directory: Path) -> Path:
    """A bf16 checkpoint of 1.2 MB in a file a layer, with the demo model's tokenizer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(synthetic.SIZES, "tiny", TINY)
        synthetic.make_checkpoint("tiny", directory)
    return directory


def tensors_of(directory: Path) -> Tensors:
    """Every tensor of a directory's safetensors files, as the library reads them."""
    return {name: tensor for path in sorted(directory.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def stacks_of(directory: Path) -> list[Stack]:
    return [stack for file in plan(read_config(directory)) for stack in file.stacks]


def by_bitsandbytes(stack: Stack, source: Tensors, *, double: bool) -> torch.Tensor:
    """What bitsandbytes' quantise and dequantise leave of the weights of a stack, flat, in bf16."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    parts = []
    for weight in stack.weights:
        codes, state = quantize_4bit(source[weight.name], quant_type="nf4", compress_statistics=double)
        parts.append(dequantize_4bit(codes, state).to(torch.bfloat16).view(-1))
    return torch.cat(parts)


def dequantised(stack: Stack, packed: Tensors) -> torch.Tensor:
    """The same of the packed form, by bitsandbytes' kernel from the absmax that our format stands for."""
    from bitsandbytes.functional import QuantState, create_dynamic_map, dequantize_4bit, get_4bit_type

    if f"{stack.name}.absmax" in packed:
        absmax = packed[f"{stack.name}.absmax"].float().view(-1)
    else:
        codes, scales, offsets = (packed[f"{stack.name}.absmax_{part}"].view(-1) for part in ("codes", "scales", "offsets"))
        absmax = create_dynamic_map()[codes.long()] * scales.repeat_interleave(256) + offsets.repeat_interleave(256)
    flat = packed[f"{stack.name}.packed"].view(-1, 1)
    shape = torch.Size((flat.numel() * 2 // 64, 64))
    state = QuantState(absmax, shape, get_4bit_type("nf4", device="cpu"), 64, "nf4", torch.bfloat16)
    found: torch.Tensor = dequantize_4bit(flat, state)
    return found.view(-1)


def environment(home: Path) -> dict[str, str]:
    """Of a child process that has a home of its own."""
    quiet = {"OMP_WAIT_POLICY": "PASSIVE", "TORCHDYNAMO_DISABLE": "1"}
    return {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.getcwd(), **quiet}  # noqa: PTH109
