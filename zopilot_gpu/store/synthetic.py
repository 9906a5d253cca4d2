"""Made-up models of any size, in the packed form or as a bf16 checkpoint. Knows sizes and seeds; their answers mean nothing.

Weights have the spread that a network of this width needs for finite logits, and no two tensors are alike, so that neither
caches nor compression make a benchmark look better than it is. The tokenizer is the demo model's, which every model here has
room for.
"""

import hashlib
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store import files
from zopilot_gpu.store.fingerprint import texts
from zopilot_gpu.store.layout import Absmax, File, packed_bytes, plan
from zopilot_gpu.store.locate import DEMO_DIRECTORY, Located
from zopilot_gpu.store.manifest import Stored
from zopilot_gpu.store.publish import manifest_of, publish, staging_for, write_text
from zopilot_gpu.store.published import FOLDER, Published, key_of, open_published
from zopilot_gpu.store.source import TYPES
from zopilot_gpu.store.tensors import plan_file

SIZES = {  # layers, width, inner, heads, KV heads, experts, vocabulary
    "mixtral-8x7b": (32, 4096, 14336, 32, 8, 8, 32_000),
    "mixtral-8x7b-slice": (2, 4096, 14336, 32, 8, 8, 32_000),  # of full width, so that a layer's file is as large
    "small": (8, 2048, 5632, 16, 4, 8, 32_000),
    "demo-size": (6, 256, 192, 8, 4, 8, 1024),
}
_SEED = 20261123


def config_of(name: str) -> dict[str, object]:
    """A config.json of the made-up model `name`.

    Raises:
        ModelUnavailable: there is none of this name.
    """
    if name not in SIZES:
        raise ModelUnavailable(detail=f"There is no made-up model {name!r}; there are {', '.join(SIZES)}.")
    layers, width, inner, heads, kv_heads, experts, vocabulary = SIZES[name]
    return {
        "architectures": ["MixtralForCausalLM"],
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": inner,
        "max_position_embeddings": 32_768,
        "model_type": "mixtral",
        "num_attention_heads": heads,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "num_local_experts": experts,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.1",  # why this one: zopilot_gpu.demo.quantise
        "vocab_size": vocabulary,
    }


def make_packed(name: str, root: Path, absmax: Absmax, told: Callable[[int, int], None] = lambda *_: None) -> Published:
    """The made-up model `name` in the packed form below `root`, or the one that is there. `told` hears of bytes, made and all.

    Raises:
        ModelUnavailable: there is none of this name, or a damaged one is in the way.
        OSError: the volume does not let us.
    """
    sizes = config_of(name)
    layout = plan(MixtralConfig.from_json(sizes))
    located = Located(f"synthetic-{name}", DEMO_DIRECTORY, None, "mixtral")
    source = hashlib.sha256(f"{sorted(sizes.items(), key=str)} {absmax} {_SEED}".encode()).hexdigest()
    folder = root / FOLDER
    target = folder / key_of(located.name, source, absmax)
    if target.is_dir():
        return open_published(target)
    files.make_directory(folder, parents=True)
    staging = staging_for(folder, target.name)
    stored: dict[str, Stored] = {}
    total = packed_bytes(MixtralConfig.from_json(sizes), absmax)
    for index, file in enumerate(layout):
        stored[file.name] = _write_packed(staging, file, absmax, seed=_SEED + index)
        told(sum(item.size for item in stored.values()), total)
    for text, content in texts(DEMO_DIRECTORY):
        if text != "config.json":
            stored[text] = write_text(staging / text, content)
    stored["config.json"] = write_text(staging / "config.json", json.dumps(sizes, indent=2).encode())
    publish(staging, target, manifest_of(located, source, absmax, stored))
    return open_published(target)


