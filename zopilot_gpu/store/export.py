"""The packed form as a checkpoint that transformers loads: standard bitsandbytes-4bit safetensors. Knows both sets of names.

`AutoModelForCausalLM.from_pretrained(directory)` gives weights that dequantise to the same bits. Where every absmax is double
quantised, so are those of the export; otherwise all are float32, because a checkpoint is of one kind.
"""

import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import torch

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.nf4 import CODES
from zopilot_gpu.store import files
from zopilot_gpu.store.fingerprint import texts
from zopilot_gpu.store.layout import BLOCK, GROUP, File, Stack, Weight, plan, read_config
from zopilot_gpu.store.published import Published
from zopilot_gpu.store.quantise import double_table
from zopilot_gpu.store.source import TYPES, Imported
from zopilot_gpu.store.tensors import plan_file, read_contents

_QUANTISATION = {
    "_load_in_4bit": True,
    "_load_in_8bit": False,
    "bnb_4bit_compute_dtype": "bfloat16",
    "bnb_4bit_quant_storage": "uint8",
    "bnb_4bit_quant_type": "nf4",
    "llm_int8_enable_fp32_cpu_offload": False,
    "llm_int8_has_fp16_weight": False,
    "llm_int8_skip_modules": ["gate", "lm_head"],
    "llm_int8_threshold": 6.0,
    "load_in_4bit": True,
    "load_in_8bit": False,
    "quant_method": "bitsandbytes",
}
_WRITTEN_BY = "4.57.1"  # why not the version at hand: zopilot_gpu.demo.quantise
_NAMES = {torch_type: name for name, torch_type in TYPES.items()}
Named = Iterator[tuple[str, torch.Tensor]]


def export(found: Published, target: Path, told: Callable[[int, int], None] = lambda *_: None) -> None:
    """Writes the checkpoint into the new directory `target`, file by file; `told` hears of packed bytes done and in all.

    Raises:
        ModelUnavailable: the packed form can't be read, or `target` is there already.
        OSError: `target` can't be written.
    """
    layout = plan(read_config(found.directory))
    nested = all(not name.endswith(".absmax") for stored in found.manifest.files.values() for name, _, _ in stored.tensors)
    try:
        files.make_directory(target)
    except FileExistsError:
        raise ModelUnavailable(detail=f"{target} is there already; name a new directory.") from None
    names = [f"model-{index + 1:05}-of-{len(layout):05}.safetensors" for index in range(len(layout))]
    held: dict[str, str] = {}
    total = 0
    for index, (name, file) in enumerate(zip(names, layout, strict=True)):
        tensors = list(_tensors(file, _read(found.directory / file.name), nested=nested))
        held |= {tensor: name for tensor, _ in tensors}
        total += _write(target / name, tensors)
        told(sum(found.manifest.files[item.name].size for item in layout[: index + 1]), found.manifest.num_bytes)
    _write_texts(found.directory, target, nested=nested)
    content = {"metadata": {"total_size": total}, "weight_map": held}
    files.write_new(target / "model.safetensors.index.json", [json.dumps(content, indent=2, sort_keys=True).encode()])


def _read(path: Path) -> dict[str, torch.Tensor]:
    contents = read_contents(path)
    data = torch.empty(contents.size, dtype=torch.uint8)
    try:
        fd = files.open_to_read(path)
        try:
            files.read_into(fd, memoryview(data.numpy().data), 0)
        finally:
            files.close(fd)
    except (OSError, EOFError) as error:
        raise ModelUnavailable(detail=f"{path} can't be read: {error}.") from error
    return {entry.name: data[entry.begin : entry.end].view(TYPES[entry.dtype]).view(entry.shape) for entry in contents.entries}


def _tensors(file: File, packed: dict[str, torch.Tensor], *, nested: bool) -> Named:
    for item in file.plain:
        yield item.source, packed[item.name].view(item.shape)
    for stack in file.stacks:
        edges = [0]
        for weight in stack.weights:
            edges.append(edges[-1] + weight.num_blocks)
        for weight, (begin, end) in zip(stack.weights, pairwise(edges), strict=True):
            yield from _weight(weight, _one(stack, packed, begin, end), nested=nested)


def _one(stack: Stack, packed: dict[str, torch.Tensor], begin: int, end: int) -> Imported:
    """The blocks of a stack from `begin` to `end`, which are one weight."""

    def part(suffix: str, first: int, last: int) -> torch.Tensor:
        return packed[f"{stack.name}.{suffix}"].view(-1)[first:last]

    codes = part("packed", begin * BLOCK // 2, end * BLOCK // 2)
    if f"{stack.name}.absmax" in packed:
        return Imported(codes, part("absmax", begin, end).float())
    scales, offsets = (part(suffix, begin // GROUP, end // GROUP) for suffix in ("absmax_scales", "absmax_offsets"))
    return Imported(codes, part("absmax_codes", begin, end), scales, float(offsets[0]))


def _weight(weight: Weight, found: Imported, *, nested: bool) -> Named:
    state: dict[str, object] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16", "shape": list(weight.shape)}
    yield weight.name, found.packed.view(-1, 1)
    yield f"{weight.name}.quant_map", torch.tensor(CODES)
    if nested and found.scales is not None:
        yield f"{weight.name}.absmax", found.absmax
        yield f"{weight.name}.nested_absmax", found.scales
        yield f"{weight.name}.nested_quant_map", double_table()
        state |= {"nested_blocksize": GROUP, "nested_dtype": "float32", "nested_offset": found.offset}
    else:
        yield f"{weight.name}.absmax", found.plain_absmax()
    yield f"{weight.name}.quant_state.bitsandbytes__nf4", torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def _write(path: Path, tensors: list[tuple[str, torch.Tensor]]) -> int:
    tensors = sorted(tensors, key=lambda item: -item[1].element_size())  # each at a multiple of its size
    head, contents = plan_file(path, [(name, _NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors])
    data = [tensor.contiguous().view(-1).view(torch.uint8).numpy().data for _, tensor in tensors]
    files.write_new(path, [head, *data])
    return contents.size - len(head)


def _write_texts(source: Path, target: Path, *, nested: bool) -> None:
    for name, content in texts(source):
        if name == "config.json":
            config = json.loads(content) | {
                "dtype": "bfloat16",
                "transformers_version": _WRITTEN_BY,
                "quantization_config": {**_QUANTISATION, "bnb_4bit_use_double_quant": nested},
            }
            config.pop("torch_dtype", None)
            files.write_new(target / name, [json.dumps(config, indent=2, sort_keys=True).encode()])
        else:
            files.write_new(target / name, [content])
