"""Holds the made-up models: the same every time, on the path of a real one, with logits that are numbers."""

from pathlib import Path

import pytest
import torch

from zopilot_gpu.store.ensure import Wanted, ensure
from zopilot_gpu.store.export import export
from zopilot_gpu.store.layout import Absmax, packed_bytes, read_config
from zopilot_gpu.store.load import load
from zopilot_gpu.store.manifest import check_hashes
from zopilot_gpu.store.synthetic import config_of, make_packed


@pytest.mark.parametrize("absmax", ["double", "bfloat16"])
def test_a_made_up_model_is_a_packed_model_like_any_other(tmp_path: Path, absmax: Absmax) -> None:
    made = make_packed("demo-size", tmp_path / "a", absmax)
    again = make_packed("demo-size", tmp_path / "b", absmax)
    assert made.manifest.files == again.manifest.files
    assert made.manifest.num_layers == 6
    found = ensure(Wanted(str(made.directory)))
    assert found.manifest == made.manifest
    tensors = load(made.directory, made.manifest)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert size == packed_bytes(read_config(made.directory), absmax)
    assert not torch.equal(tensors["layers.0.w2.packed"], tensors["layers.1.w2.packed"])


def test_one_that_was_killed_on_its_way_is_made_anew(tmp_path: Path) -> None:
    def killed(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_packed("demo-size", tmp_path / "a", "double", killed)
    (left,) = (tmp_path / "a" / "packed").iterdir()
    half = max(left.iterdir())
    half.chmod(0o644)
    half.write_bytes(half.read_bytes()[:-1])
    made = make_packed("demo-size", tmp_path / "a", "double")
    assert made.manifest.files == make_packed("demo-size", tmp_path / "b", "double").manifest.files
    check_hashes(made.directory, made.manifest, made.manifest.files)
    assert list((tmp_path / "a" / "packed").iterdir()) == [made.directory]


def test_its_logits_are_numbers_of_the_size_of_a_models(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    export(make_packed("demo-size", tmp_path, "double"), tmp_path / "exported")
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "exported", dtype=torch.bfloat16, device_map={"": "cpu"}, local_files_only=True
    )
    with torch.inference_mode():
        logits = model(torch.arange(3, 60).unsqueeze(0)).logits.float()
    assert logits.isfinite().all()
    assert 0.05 < logits.std() < 20


def test_the_full_size_is_that_of_mixtral(tmp_path: Path) -> None:
    import json

    (tmp_path / "config.json").write_text(json.dumps(config_of("mixtral-8x7b")))
    config = read_config(tmp_path)
    assert round(config.num_parameters / 1e9, 1) == 46.7
    assert [round(packed_bytes(config, absmax) / 1e9, 2) for absmax in ("double", "bfloat16", "float32")] == [
        24.49,
        25.20,
        26.65,
    ]
