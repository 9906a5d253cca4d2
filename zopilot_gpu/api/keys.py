"""Who the callers are: named keys, from the environment and from a file that is read again when it changes.

Knows names, SHA-256 digests and limits; refuses to keep or to log a key itself. The file is TOML or JSON (docs/operations.md):

    [[keys]]
    name = "ledger"
    sha256 = "..."              # or key = "..."; a list of either while one is replaced by another
    requests_per_minute = 600   # all limits are optional
    concurrent = 16
    tokens_per_minute = 200000

A file that can't be read, while the service runs, changes nothing: the keys stay as they were.
"""

import functools
import hashlib
import hmac
import json
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from zopilot_gpu import log
from zopilot_gpu.settings import Settings, SettingsError

_log = log.get(__name__)
_LOOK_AGAIN_S = 1.0
_MOST_BYTES = 1 << 20
_Secret = Annotated[str, StringConstraints(strip_whitespace=True, min_length=8, max_length=512)]
_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$")]
_Count = Annotated[int, Field(ge=1)]


class KeysError(SettingsError):
    """A file of keys is not as it should be; the text says where, without what it says there."""


@dataclass(frozen=True, slots=True)
class Key:
    """One caller. `owner` marks what is its own, in the prefix cache and in the waiting line; None is no limit."""

    name: str
    digests: tuple[bytes, ...] = field(repr=False)
    owner: bytes = field(repr=False)
    requests_per_minute: int | None = None
    concurrent: int | None = None
    tokens_per_minute: int | None = None


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    key: _Secret | list[_Secret] = []
    sha256: _Digest | list[_Digest] = []
    requests_per_minute: _Count | None = Field(default=None, le=100_000)
    concurrent: _Count | None = Field(default=None, le=100_000)
    tokens_per_minute: _Count | None = Field(default=None, le=1_000_000_000)

    @model_validator(mode="after")
    def _has_a_key(self) -> "_Entry":
        if not self.digests():
            raise ValueError("has neither key nor sha256")
        return self

    def digests(self) -> tuple[bytes, ...]:
        keys = [self.key] if isinstance(self.key, str) else self.key
        hashes = [self.sha256] if isinstance(self.sha256, str) else self.sha256
        return (*(digest_of(key.encode()) for key in keys), *(bytes.fromhex(one) for one in hashes))


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    keys: list[_Entry] = Field(min_length=1, max_length=1000)


class KeyRing:
    """The valid keys as of now.

    Args:
        named: keys that never change.
        file: keys that may; looked at when a request comes, at most once a second.

    Raises:
        KeysError: the file can't be read.
    """

    def __init__(self, named: Iterable[Key] = (), file: Path | None = None) -> None:
        self._fixed = tuple(named)
        self._file = file
        self._seen = None if file is None else _version(file)
        self._next_look_s = 0.0
        self._take([] if file is None else read_file(file))

    @classmethod
    def of(cls, keys: Iterable[str], file: Path | None = None) -> "KeyRing":
        """The ring of `key-1`, `key-2` ... and those in `file`."""
        digests = [digest_of(key.encode()) for key in keys]
        return cls([Key(f"key-{number}", (digest,), digest) for number, digest in enumerate(digests, 1)], file)

    @property
    def is_open(self) -> bool:
        """Whether there are no keys at all, because anonymous use was allowed on purpose."""
        return not self._fixed and self._file is None

    def find(self, digest: bytes) -> Key | None:
        """The key with this digest. Every digest is compared, in constant time, whichever matches."""
        self._look_again()
        found = None
        for key in self._keys:
            for known in key.digests:
                if hmac.compare_digest(digest, known):
                    found = key
        return found

    def of_owner(self, owner: bytes) -> Key | None:
        """The key that `owner` marks, as it is now; None once it is gone."""
        self._look_again()
        return self._owners.get(owner)

    def _look_again(self) -> None:
        now_s = time.monotonic()
        if self._file is None or now_s < self._next_look_s:
            return
        self._next_look_s = now_s + _LOOK_AGAIN_S
        version = _version(self._file)
        if version == self._seen:
            return
        self._seen = version
        try:
            self._take(read_file(self._file))
        except KeysError as error:
            _log.error("keys_not_read", problem=str(error), num_keys=len(self._keys))
        else:
            _log.info("keys_read", num_keys=len(self._keys))

    def _take(self, read: list[Key]) -> None:
        keys = (*self._fixed, *read)
        for what, values in (
            ("name", [key.name for key in keys]),
            ("key", [digest for key in keys for digest in key.digests]),
        ):
            if len(set(values)) < len(values):
                raise KeysError(f"ZOPILOT_GPU_KEYS_FILE: {self._file}: the same {what} is there twice.")
        self._keys = keys
        self._owners = {key.owner: key for key in keys}


@functools.cache
def ring_of(settings: Settings) -> KeyRing:
    """The one ring of these settings, shared by all who ask.

    Raises:
        KeysError: the file of keys can't be read.
    """
    return KeyRing.of([key.get_secret_value() for key in settings.api_key], settings.keys_file)


def digest_of(key: bytes) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key).digest()


def read_file(file: Path) -> list[Key]:
    """The keys in `file`: JSON where its name ends so, else TOML.

    Raises:
        KeysError: with the place of what is wrong, never with its value.
    """
    try:
        return [_key_of(entry) for entry in _File.model_validate(_parse(file)).keys]
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _NAMES)
        raise KeysError(f"ZOPILOT_GPU_KEYS_FILE: {file}: {where}: {first['msg'].removeprefix('Value error, ')}") from None


_NAMES = frozenset({*_File.model_fields, *_Entry.model_fields})  # what else stands in a place was written by somebody


def _parse(file: Path) -> Any:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except OSError as error:
        raise KeysError(f"ZOPILOT_GPU_KEYS_FILE: {file} can't be read: {error.strerror}.") from None
    if len(content) > _MOST_BYTES:
        raise KeysError(f"ZOPILOT_GPU_KEYS_FILE: {file} is larger than {_MOST_BYTES} bytes.")
    kind = "JSON" if file.suffix == ".json" else "TOML"
    try:
        return json.loads(content) if kind == "JSON" else tomllib.loads(content.decode())
    except (ValueError, RecursionError):
        raise KeysError(f"ZOPILOT_GPU_KEYS_FILE: {file} is not valid {kind}.") from None


def _key_of(entry: _Entry) -> Key:
    # The owner follows the name, so that a new key under an old name finds what the old one left.
    limits = (entry.requests_per_minute, entry.concurrent, entry.tokens_per_minute)
    return Key(entry.name, entry.digests(), digest_of(b"name:" + entry.name.encode()), *limits)


def _version(file: Path) -> object:
    try:
        found = file.stat()
    except OSError as error:
        return error.errno
    return (found.st_mtime_ns, found.st_size, found.st_ino)
