"""Which backend runs is resolved in one place, with its reason."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from runners import device as devices
from runners.background import choose_backend
from runners.device import Device, Form, choose_form, choose_threads, compute_dtype, form_of, keeps_of, kv_dtype
from runners.memory import Keeps, sum_of
from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.model.config import MixtralConfig
from zopilot_gpu.store.locate import Located, locate

CPU = Device("cpu", "test")
GPU = Device("cuda", "test")


FITS = Form("nf4", "its weights fit in NF4")
TOO_LARGE = Form(None, "it is too large", fits=False)
OTHER = Form(None, "it is no Mixtral")


@pytest.mark.parametrize(
    ("wanted", "form", "name", "why"),
    [
        ("plain", FITS, "plain", "ZOPILOT_GPU_RUNNER=plain"),
        ("plain", TOO_LARGE, "plain", "ZOPILOT_GPU_RUNNER=plain"),
        ("auto", OTHER, "plain", "it is no Mixtral"),
        ("auto", FITS, "mixtral", "the model is a Mixtral, and its weights fit in NF4"),
        ("mixtral", FITS, "mixtral", "the model is a Mixtral, and its weights fit in NF4"),
    ],
)
def test_the_choice_and_its_reason(wanted: str, form: Form, name: str, why: str) -> None:
    assert choose_backend(wanted, form) == (name, why)


def test_a_choice_that_can_not_be_is_an_error_with_the_reason() -> None:
    with pytest.raises(ModelUnavailable) as refusal:
        choose_backend("mixtral", TOO_LARGE)
    assert refusal.value.detail == "ZOPILOT_GPU_RUNNER=mixtral, but it is too large."


def test_what_does_not_fit_is_not_left_to_the_plain_backend_either() -> None:
    with pytest.raises(ModelUnavailable) as refusal:
        choose_backend("auto", TOO_LARGE)
    assert refusal.value.detail == "It is too large: take a device with more memory, or free this one."


def changed(directory: Path, **fields: object) -> Located:
    """The demo model's config with some fields changed; no weights."""
    demo = locate("demo")
    config = json.loads((demo.directory / "config.json").read_text()) | fields
    (directory / "config.json").write_text(json.dumps(config))
    return Located("changed", directory, None, str(config["model_type"]))


def test_the_demo_model_is_held_dequantised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_free_bytes", lambda device: 1 << 30)
    for device in (CPU, GPU):
        form = choose_form(locate("demo"), device)
        assert form.name == "dequantised"
        assert form.reason.endswith("1.07 GB free)")
    assert compute_dtype(CPU).itemsize == 4


def test_another_architecture_does_not_suit(tmp_path: Path) -> None:
    form = choose_form(changed(tmp_path, model_type="llama"), CPU)
    assert form.name is None
    assert "'llama'" in form.reason


def test_a_mixtral_with_a_part_of_its_own_does_not(tmp_path: Path) -> None:
    form = choose_form(changed(tmp_path, sliding_window=4096), CPU)
    assert form.name is None
    assert "sliding-window" in form.reason


@pytest.mark.parametrize(
    ("device", "free_gb", "name", "reason"),
    [
        (CPU, 320, "dequantised", "its weights fit dequantised (186.81 GB, 320.00 GB free)"),
        (CPU, 300, "nf4", "its weights fit in NF4 (25.76 GB, and 2.07 GB to work with 4096 tokens; 300.00 GB free)"),
        (CPU, 27, None, "its weights do not fit in NF4 (25.76 GB, and 2.07 GB to work with 4096 tokens; 27.00 GB free)"),
        (GPU, 140, "nf4", "its weights fit in NF4 (25.21 GB, and 1.54 GB to work with 4096 tokens; 140.00 GB free)"),
        (
            GPU,
            26,
            None,
            (
                "its weights fit in NF4 once they are packed, by zopilot-gpu prepare "
                "(24.95 GB, and 0.76 GB to work with 4096 tokens; 26.00 GB free)"
            ),
        ),
        (
            GPU,
            25.6,
            None,
            (
                "its weights do not fit in NF4 (24.95 GB, and 0.76 GB to work with 4096 tokens; 25.60 GB free); "
                "with ZOPILOT_GPU_KV_DTYPE=fp8 they would"
            ),
        ),
        (GPU, 20, None, "its weights do not fit in NF4 (24.95 GB, and 0.76 GB to work with 4096 tokens; 20.00 GB free)"),
    ],
)
def test_how_mixtral_8x7b_is_held_and_why(
    device: Device, free_gb: float, name: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    full = changed(tmp_path, **sizes, num_key_value_heads=8, head_dim=128, vocab_size=32_000, max_position_embeddings=32_768)
    monkeypatch.setattr(devices, "_free_bytes", lambda device: int(free_gb * 1e9))
    assert choose_form(full, device) == Form(name, reason, fits=name is not None)  # type: ignore[arg-type]


def test_a_card_of_24_gib_holds_8x7b_where_the_sum_says_so(tmp_path: Path) -> None:
    """Packed, double quantised, with keys and values in fp8 and the embedding in the host's memory; and not a byte less."""
    sizes = MixtralConfig(32_000, 4096, 14_336, 32, 32, 8, 128, 8, 2, 1e6, 1e-5, 32_768, tie_embeddings=False)
    (tmp_path / "manifest.json").write_text('{"absmax": "double"}')
    keeps = keeps_of(tmp_path, kv_dtype("fp8", GPU))
    assert keeps == Keeps("double", 1, is_packed=True)
    needed = sum_of(sizes, 2, keeps, lean=True)
    total = needed.total(4096)
    assert sum(size for _, size in needed.items) + 4096 * needed.kv_bytes_per_token == total
    assert needed.weights_bytes < 24.6e9
    assert total < 23.65 * 2**30 - 0.42 * 2**30  # what such a card has, less its context
    form = form_of(sizes, GPU, total, keeps)
    assert (form.name, form.is_lean) == ("nf4", True)
    assert form_of(sizes, GPU, total - 1, keeps) == replace(
        form,
        name=None,
        fits=False,
        is_lean=False,
        reason=f"its weights do not fit in NF4 (24.27 GB, and 0.50 GB to work with 4096 tokens; {total / 1e9:.2f} GB free)",
    )
    in_bf16 = form_of(sizes, GPU, total, replace(keeps, kv_itemsize=2))
    assert in_bf16.name is None
    assert in_bf16.reason.endswith("; with ZOPILOT_GPU_KV_DTYPE=fp8 they would")
    usual = form_of(sizes, GPU, 40 * 2**30, keeps)
    assert (usual.name, usual.is_lean) == ("nf4", False)


def test_a_small_model_on_a_cpu_gets_one_thread() -> None:
    small = MixtralConfig.from_json(json.loads((locate("demo").directory / "config.json").read_text()))
    large = replace(small, num_layers=1000)
    assert choose_threads(small, CPU) == 1
    assert choose_threads(large, CPU) == choose_threads(small, GPU) == torch.get_num_threads()
