"""The Mixtral backend takes whole checkpoints only: no tensor too few, none too many, no file that the index does not name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from runners.weights import load_source
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.model.mixtral import Mixtral
from zopilot_gpu.store.locate import locate, weight_files

CPU = torch.device("cpu")


def loaded(directory: Path, **changed: Any) -> Mixtral:
    config = json.loads((directory / "config.json").read_text()) | changed
    return load_source(directory, MixtralConfig.from_json(config), torch.float32, CPU, lambda *_: None)


@pytest.fixture
def copy(tiny_mixtral: Path, tmp_path: Path) -> Path:
    """A sharded checkpoint in bf16, to be damaged."""
    return Path(shutil.copytree(tiny_mixtral, tmp_path / "copy"))


def test_sharded_sources_and_quantised_checkpoints_load_source(copy: Path) -> None:
    assert len(weight_files(copy)) > 1
    assert len(loaded(copy).layers) == 2
    assert len(loaded(locate("demo").directory).layers) == 6


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"num_hidden_layers": 1}, "unexpected tensors: model.layers.1."),
        ({"num_hidden_layers": 3}, "KeyError: 'model.layers.2."),
        ({"num_local_experts": 3}, "has the shape"),
        ({"intermediate_size": 64}, "has the shape"),
    ],
)
def test_a_checkpoint_that_is_not_what_its_config_says_is_refused(copy: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelUnavailable) as refusal:
        loaded(copy, **change)
    assert problem in str(refusal.value.detail)


def test_files_that_the_index_does_not_name_are_not_read(copy: Path) -> None:
    (copy / "consolidated.safetensors").write_bytes(b"another layout of the same weights")
    assert len(loaded(copy).layers) == 2


def test_a_damaged_file_is_refused(copy: Path) -> None:
    shard = copy / weight_files(copy)[0]
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable):
        loaded(copy)
