"""Tells one source from another in a second: sizes, headers and samples of its weights, all of its small files. No torch.

A fine-tune changes nearly every weight, so samples tell it from its base; times and inodes are not looked at, because copying a
volume changes them. What it does not notice is a flipped bit of the source: see `damaged_blobs`.
"""

import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import files
from zopilot_gpu.store.locate import weight_files
from zopilot_gpu.store.tensors import read_contents

TEXTS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
_NUM_SAMPLES = 16
_SAMPLE_BYTES = 4096
_BLOB = re.compile(r"[0-9a-f]{64}")  # the cache names a large file by its SHA-256
_THREADS = 8


def texts(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of the small files that go with the weights: configuration and tokenizer."""
    for name in files.names_in(directory):
        if name in TEXTS:
            yield name, files.read(directory / name)


def fingerprint(directory: Path) -> str:
    """A hash of the checkpoint in `directory`: 64 hexadecimal digits.

    Raises:
        ModelUnavailable: a file can't be read or is cut off.
    """
    digest = hashlib.sha256()
    try:
        parts = [part for name, content in texts(directory) for part in (name.encode(), content)]
        with ThreadPoolExecutor(_THREADS, "fingerprint") as pool:
            parts += pool.map(_sample, [directory / name for name in weight_files(directory)])
    except (OSError, EOFError) as error:
        raise ModelUnavailable(detail=f"{directory} can't be read: {error}.") from error
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _sample(path: Path) -> bytes:
    contents = read_contents(path)
    digest = hashlib.sha256(repr((path.name, contents.size, contents.entries)).encode())
    fd = files.open_to_read(path)
    try:
        begin = contents.entries[0].begin if contents.entries else contents.size
        step = max((contents.size - begin) // _NUM_SAMPLES, 1)
        for offset in range(begin, contents.size, step):
            sample = bytearray(min(_SAMPLE_BYTES, contents.size - offset))
            files.read_into(fd, memoryview(sample), offset)
            digest.update(sample)
    finally:
        files.close(fd)
    return digest.digest()


def damaged_blobs(directory: Path) -> list[str]:
    """Names of weight files whose content is not what the cache named them by. Reads everything.

    Files that the cache does not name by their hash (a plain directory) can't be checked, and are not named.
    """
    suspects = [(name, (directory / name).resolve()) for name in weight_files(directory)]
    known = [(name, path) for name, path in suspects if _BLOB.fullmatch(path.name)]
    with ThreadPoolExecutor(_THREADS, "verify") as pool:
        hashes = list(pool.map(lambda item: hash_file(item[1]), known))
    return [name for (name, path), found in zip(known, hashes, strict=True) if found != path.name]


def hash_file(path: Path) -> str:
    """SHA-256 of a file, read a piece at a time.

    Raises:
        OSError: it can't be read.
        EOFError: it has become shorter.
    """
    digest = hashlib.sha256()
    fd = files.open_to_read(path)
    try:
        size = files.size_of(fd)
        piece = memoryview(bytearray(min(files.PIECE_BYTES, size)))
        for offset in range(0, size, files.PIECE_BYTES):
            part = piece[: min(files.PIECE_BYTES, size - offset)]
            files.read_into(fd, part, offset)
            digest.update(part)
    finally:
        files.close(fd)
    return digest.hexdigest()
