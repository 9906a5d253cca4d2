"""A checkpoint that is read tensor by tensor: bf16, fp16 or fp32, or quantised by bitsandbytes already.

Knows safetensors files and transformers' names; nothing is mapped into memory, so a file that shrinks meanwhile is an error
and not the end of the process.
"""

import json
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.layout import BLOCK, GROUP, Weight, read_config
from zopilot_gpu.store.locate import weight_files
from zopilot_gpu.store.tensors import Contents, Entry, read_contents

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "U8": torch.uint8}
_READ_BYTES = 32 << 20  # a task of the reading threads
_STATE = ".quant_state.bitsandbytes__nf4"


@dataclass(frozen=True, slots=True)
class Imported:
    """A weight that bitsandbytes quantised: its codes and what makes its absmax, flat."""

    packed: torch.Tensor
    absmax: torch.Tensor  # float32, or the codes where nested
    scales: torch.Tensor | None = None
    offset: float = 0.0

    def plain_absmax(self) -> torch.Tensor:
        """The absmax in float32, as bitsandbytes computes them from the nested form."""
        if self.scales is None:
            return self.absmax
        from zopilot_gpu.store.quantise import double_table  # noqa: PLC0415  (imports bitsandbytes)

        scales = self.scales.repeat_interleave(GROUP)[: self.absmax.numel()]
        return double_table()[self.absmax.long()] * scales + self.offset


class Checkpoint:
    """The tensors of a directory. Use it in a `with` block.

    Raises:
        ModelUnavailable: from everything here: a file can't be read, is damaged, or is not what the configuration says.
    """

    def __init__(self, directory: Path, readers: Executor) -> None:
        self._directory, self._readers = directory, readers
        self.config = read_config(directory)
        self._fds: dict[Path, int] = {}
        self._entries: dict[str, tuple[Entry, Path]] = {}
        contents = [read_contents(directory / name) for name in weight_files(directory)]
        self.size = sum(item.size for item in contents)
        self._fill(contents)

    def _fill(self, contents: list[Contents]) -> None:
        for item in contents:
            for entry in item.entries:
                if entry.name in self._entries:
                    raise ModelUnavailable(detail=f"{item.path} holds {entry.name}, and so does another file.")
                self._entries[entry.name] = entry, item.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for fd in self._fds.values():
            files.close(fd)
        self._fds.clear()

    def type_of(self, name: str) -> str:
        """The type of a tensor, as safetensors names it."""
        return self._find(name)[0].dtype

    def size_of(self, name: str) -> int:
        """Bytes of a tensor."""
        entry = self._find(name)[0]
        return entry.end - entry.begin

    def form_of(self, name: str) -> str:
        """How a weight is stored: `full`, or quantised by bitsandbytes with `double` or `float32` absmax."""
        if self.type_of(name) != "U8":
            return "full"
        return "double" if f"{name}.nested_absmax" in self._entries else "float32"

    def refuse_extra(self, wanted: set[str]) -> None:
        """Refuses tensors that the packed form would leave out: parts of a `wanted` one, and a tied head, are none of them."""
        parts = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", _STATE)
        tied = {"lm_head.weight"} if self.config.tie_embeddings else set()
        known = wanted | tied | {name + part for name in wanted for part in parts}
        if extra := sorted(set(self._entries) - known):
            some = ", ".join(extra[:3])
            raise ModelUnavailable(detail=f"{self._directory} holds unexpected tensors: {some} ({len(extra)} in all).")

    def plain(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor as it is stored."""
        tensor = self._read(name)
        if tensor.shape != shape:
            raise ModelUnavailable(detail=f"{name} has the shape {tuple(tensor.shape)}, not {shape}.")
        return tensor

    def weight(self, weight: Weight) -> torch.Tensor | Imported:
        """A linear layer's weight, in full precision or as bitsandbytes left it."""
        if self.form_of(weight.name) == "full":
            return self.plain(weight.name, weight.shape)
        try:
            return self._imported(weight)
        except (KeyError, ValueError, TypeError) as error:
            raise ModelUnavailable(detail=f"{weight.name} is not NF4 as bitsandbytes stores it: {error}.") from error

    def _imported(self, weight: Weight) -> Imported:
        state = json.loads(bytes(self._read(weight.name + _STATE).tolist()))
        found = (state["quant_type"], state["blocksize"], tuple(state["shape"]))
        if found != ("nf4", BLOCK, weight.shape):
            raise ValueError(f"{found} where ('nf4', {BLOCK}, {weight.shape}) should be")
        packed, absmax = self._read(weight.name).view(-1), self._read(weight.name + ".absmax").view(-1)
        if (packed.numel(), absmax.numel()) != (weight.num_blocks * BLOCK // 2, weight.num_blocks):
            raise ValueError("another size than its shape")
        if "nested_offset" not in state:
            return Imported(packed, absmax.float())
        from zopilot_gpu.store.quantise import double_table  # noqa: PLC0415  (imports bitsandbytes)

        if state["nested_blocksize"] != GROUP or not torch.equal(self._read(weight.name + ".nested_quant_map"), double_table()):
            raise ValueError("double quantised in another way than bitsandbytes does")
        scales = self._read(weight.name + ".nested_absmax").view(-1)
        if absmax.dtype != torch.uint8 or scales.numel() != -(-weight.num_blocks // GROUP):
            raise ValueError("another number of scales than blocks need")
        return Imported(packed, absmax, scales, float(state["nested_offset"]))

    def _find(self, name: str) -> tuple[Entry, Path]:
        try:
            return self._entries[name]
        except KeyError:
            raise ModelUnavailable(detail=f"{self._directory} lacks the tensor {name}.") from None

    def _read(self, name: str) -> torch.Tensor:
        entry, path = self._find(name)
        try:
            if path not in self._fds:
                self._fds[path] = files.open_to_read(path)
            flat = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
            view, fd = memoryview(flat.numpy().data), self._fds[path]
            tasks = [
                self._readers.submit(files.read_into, fd, view[begin : begin + _READ_BYTES], entry.begin + begin)
                for begin in range(0, len(view), _READ_BYTES)
            ]
            for task in tasks:
                task.result()
        except (OSError, EOFError) as error:
            raise ModelUnavailable(detail=f"{path} can't be read: {error}.") from error
        return flat.view(TYPES[entry.dtype]).view(entry.shape)
