"""Quantising on a card gives the bits that the CPU gives, so a form packed by either is the same. Run it with `make gpu`."""

from pathlib import Path

import pytest
import torch

from tests.checkpoints import make_tiny
from tests.unit.store.test_quantise import ours, values
from zopilot_gpu.store.pack import pack
from zopilot_gpu.store.quantise import Quantiser


def halves(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two codes of each byte."""
    return packed >> 4, packed & 15


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", values(torch.float32))
def test_codes_and_absmax_are_those_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    assert torch.cuda.is_available(), "these tests need a GPU"
    weight = values(dtype)[name]
    on_cpu, on_card = Quantiser(), Quantiser("cuda")
    (codes, absmax), (expected, expected_absmax) = ours(on_card, weight), ours(on_cpu, weight)
    assert torch.equal(absmax, expected_absmax)
    if dtype == torch.float32 and "boundaries" in name:  # bitsandbytes' kernel has them in few digits: either neighbour
        assert (
            max((one.int() - other.int()).abs().max() for one, other in zip(halves(codes), halves(expected), strict=True)) <= 1
        )
    else:
        assert torch.equal(codes, expected)
    on_cpu.close()
    on_card.close()


@pytest.mark.parametrize("absmax", ["double", "bfloat16", "float32"])
def test_a_packed_form_is_that_of_the_cpu(tmp_path: Path, absmax: str) -> None:
    source = make_tiny(tmp_path / "tiny")
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
    on_cpu, on_card = (
        pack(source, tmp_path / device, absmax, device, lambda _: None, lambda: False)  # type: ignore[arg-type]
        for device in ("cpu", "cuda")
    )
    assert {name: stored.sha256 for name, stored in on_card.items()} == {name: stored.sha256 for name, stored in on_cpu.items()}
