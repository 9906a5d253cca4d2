"""Holds the packed form to bitsandbytes' own quantise and dequantise of the same weights; what is taken and what refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import by_bitsandbytes, dequantised, stacks_of, tensors_of
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.layout import Absmax, plan, read_config
from zopilot_gpu.store.locate import DEMO_DIRECTORY
from zopilot_gpu.store.manifest import Stored
from zopilot_gpu.store.pack import pack
from zopilot_gpu.store.publish import Interrupted


def packed(source: Path, target: Path, absmax: Absmax = "double", *, stop_after: int = 10**9) -> dict[str, Stored]:
    told: list[int] = []
    target.mkdir(exist_ok=True)
    return pack(source, target, absmax, "cpu", told.append, lambda: len(told) > stop_after)


@pytest.mark.parametrize("absmax", ["double", "bfloat16", "float32"])
def test_weights_are_those_of_bitsandbytes(tiny: Path, tmp_path: Path, absmax: Absmax) -> None:
    packed(tiny, tmp_path / "p", absmax)
    source, made = tensors_of(tiny), tensors_of(tmp_path / "p")
    for stack in stacks_of(tiny):
        nested = f"{stack.name}.absmax_codes" in made
        assert nested == (absmax == "double" and not stack.name.endswith("qkv"))
        assert torch.equal(dequantised(stack, made), by_bitsandbytes(stack, source, double=nested)), stack.name


def test_names_shapes_and_types_are_the_contract(tiny: Path, tmp_path: Path) -> None:
    packed(tiny, tmp_path / "p")
    made = {name: (str(tensor.dtype)[6:], tuple(tensor.shape)) for name, tensor in tensors_of(tmp_path / "p").items()}
    layer = {name.removeprefix("layers.1."): found for name, found in made.items() if name.startswith("layers.1.")}
    assert {name for name in made if not name.startswith("layers.")} == {"embedding", "norm", "head"}
    assert layer == {
        "attention_norm": ("bfloat16", (128,)),
        "experts_norm": ("bfloat16", (128,)),
        "router": ("bfloat16", (4, 128)),
        "qkv.packed": ("uint8", (256 * 128 // 2,)),
        "qkv.absmax": ("float32", (256 * 128 // 64,)),
        "output.packed": ("uint8", (128 * 128 // 2,)),
        "output.absmax_codes": ("uint8", (128 * 128 // 64,)),
        "output.absmax_scales": ("float32", (1,)),
        "output.absmax_offsets": ("float32", (1,)),
        "w13.packed": ("uint8", (4, 2 * 256 * 128 // 2)),
        "w13.absmax_codes": ("uint8", (4, 2 * 256 * 128 // 64)),
        "w13.absmax_scales": ("float32", (4, 4)),
        "w13.absmax_offsets": ("float32", (4, 4)),
        "w2.packed": ("uint8", (4, 128 * 256 // 2)),
        "w2.absmax_codes": ("uint8", (4, 128 * 256 // 64)),
        "w2.absmax_scales": ("float32", (4, 2)),
        "w2.absmax_offsets": ("float32", (4, 2)),
    }


def test_plain_tensors_stay_as_they_are(tiny: Path, tmp_path: Path) -> None:
    packed(tiny, tmp_path / "p")
    source, made = tensors_of(tiny), tensors_of(tmp_path / "p")
    for file in plan(read_config(tiny)):
        for item in file.plain:
            assert torch.equal(made[item.name], source[item.source])


def test_a_checkpoint_of_bitsandbytes_is_taken_as_it_is(tmp_path: Path) -> None:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    packed(DEMO_DIRECTORY, tmp_path / "p")
    source, made = tensors_of(DEMO_DIRECTORY), tensors_of(tmp_path / "p")
    for stack in stacks_of(DEMO_DIRECTORY):
        parts = []
        for weight in stack.weights:
            state = {
                name.removeprefix(f"{weight.name}."): tensor
                for name, tensor in source.items()
                if name.startswith(f"{weight.name}.")
            }
            found = dequantize_4bit(source[weight.name], QuantState.from_dict(state, torch.device("cpu")))
            parts.append(found.to(torch.bfloat16).view(-1))
        assert torch.equal(dequantised(stack, made), torch.cat(parts)), stack.name


def test_what_is_stacked_has_the_hash_that_is_told(tiny: Path, tmp_path: Path) -> None:
    from zopilot_gpu.store.fingerprint import hash_file

    for name, stored in packed(tiny, tmp_path / "p").items():
        assert hash_file(tmp_path / "p" / name) == stored.sha256
        assert (tmp_path / "p" / name).stat().st_size == stored.size


def test_a_later_try_goes_on_behind_the_files_that_are_finished(tiny: Path, tmp_path: Path) -> None:
    whole = packed(tiny, tmp_path / "whole")
    with pytest.raises(Interrupted):
        packed(tiny, tmp_path / "p", stop_after=22)  # in the second layer
    first = tmp_path / "p" / "layer-000.safetensors"
    inode = first.stat().st_ino
    assert packed(tiny, tmp_path / "p") == whole
    assert first.stat().st_ino == inode


def test_a_finished_file_that_has_changed_since_is_made_anew(tiny: Path, tmp_path: Path) -> None:
    whole = packed(tiny, tmp_path / "p")
    file = tmp_path / "p" / "layer-001.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    assert packed(tiny, tmp_path / "p") == whole
    assert file.read_bytes() != content


def changed(tiny: Path, target: Path, name: str, tensor: torch.Tensor | None) -> Path:
    """A copy of the checkpoint with another tensor of this name, or without it."""
    shutil.copytree(tiny, target)
    path = target / "model-00002-of-00003.safetensors"
    tensors = load_file(path)
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, path)
    return target


EXPERT = "model.layers.0.block_sparse_moe.experts.1.w2.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "said"),
    [
        (EXPERT, None, f"lacks the tensor {EXPERT}"),
        (EXPERT, torch.zeros(256, 128, dtype=torch.bfloat16), r"shape \(256, 128\)"),
        (EXPERT, torch.full((128, 256), float("nan"), dtype=torch.bfloat16), f"{EXPERT} holds values that are no numbers"),
        (EXPERT, torch.zeros(128 * 128, 1, dtype=torch.uint8), "lacks the tensor|not NF4"),
        ("model.layers.0.input_layernorm.weight", torch.zeros(64, dtype=torch.bfloat16), "input_layernorm"),
        ("model.layers.0.self_attn.q_proj.bias", torch.zeros(128, dtype=torch.bfloat16), "unexpected tensors: .*bias"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_config_says_is_refused(
    tiny: Path, tmp_path: Path, name: str, tensor: torch.Tensor | None, said: str
) -> None:
    source = changed(tiny, tmp_path / "s", name, tensor)
    with pytest.raises(ModelUnavailable, match=said):
        packed(source, tmp_path / "p")


@pytest.mark.parametrize("part", ["quant_state.bitsandbytes__nf4", "absmax", "nested_absmax", "nested_quant_map"])
def test_a_quantised_checkpoint_with_a_wrong_part_is_refused(tmp_path: Path, part: str) -> None:
    shutil.copytree(DEMO_DIRECTORY, tmp_path / "s")
    tensors = load_file(tmp_path / "s" / "model.safetensors")
    name = f"model.layers.0.block_sparse_moe.experts.1.w2.weight.{part}"
    tensors[name] = torch.tensor(
        list(json.dumps({"quant_type": "fp4", "blocksize": 64, "shape": [1]}).encode()), dtype=torch.uint8
    )
    if part != "quant_state.bitsandbytes__nf4":
        tensors[name] = tensors[name][:5].float()
    save_file(tensors, tmp_path / "s" / "model.safetensors")
    with pytest.raises(ModelUnavailable, match=r"experts\.1\.w2\.weight is not NF4"):
        packed(tmp_path / "s", tmp_path / "p")


def test_a_source_in_fp16_keeps_float32_absmax_where_bf16_would_round(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "s")
    for path in (tmp_path / "s").glob("*.safetensors"):
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path)
    packed(tmp_path / "s", tmp_path / "p", "bfloat16")
    made = tensors_of(tmp_path / "p")
    assert {tensor.dtype for name, tensor in made.items() if name.endswith(".absmax")} == {torch.float32}
    assert made["embedding"].dtype == torch.bfloat16
