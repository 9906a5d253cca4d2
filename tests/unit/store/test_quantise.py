"""Holds our quantisation to bitsandbytes' own, bit by bit."""

from collections.abc import Iterator

import pytest
import torch

from zopilot_gpu.model.nf4 import CODES
from zopilot_gpu.store.quantise import Quantiser, _on_gpu, compress


@pytest.fixture(scope="module")
def quantiser() -> Iterator[Quantiser]:
    found = Quantiser(num_threads=3)
    yield found
    found.close()


def ours(quantiser: Quantiser, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed, absmax = torch.empty(weight.numel() // 2, dtype=torch.uint8), torch.empty(weight.numel() // 64)
    quantiser(weight, packed, absmax)
    return packed, absmax


def near_the_boundaries() -> torch.Tensor:
    codes = torch.tensor(CODES)
    at = (codes[1:] + codes[:-1]) / 2
    near = torch.cat([at, at.nextafter(torch.tensor(2.0)), at.nextafter(torch.tensor(-2.0)), codes])
    return torch.cat([near, torch.zeros(192 - near.numel())]).view(3, 64).index_fill(1, torch.tensor([63]), 1.0)


def values(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return {
        "normal": (torch.randn(700, 192) * 0.02).to(dtype),
        "heavy tails": (torch.randn(64, 512) ** 5).clamp(-6e4, 6e4).to(dtype),
        "one piece and a bit": torch.randn(511, 65).mul(3).view(-1)[: 511 * 64].to(dtype),
        "zeros": torch.zeros(4, 64, dtype=dtype),
        "tiny and zero": (torch.randn(8, 64) * 1e-7).to(dtype),
        "boundaries": near_the_boundaries().to(dtype),
        "boundaries, scaled": (near_the_boundaries() * 0.37).to(dtype),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", values(torch.float32))
def test_codes_and_absmax_are_bitsandbytes_own(quantiser: Quantiser, name: str, dtype: torch.dtype) -> None:
    from bitsandbytes.functional import quantize_4bit

    weight = values(dtype)[name]
    packed, absmax = ours(quantiser, weight)
    theirs, state = quantize_4bit(weight, quant_type="nf4", blocksize=64)
    assert torch.equal(packed, theirs.view(-1))
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("name", values(torch.float32))
def test_the_way_of_a_gpu_gives_the_same(quantiser: Quantiser, name: str) -> None:
    """With bitsandbytes' kernel for the CPU; with that of a GPU in `tests/gpu`."""
    weight = values(torch.bfloat16)[name]
    packed, absmax = torch.empty(weight.numel() // 2, dtype=torch.uint8), torch.empty(weight.numel() // 64)
    _on_gpu(weight.reshape(-1), packed, absmax)
    for found, expected in zip((packed, absmax), ours(quantiser, weight), strict=True):
        assert torch.equal(found, expected)


def test_every_bf16_against_every_kind_of_absmax(quantiser: Quantiser) -> None:
    from bitsandbytes.functional import quantize_4bit

    every = torch.arange(1 << 15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    below_1 = every[every < 1]
    below_1 = torch.cat([below_1, -below_1])[: len(below_1) * 2 // 63 * 63].view(-1, 63)
    for largest in (1.0, 1.0078125, 1.328125, 1.5, 1.9921875):
        weight = torch.cat([below_1, torch.full((len(below_1), 1), largest, dtype=torch.bfloat16)], dim=1)
        packed, _ = ours(quantiser, weight)
        assert torch.equal(packed, quantize_4bit(weight, quant_type="nf4", blocksize=64)[0].view(-1))


def test_double_quantisation_is_bitsandbytes_own(quantiser: Quantiser) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    weight = (torch.randn(256, 256) * 0.02).to(torch.bfloat16)
    _, absmax = ours(quantiser, weight)
    blocks = absmax.numel()
    codes, scales, offsets = torch.empty(blocks, dtype=torch.uint8), torch.empty(blocks // 256), torch.empty(blocks // 256)
    compress(absmax, codes, scales, offsets)
    theirs, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    assert torch.equal(codes, state.absmax)
    assert torch.equal(scales, state.state2.absmax)
    assert offsets.tolist() == [state.offset.item()] * (blocks // 256)
    assert dequantize_4bit(theirs, state).isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_refused(quantiser: Quantiser, bad: float) -> None:
    weight = torch.ones(4, 64)
    weight[2, 7] = bad
    with pytest.raises(ValueError, match="no numbers"):
        ours(quantiser, weight)


def test_a_broken_block_is_refused(quantiser: Quantiser) -> None:
    with pytest.raises(ValueError, match="blocks of 64"):
        ours(quantiser, torch.ones(3, 50))
