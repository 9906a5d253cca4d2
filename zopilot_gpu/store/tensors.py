"""Safetensors files as tables of contents: which tensor lies where. Knows the format; holds no tensor data and no torch.

Format: eight bytes with the length of a JSON header, the header, the data. Ours is padded so that data begin at a multiple of
4,096. Everything in a header is checked here; whoever reads by it afterwards stays inside the file.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files

ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1}
_MAX_HEADER_BYTES = 64 << 20
_ALIGN = 4096


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor in a file: its type as safetensors names it, and where its bytes begin and end in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What a safetensors file holds."""

    path: Path
    size: int
    entries: tuple[Entry, ...]


def read_contents(path: Path) -> Contents:
    """The table of contents of a file.

    Raises:
        ModelUnavailable: it can't be read, or is no sound safetensors file: cut off, too long, overlapping, or of other types.
    """
    try:
        fd = files.open_to_read(path)
        try:
            size = files.size_of(fd)
            length = bytearray(8)
            files.read_into(fd, memoryview(length), 0)
            begin = 8 + int.from_bytes(length, "little")
            if begin > min(size, _MAX_HEADER_BYTES):
                raise ValueError("the header ends behind the file")
            header = bytearray(begin - 8)
            files.read_into(fd, memoryview(header), 8)
        finally:
            files.close(fd)
        return Contents(path, size, _entries(json.loads(header), begin, size))
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        todo = "Look at the volume." if isinstance(error, OSError) else "Fetch it anew."
        raise ModelUnavailable(detail=f"{path} is no sound safetensors file: {error}. {todo}") from error


def _entries(header: dict[str, dict[str, Any]], begin: int, size: int) -> tuple[Entry, ...]:
    header.pop("__metadata__", None)
    entries = []
    for name, fields in header.items():
        dtype, shape = fields["dtype"], fields["shape"]
        first, last = fields["data_offsets"]
        if dtype not in ITEM_BYTES:
            raise ValueError(f"{name} is of type {dtype}")
        if not isinstance(shape, list) or not all(type(count) is int and count >= 0 for count in [*shape, first, last]):
            raise ValueError(f"{name} has no sound shape")
        if last - first != math.prod(shape) * ITEM_BYTES[dtype]:
            raise ValueError(f"{name} has another size than its shape")
        entries.append(Entry(name, dtype, tuple(shape), begin + first, begin + last))
    entries.sort(key=lambda entry: entry.begin)
    ends = [begin, *(entry.end for entry in entries)]
    if ends[-1] != size or any(entry.begin != end for entry, end in zip(entries, ends, strict=False)):
        raise ValueError("its tensors do not fill it without gaps")
    return tuple(entries)


def plan_file(path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, Contents]:
    """The head of a file to be written at `path` with these (name, type, shape), and its table of contents."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    ends = [0]
    for name, dtype, shape in tensors:
        ends.append(ends[-1] + math.prod(shape) * ITEM_BYTES[dtype])
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": ends[-2:]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text = text.ljust(-(-(8 + len(text)) // _ALIGN) * _ALIGN - 8)
    head = len(text).to_bytes(8, "little") + text
    entries = [
        Entry(name, dtype, shape, len(head) + begin, len(head) + end)
        for (name, dtype, shape), begin, end in zip(tensors, ends, ends[1:], strict=False)
    ]
    return head, Contents(path, len(head) + ends[-1], tuple(entries))
