"""Holds the export to its purpose: transformers loads it, and its weights are bitsandbytes' own of the source, bit by bit."""

import json
from pathlib import Path

import pytest
import torch

from tests.checkpoints import by_bitsandbytes, dequantised, stacks_of, tensors_of
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.export import export
from zopilot_gpu.store.layout import Absmax
from zopilot_gpu.store.locate import DEMO_DIRECTORY, locate
from zopilot_gpu.store.published import Published, open_published


def published(source: Path, root: Path, absmax: Absmax = "double") -> Published:
    return open_published(ensure(Wanted(str(source), roots=[root], absmax=absmax)).located.directory)


@pytest.mark.parametrize("absmax", ["double", "bfloat16"])
@pytest.mark.parametrize("source", ["tiny", "demo"])
def test_transformers_loads_it_with_the_same_weights(tiny: Path, tmp_path: Path, source: str, absmax: Absmax) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM

    checkpoint = tiny if source == "tiny" else DEMO_DIRECTORY
    found = published(checkpoint, tmp_path, absmax)
    export(found, tmp_path / "exported")
    model, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    original, made = tensors_of(checkpoint), tensors_of(found.directory)
    for stack in stacks_of(checkpoint):
        theirs = []
        for weight in stack.weights:
            held = model.get_submodule(weight.name.removesuffix(".weight")).weight
            theirs.append(dequantize_4bit(held.data, held.quant_state).to(torch.bfloat16).view(-1))
        assert torch.equal(torch.cat(theirs), dequantised(stack, made)), stack.name
        if source == "tiny":
            nested = f"{stack.name}.absmax_codes" in made
            assert torch.equal(torch.cat(theirs), by_bitsandbytes(stack, original, double=nested)), stack.name
    for name in ("model.embed_tokens.weight", "lm_head.weight", "model.layers.1.block_sparse_moe.gate.weight"):
        assert torch.equal(model.get_parameter(name), original[name])


def test_its_files_are_readable_by_all_and_name_nothing_of_this_machine(tiny: Path, tmp_path: Path) -> None:
    export(published(tiny, tmp_path), tmp_path / "exported")
    for path in (tmp_path / "exported").iterdir():
        assert path.stat().st_mode & 0o777 == 0o644, path.name
        assert str(tmp_path).encode() not in path.read_bytes()
    config = json.loads((tmp_path / "exported" / "config.json").read_bytes())
    assert config["transformers_version"] == "4.57.1"
    assert locate(str(tmp_path / "exported")).model_type == "mixtral"


def test_what_is_exported_packs_to_the_same_again(tmp_path: Path) -> None:
    first = published(DEMO_DIRECTORY, tmp_path)
    export(first, tmp_path / "exported")
    again = published(tmp_path / "exported", tmp_path)
    assert [again.manifest.files[name] for name in again.manifest.weights] == [
        first.manifest.files[name] for name in first.manifest.weights
    ]


def test_a_directory_that_is_there_is_not_written_into(tiny: Path, tmp_path: Path) -> None:
    found = published(tiny, tmp_path)
    with pytest.raises(ModelUnavailable, match="is there already"):
        export(found, tmp_path)
