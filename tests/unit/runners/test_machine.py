"""Which device is chosen on which machine, and what is said where its GPU can't be used: one sentence, with the remedy."""

from dataclasses import replace

import pytest

from runners.device import choose_device
from runners.machine import Card, Machine, driver_note, look, runs_on, span, why_no_gpu
from zopilot_gpu.errors import ModelUnavailable

H100 = Card("NVIDIA H100 80GB HBM3", (9, 0), 85_000_000_000, 84_000_000_000)
RTX_5090 = Card("NVIDIA GeForce RTX 5090", (12, 0), 34_000_000_000, 33_000_000_000)
DEFAULT = Machine(
    "2.6.0+cu124", (12, 4), ("sm_50", "sm_60", "sm_70", "sm_80", "sm_86", "sm_90"), 64 << 30, "550.54.15", (12, 4), H100
)
BLACKWELL = replace(
    DEFAULT,
    torch="2.8.0+cu128",
    cuda=(12, 8),
    archs=("sm_70", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"),
    driver="570.86.15",
    driver_cuda=(12, 8),
)
NO_DRIVER = replace(DEFAULT, driver=None, driver_cuda=None, card=None)

REFUSED = {
    "5090 on the default image": (replace(DEFAULT, card=RTX_5090), "torch 2.6.0+cu124 was built for sm_50 to sm_90"),
    "and what to use": (replace(DEFAULT, card=RTX_5090), "use the Blackwell image"),
    "old card on the new image": (replace(BLACKWELL, card=Card("GTX 1080", (6, 1), 1, 1)), "use the default image"),
    "no image for it": (replace(DEFAULT, card=Card("Tesla K80", (3, 7), 1, 1)), "take a newer card"),
    "old driver": (
        replace(DEFAULT, driver="470.256.02", driver_cuda=(11, 4), card=None, problem="The NVIDIA driver is too old"),
        "driver 470.256.02 speaks CUDA 11.4, and torch 2.6.0+cu124 needs CUDA 12: take a host with driver 525.60.13",
    ),
    "driver without its number": (replace(DEFAULT, driver=None, driver_cuda=(11, 8), card=None), "driver speaks CUDA 11.8"),
    "hidden": (replace(DEFAULT, card=None, problem="No CUDA GPUs are available"), "No CUDA GPUs are available): look"),
    "no driver": (NO_DRIVER, "docker run --gpus all"),
    "torch for CPUs": (replace(NO_DRIVER, cuda=None, archs=()), "built without CUDA"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_compute_is_told_in_one_sentence(case: str) -> None:
    machine, told = REFUSED[case]
    trouble = why_no_gpu(machine)
    assert trouble is not None
    sentence = str(trouble)
    assert told in sentence
    assert "\n" not in sentence
    assert "  " not in sentence
    assert sentence.endswith(".")
    with pytest.raises(ModelUnavailable, match="ZOPILOT_GPU_DEVICE=cuda") as refusal:
        choose_device("cuda", machine)
    assert sentence in str(refusal.value.detail)


def test_auto_is_the_cpu_only_where_no_gpu_is_to_be_seen() -> None:
    assert choose_device("auto", DEFAULT).name == choose_device("cuda", DEFAULT).name == "cuda"
    assert choose_device("auto", NO_DRIVER).name == "cpu"
    assert choose_device("auto", NO_DRIVER).reason != choose_device("cpu", DEFAULT).reason
    with pytest.raises(ModelUnavailable, match="ZOPILOT_GPU_DEVICE=cpu does without"):
        choose_device("auto", replace(DEFAULT, card=RTX_5090))


def test_cards_that_each_image_is_for() -> None:
    for capability in ((8, 0), (8, 6), (8, 9), (9, 0)):
        assert why_no_gpu(replace(DEFAULT, card=replace(H100, capability=capability))) is None
        assert why_no_gpu(replace(BLACKWELL, card=replace(H100, capability=capability))) is None
    assert why_no_gpu(replace(BLACKWELL, card=RTX_5090)) is None


def test_code_runs_on_its_own_generation_and_ptx_on_newer_ones() -> None:
    assert runs_on(("sm_86",), (8, 9))
    assert not runs_on(("sm_86",), (8, 0))
    assert not runs_on(("sm_90a",), (10, 0))
    assert runs_on(("sm_80", "compute_90"), (12, 0))
    assert not runs_on(("nonsense",), (8, 0))
    assert (span(("sm_50", "sm_90")), span(("sm_50",)), span(())) == ("sm_50 to sm_90", "sm_50", "no GPU")


def test_an_older_driver_of_the_same_major_version_is_a_note() -> None:
    older = replace(DEFAULT, driver="535.161.08", driver_cuda=(12, 2))
    assert why_no_gpu(older) is None
    assert "driver 550.54.14 or newer" in str(driver_note(older))
    assert driver_note(DEFAULT) is None
    assert driver_note(NO_DRIVER) is None


def test_this_machine_can_be_looked_at() -> None:
    found = look(at_card=False)
    assert found.torch.startswith("2.")
    assert found.archs
    assert found.memory_bytes > 1 << 30
