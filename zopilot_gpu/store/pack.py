"""Turns a checkpoint into the packed files. Knows tensors and one directory; refuses to publish anything.

    read (threads) ──▶ quantise into the file's buffer (all cores) ──▶ hash, write, sync (one thread) ──▶ record

Tensor by tensor, file by file. In memory at any time: the buffers of two files, two weights of the source, and little else,
however many layers there are: 2.3 GB for Mixtral-8x7B, libraries included. A finished file leaves a record with its hash beside
it, so that a later try in the same directory goes on behind it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import torch

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.fingerprint import hash_file
from zopilot_gpu.store.layout import BLOCK, GROUP, Absmax, File, Stack, Weight, plan
from zopilot_gpu.store.manifest import Stored
from zopilot_gpu.store.publish import Interrupted
from zopilot_gpu.store.quantise import Quantiser, compress
from zopilot_gpu.store.source import TYPES, Checkpoint, Imported
from zopilot_gpu.store.tensors import Contents, plan_file

_READERS = 4
_RECORD = ".done"
Told = Callable[[int], None]  # bytes of the source that are behind us
Views = dict[str, torch.Tensor]


def pack(source: Path, target: Path, absmax: Absmax, device: str, told: Told, stopped: Callable[[], bool]) -> dict[str, Stored]:
    """Fills `target` with the packed files of the checkpoint `source`; those that an earlier try left finished stay.

    Raises:
        ModelUnavailable: the source is at fault.
        OSError: `target` is.
        Interrupted: `stopped` said so.
    """
    with ExitStack() as stack:
        readers = stack.enter_context(ThreadPoolExecutor(_READERS, "read"))
        ahead = stack.enter_context(ThreadPoolExecutor(1, "ahead"))
        writer = stack.enter_context(ThreadPoolExecutor(1, "write"))
        checkpoint = stack.enter_context(Checkpoint(source, readers))
        layout = plan(checkpoint.config)
        checkpoint.refuse_extra(
            {weight.name for file in layout for item in file.stacks for weight in item.weights}
            | {item.source for file in layout for item in file.plain}
        )
        packer = _Packer(checkpoint, target, absmax, Quantiser(device), ahead)
        stack.callback(packer.quantiser.close)
        written: list[tuple[File, Future[Stored]]] = []
        for file in layout:
            if len(written) > 1:
                written[-2][1].result()  # its buffer is free again
            done = _finished(target, file)
            if done is None:
                head, contents, buffer = packer.fill(file, told, stopped)
                written.append((file, writer.submit(_write, head, contents, buffer)))
            else:
                told(packer.source_bytes(file))
                written.append((file, writer.submit(lambda stored: stored, done)))
        return {file.name: stored.result() for file, stored in written}


class _Packer:
    def __init__(
        self, checkpoint: Checkpoint, target: Path, absmax: Absmax, quantiser: Quantiser, ahead: ThreadPoolExecutor
    ) -> None:
        self._checkpoint, self._target, self._absmax, self.quantiser, self._ahead = checkpoint, target, absmax, quantiser, ahead

    def source_bytes(self, file: File) -> int:
        names = [item.source for item in file.plain] + [weight.name for item in file.stacks for weight in item.weights]
        return sum(self._checkpoint.size_of(name) for name in names)

    def fill(self, file: File, told: Told, stopped: Callable[[], bool]) -> tuple[bytes, Contents, torch.Tensor]:
        """The content of a packed file, in memory."""
        weights = self._read_ahead([weight for stack in file.stacks for weight in stack.weights])
        forms = {stack.name: self._form(stack) for stack in file.stacks}
        head, contents = plan_file(self._target / file.name, file.tensors(forms))
        buffer = torch.empty(contents.size - len(head), dtype=torch.uint8)
        views = {
            entry.name: buffer[entry.begin - len(head) : entry.end - len(head)].view(TYPES[entry.dtype])
            for entry in contents.entries
        }
        for item in file.plain:
            views[item.name].copy_(self._checkpoint.plain(item.source, item.shape).view(-1))
            told(self._checkpoint.size_of(item.source))
        for stack in file.stacks:
            begin = 0
            for weight in stack.weights:
                if stopped():
                    raise Interrupted
                self._one(next(weights), weight, forms[stack.name], _parts(views, stack, begin, weight))
                begin += weight.num_blocks
                told(self._checkpoint.size_of(weight.name))
        return head, contents, buffer

    def _read_ahead(self, weights: list[Weight]) -> Iterator[torch.Tensor | Imported]:
        """The weights in order; while one is used, the next is read."""
        coming = [self._ahead.submit(self._checkpoint.weight, weight) for weight in weights[:1]]
        for following in [*weights[1:], None]:
            now = coming.pop()
            if following is not None:
                ready = now.result()
                coming.append(self._ahead.submit(self._checkpoint.weight, following))
                yield ready
            else:
                yield now.result()

    def _form(self, stack: Stack) -> Absmax:
        """How the absmax of a stack are stored: what a quantised source has, or what was asked for, where that goes."""
        found = {self._checkpoint.form_of(weight.name) for weight in stack.weights}
        if found == {"full"}:
            wanted: Absmax = "float32" if self._absmax == "bfloat16" and not self._is_bf16(stack) else self._absmax
        else:
            wanted = "double" if found == {"double"} else "float32"
        return stack.possible(wanted)

    def _is_bf16(self, stack: Stack) -> bool:
        return all(self._checkpoint.type_of(weight.name) == "BF16" for weight in stack.weights)

    def _one(self, found: torch.Tensor | Imported, weight: Weight, form: Absmax, views: Views) -> None:
        if isinstance(found, Imported):
            _copy(found, form, views)
            return
        absmax = views["absmax"] if form == "float32" else torch.empty(weight.num_blocks)
        try:
            self.quantiser(found, views["packed"], absmax)
        except ValueError as error:
            raise ModelUnavailable(detail=f"{weight.name} {error}.") from error
        if form == "double":
            compress(absmax, views["absmax_codes"], views["absmax_scales"], views["absmax_offsets"])
        elif form == "bfloat16":
            views["absmax"].copy_(absmax)


def _parts(views: Views, stack: Stack, begin: int, weight: Weight) -> Views:
    """The parts of the stack's tensors that belong to a weight whose first block is number `begin`."""
    parts = {}
    for name, view in views.items():
        if name.startswith(f"{stack.name}."):
            suffix = name.removeprefix(f"{stack.name}.")
            per_block, blocks = {"packed": (BLOCK // 2, 1), "absmax_scales": (1, GROUP), "absmax_offsets": (1, GROUP)}.get(
                suffix, (1, 1)
            )
            first, last = begin // blocks * per_block, (begin + weight.num_blocks) // blocks * per_block
            parts[suffix] = view[first:last]
    return parts


def _copy(found: Imported, form: Absmax, views: Views) -> None:
    views["packed"].copy_(found.packed)
    if form == "double" and found.scales is not None:
        views["absmax_codes"].copy_(found.absmax)
        views["absmax_scales"].copy_(found.scales)
        views["absmax_offsets"].fill_(found.offset)
    else:
        views["absmax"].copy_(found.plain_absmax())


def _write(head: bytes, contents: Contents, buffer: torch.Tensor) -> Stored:
    data = memoryview(buffer.numpy().data)
    digest = hashlib.sha256(head)
    digest.update(data)
    files.remove(contents.path)  # what an earlier try left unfinished
    files.write_new(contents.path, [head, data])
    stored = Stored(contents.size, digest.hexdigest(), [(entry.name, entry.dtype, entry.shape) for entry in contents.entries])
    record = contents.path.with_suffix(_RECORD)
    files.remove(record)
    files.write_new(record, [json.dumps(asdict(stored)).encode()])
    return stored


def _finished(target: Path, file: File) -> Stored | None:
    """The record of a file that an earlier try has finished, if the file is still what the record says."""
    path = target / file.name
    try:
        record = json.loads(files.read(path.with_suffix(_RECORD)))
        tensors = [(name, dtype, tuple(shape)) for name, dtype, shape in record["tensors"]]
        stored = Stored(record["size"], record["sha256"], tensors)
        return stored if files.status(path).st_size == stored.size and hash_file(path) == stored.sha256 else None
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
