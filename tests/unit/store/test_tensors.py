"""Holds the reading of safetensors headers: what the library writes is understood, what no library writes is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store.tensors import plan_file, read_contents


def test_a_file_of_the_library_is_understood(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3, 5), "b": torch.ones(7, dtype=torch.bfloat16)}, tmp_path / "x.safetensors", {"k": "v"})
    found = read_contents(tmp_path / "x.safetensors")
    assert {entry.name: (entry.dtype, entry.shape, entry.end - entry.begin) for entry in found.entries} == {
        "a": ("F32", (3, 5), 60),
        "b": ("BF16", (7,), 14),
    }


def test_the_library_understands_a_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    head, contents = plan_file(path, [("a", "F32", (2, 2)), ("b", "U8", (3,))])
    path.write_bytes(head + bytes(19))
    assert len(head) % 4096 == 0
    assert read_contents(path) == contents
    with safe_open(path, "pt") as file:
        assert file.get_tensor("a").shape == (2, 2)
        assert file.get_tensor("b").dtype == torch.uint8


def tensor(**changes: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | changes


BAD: dict[str, Any] = {
    "another type": {"a": tensor(dtype="I64")},
    "a negative count": {"a": tensor(shape=[-4])},
    "a count that is no number": {"a": tensor(shape=["4"])},
    "a shape that is no list": {"a": tensor(shape=4)},
    "another size": {"a": tensor(shape=[5])},
    "behind the end": {"a": tensor(shape=[5], data_offsets=[0, 5])},
    "a gap": {"a": tensor(), "b": tensor(shape=[1], data_offsets=[3, 4])},
    "not all of the file": {"a": tensor(shape=[3], data_offsets=[0, 3])},
    "one offset": {"a": tensor(data_offsets=[0])},
    "no type": {"a": {"shape": [4], "data_offsets": [0, 4]}},
    "a list": [1],
    "a number for a tensor": {"a": 1},
}


@pytest.mark.parametrize("header", BAD.values(), ids=BAD)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    with pytest.raises(ModelUnavailable, match=r"x\.safetensors is no sound safetensors file"):
        read_contents(path)


@pytest.mark.parametrize(
    "content", [b"", b"1234567", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x02" + bytes(7) + b"{", b"\x02" + bytes(7) + b"[["]
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelUnavailable, match="no sound safetensors file"):
        read_contents(tmp_path / "x.safetensors")
