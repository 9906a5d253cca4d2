"""Holds where a step's draws are one launch, and why not elsewhere."""

import pytest
import torch

from zopilot_gpu.engine import draws

GPU = torch.device("cuda")


def test_on_a_cpu_the_sampler_draws() -> None:
    assert draws.choose_kernel(32_000, torch.device("cpu")) == (False, "the kernel is for a GPU")


@pytest.mark.parametrize(
    ("capability", "triton", "vocab_size", "chosen", "why"),
    [
        ((9, 0), True, 32_000, True, "a GPU"),
        ((8, 0), True, draws.MOST_VOCAB, True, "a GPU"),
        ((7, 5), True, 32_000, False, "sm_80"),
        ((9, 0), False, 32_000, False, "triton"),
        ((9, 0), True, draws.MOST_VOCAB + 1, False, "262145"),
    ],
)
def test_on_a_gpu_the_kernel_draws_where_it_can(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], vocab_size: int, why: str, *, triton: bool, chosen: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(draws, "find_spec", lambda name: triton or None)
    found, reason = draws.choose_kernel(vocab_size, GPU)
    assert found == chosen
    assert why in reason
