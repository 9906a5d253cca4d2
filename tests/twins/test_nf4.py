"""NF4 equals bitsandbytes': the same codes and scales, and the same bits when dequantised, one weight or several in a stack."""

import json
from typing import Any

import pytest
import torch
from bitsandbytes.functional import create_dynamic_map, dequantize_4bit, quantize_4bit

from zopilot_gpu.model import linear, nf4
from zopilot_gpu.model.nf4 import NF4, Nested

SHAPES = [(64, 64), (96, 128), (33, 192), (256, 64), (128, 256), (128, 384)]  # the last three have whole groups of absmax


def weight_of(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def theirs(weight: torch.Tensor, *, nested: bool) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of `w` in a checkpoint of bitsandbytes, and what it dequantises them to."""
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    stored = {"w": packed} | {f"w.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    return stored, dequantize_4bit(packed, state)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_quantising_is_that_of_bitsandbytes(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = weight_of(shape, dtype=dtype)
    stored, full = theirs(weight, nested=False)
    own = nf4.quantise(weight)
    assert torch.equal(own.packed, stored["w"].flatten())
    assert torch.equal(own.scales(), stored["w.absmax"])
    assert torch.equal(own.dequantise(dtype), full)
    assert isinstance(own.absmax, torch.Tensor)
    assert own.absmax.dtype == dtype  # bf16 holds the absmax of bf16 weights without a loss


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("nested", [False, True])
def test_a_checkpoint_dequantises_to_the_same_bits(shape: tuple[int, int], nested: bool) -> None:  # noqa: FBT001
    stored, full = theirs(weight_of(shape), nested=nested)
    own = nf4.from_bitsandbytes("w", stored.__getitem__)
    assert torch.equal(own.dequantise(torch.bfloat16), full)
    assert isinstance(own.absmax, Nested) == (nested and shape[0] * shape[1] % (64 * 256) == 0)


def test_the_table_of_absmax_codes_is_that_of_bitsandbytes() -> None:
    assert torch.equal(nf4.nested_table(torch.device("cpu")), create_dynamic_map())


@pytest.mark.parametrize(
    ("part", "value"), [("nested_quant_map", torch.rand(256)), ("nested_blocksize", 128), ("blocksize", 128)]
)
def test_what_is_quantised_in_another_way_is_refused(part: str, value: Any) -> None:
    stored, _ = theirs(weight_of((128, 128)), nested=True)
    if isinstance(value, torch.Tensor):
        stored[f"w.{part}"] = value
    else:
        state = json.loads(bytes(stored["w.quant_state.bitsandbytes__nf4"].tolist())) | {part: value}
        stored["w.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"another way|blocks of 128"):
        nf4.from_bitsandbytes("w", stored.__getitem__)


def pieces(rows: list[int], *, nested: bool) -> list[NF4]:
    """Weights [rows, 128], each with an offset of its own when nested."""
    stored = [theirs(weight_of((count, 128), seed) * (seed + 1), nested=nested)[0] for seed, count in enumerate(rows)]
    return [nf4.from_bitsandbytes("w", one.__getitem__) for one in stored]


@pytest.mark.parametrize(
    ("rows", "nested", "form"),
    [([256, 128, 128], True, Nested), ([256, 96, 32], True, torch.Tensor), ([64, 32], False, torch.Tensor)],
)
def test_weights_laid_end_to_end_stay_what_they_are(rows: list[int], nested: bool, form: type) -> None:  # noqa: FBT001
    apart = pieces(rows, nested=nested)
    joined = nf4.join(apart, (sum(rows), 128))
    assert isinstance(joined.absmax, form)
    full = torch.cat([piece.dequantise(torch.bfloat16) for piece in apart])
    assert torch.equal(joined.dequantise(torch.bfloat16), full)
    stack = nf4.join([*apart, *apart], (2, sum(rows), 128))
    assert torch.equal(stack.dequantise(torch.bfloat16), torch.stack((full, full)))
    for one in stack.unbind():
        assert torch.equal(one.dequantise(torch.bfloat16), full)


def test_conversions_in_parts_are_those_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = weight_of((50, 192))
    whole = nf4.quantise(weight)
    full = whole.dequantise(torch.bfloat16)
    monkeypatch.setattr(nf4, "_BLOCKS_AT_ONCE", 7)
    parts = nf4.quantise(weight)
    assert torch.equal(parts.packed, whole.packed)
    assert torch.equal(parts.dequantise(torch.bfloat16), full)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_the_kernel_of_bitsandbytes_is_called_as_it_wants_to_be(num_rows: int, nested: bool) -> None:  # noqa: FBT001
    """The call that a GPU gets, on the CPU: nothing but a few roundings is between it and the plain product."""
    weight = nf4.join(pieces([256, 128, 128], nested=nested), (512, 128))
    x = weight_of((num_rows, 128), seed=9)
    plain = linear.quantised(weight)(x).float()
    kernel = linear.gemm_4bit(x, weight).float()
    assert float((kernel - plain).norm() / plain.norm()) < 5e-3
