"""Which backend runs is resolved in one place, with its reason."""

import json
from pathlib import Path

import pytest

from runners.background import choose_backend
from runners.device import Device, compute_dtype, why_not_mixtral
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.locate import Located, locate

CPU = Device("cpu", "test")


@pytest.mark.parametrize(
    ("wanted", "obstacle", "name", "why"),
    [
        ("plain", None, "plain", "ZOPILOT_GPU_RUNNER=plain"),
        ("plain", "it is too large", "plain", "ZOPILOT_GPU_RUNNER=plain"),
        ("auto", None, "mixtral", "the model is a Mixtral, and its weights fit dequantised"),
        ("auto", "it is too large", "plain", "it is too large"),
        ("mixtral", None, "mixtral", "the model is a Mixtral, and its weights fit dequantised"),
    ],
)
def test_the_choice_and_its_reason(wanted: str, obstacle: str | None, name: str, why: str) -> None:
    assert choose_backend(wanted, obstacle) == (name, why)


def test_a_choice_that_can_not_be_is_an_error_with_the_reason() -> None:
    with pytest.raises(ModelUnavailable) as refusal:
        choose_backend("mixtral", "it is too large")
    assert refusal.value.detail == "ZOPILOT_GPU_RUNNER=mixtral, but it is too large."


def changed(directory: Path, **fields: object) -> Located:
    """The demo model's config with some fields changed; no weights."""
    demo = locate("demo")
    config = json.loads((demo.directory / "config.json").read_text()) | fields
    (directory / "config.json").write_text(json.dumps(config))
    return Located("changed", directory, None, str(config["model_type"]))


def test_the_demo_model_on_a_cpu_suits() -> None:
    assert why_not_mixtral(locate("demo"), CPU) is None
    assert compute_dtype(CPU).itemsize == 4


def test_another_architecture_does_not(tmp_path: Path) -> None:
    assert "'llama'" in str(why_not_mixtral(changed(tmp_path, model_type="llama"), CPU))


def test_a_mixtral_with_a_part_of_its_own_does_not(tmp_path: Path) -> None:
    assert "sliding-window" in str(why_not_mixtral(changed(tmp_path, sliding_window=4096), CPU))


def test_mixtral_8x7b_does_not_fit_dequantised(tmp_path: Path) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    full = changed(tmp_path, **sizes, num_key_value_heads=8, head_dim=128, vocab_size=32_000)
    assert "186.8 GB dequantised" in str(why_not_mixtral(full, CPU))