def _write_packed(staging: Path, file: File, absmax: Absmax, seed: int) -> Stored:
    random = torch.Generator().manual_seed(seed)
    forms = {stack.name: stack.possible(absmax) for stack in file.stacks}
    head, contents = plan_file(staging / file.name, file.tensors(forms))
    data = torch.empty(contents.size - len(head), dtype=torch.uint8)
    columns = {stack.name: stack.weights[0].shape[1] for stack in file.stacks}
    for entry in contents.entries:
        view = data[entry.begin - len(head) : entry.end - len(head)].view(TYPES[entry.dtype])
        stack, _, part = entry.name.rpartition(".")
        _fill(view, part, columns.get(stack, 0), random)
        if entry.name.endswith("norm"):
            view.fill_(1)
    digest = hashlib.sha256(head)
    digest.update(data.numpy().data)
    files.remove(contents.path)  # what a try that was killed has left
    files.write_new(contents.path, [head, data.numpy().data])
    return Stored(contents.size, digest.hexdigest(), [(entry.name, entry.dtype, entry.shape) for entry in contents.entries])


def _fill(view: torch.Tensor, part: str, columns: int, random: torch.Generator) -> None:
    """The largest of 64 normal values is about 2.4 times their spread; the codes of an absmax reach from -1 to 1."""
    largest = 2.4 / math.sqrt(columns or 1)
    if view.dtype == torch.uint8:
        view[: len(view) // 8 * 8].view(torch.int64).random_(-(2**63), None, generator=random)
        view[len(view) // 8 * 8 :].random_(0, 256, generator=random)
    elif part == "absmax_scales":
        view.fill_(largest / 4)
    elif part == "absmax_offsets":
        view.fill_(largest)
    elif part == "absmax":
        view.copy_(torch.rand(len(view), generator=random).mul_(largest / 2).add_(largest * 3 / 4))
    else:
        view.copy_(torch.randn(len(view), generator=random).mul_(0.02))


def make_checkpoint(name: str, directory: Path) -> None:
    """The made-up model `name` as a bf16 checkpoint in `directory`, a file a layer: to pack, and to measure packing with.

    Raises:
        ModelUnavailable: there is none of this name.
        OSError: the volume does not let us.
    """
    sizes = config_of(name)
    layout = plan(MixtralConfig.from_json(sizes))
    files.make_directory(directory, parents=True)
    names = [f"model-{index + 1:05}-of-{len(layout):05}.safetensors" for index in range(len(layout))]
    with ThreadPoolExecutor(2, "make") as pool:
        jobs = [(name, file, _SEED + index) for index, (name, file) in enumerate(zip(names, layout, strict=True))]
        held = list(pool.map(lambda job: _write_plain(directory / job[0], job[1], job[2]), jobs))
    for text, content in texts(DEMO_DIRECTORY):
        if text != "config.json":
            files.write_new(directory / text, [content])
    index = {
        "metadata": {},
        "weight_map": {tensor: file for file, tensors in zip(names, held, strict=True) for tensor in tensors},
    }
    files.write_new(directory / "model.safetensors.index.json", [json.dumps(index).encode()])
    files.write_new(directory / "config.json", [json.dumps(sizes, indent=2).encode()])


def _write_plain(path: Path, file: File, seed: int) -> list[str]:
    random = torch.Generator().manual_seed(seed)
    shapes = [(item.source, item.shape) for item in file.plain]
    shapes += [(weight.name, weight.shape) for stack in file.stacks for weight in stack.weights]
    head, contents = plan_file(path, [(name, "BF16", shape) for name, shape in shapes])
    parts: list[memoryview | bytes] = [head]
    for name, shape in shapes:
        spread = 0.02 if len(shape) == 1 else 1 / math.sqrt(shape[1])
        values = torch.randn(shape, generator=random, dtype=torch.bfloat16).mul_(spread)
        parts.append((values.fill_(1) if name.endswith("norm.weight") else values).view(-1).view(torch.uint8).numpy().data)
    files.write_new(path, parts)
    return [entry.name for entry in contents.entries]
