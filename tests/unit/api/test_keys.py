"""Holds the key ring: names, digests, the file and its changes, and that no error says what a key is."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from zopilot_gpu.api import keys as module
from zopilot_gpu.api.keys import Key, KeyRing, KeysError, digest_of, read_file

SECRET = "secret-of-ledger"
OTHER = "secret-of-reports"


def write(file: Path, *entries: dict[str, object]) -> Path:
    file.write_text(json.dumps({"keys": list(entries)}))
    return file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 0)
    return write(tmp_path / "keys.json", {"name": "ledger", "key": SECRET, "concurrent": 2})


def find(ring: KeyRing, secret: str) -> str | None:
    found = ring.find(digest_of(secret.encode()))
    return found.name if found else None


def test_keys_of_the_environment_are_named_by_their_place() -> None:
    ring = KeyRing.of(["one", "two"])
    assert [find(ring, secret) for secret in ("one", "two", "three")] == ["key-1", "key-2", None]
    assert not ring.is_open
    assert KeyRing.of([]).is_open


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    entry = {"name": "ledger", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "requests_per_minute": 5}
    as_json = read_file(write(tmp_path / "keys.json", entry))
    (tmp_path / "keys.toml").write_text(f'[[keys]]\nname = "ledger"\nkey = "{SECRET}"\nrequests_per_minute = 5\n')
    assert read_file(tmp_path / "keys.toml") == as_json
    assert as_json[0] == Key("ledger", (digest_of(SECRET.encode()),), as_json[0].owner, 5)


def test_a_key_is_replaced_while_the_service_runs_and_its_owner_stays(file: Path) -> None:
    ring = KeyRing.of(["of-the-environment"], file)
    before = ring.find(digest_of(SECRET.encode()))
    assert before is not None
    write(file, {"name": "ledger", "key": [SECRET, OTHER]})
    assert (find(ring, SECRET), find(ring, OTHER)) == ("ledger", "ledger")
    write(file, {"name": "ledger", "key": OTHER, "concurrent": 9})
    assert (find(ring, SECRET), find(ring, OTHER)) == (None, "ledger")
    after = ring.of_owner(before.owner)
    assert after is not None
    assert after.concurrent == 9
    assert find(ring, "of-the-environment") == "key-1"


def test_the_file_is_looked_at_once_a_second_at_most(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_AGAIN_S", 1000)
    ring = KeyRing.of([], file)
    assert find(ring, SECRET) == "ledger"
    write(file, {"name": "reports", "key": OTHER})
    assert find(ring, OTHER) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"keys": []}',
        f'{{"keys": [{{"name": "a", "key": "{OTHER}"}}, {{"name": "a", "key": "{OTHER}2"}}]}}',
        f'{{"keys": [{{"name": "a", "key": "{OTHER}"}}, {{"name": "b", "key": "{OTHER}"}}]}}',
        f'{{"keys": [{{"name": "key-1", "key": "{OTHER}"}}]}}',
        f'{{"keys": [{{"name": "a", "key": "{OTHER}", "{OTHER}": 1}}]}}',
        f'{{"keys": [{{"name": "{OTHER} {OTHER}", "key": "{OTHER}"}}]}}',
        f'{{"keys": [{{"name": "a", "sha256": "{OTHER}"}}]}}',
        f'{{"keys": [{{"name": "a", "key": ["{OTHER}", 5]}}]}}',
        '{"keys": [{"name": "a", "key": "short"}]}',
        '{"keys": [{"name": "a"}]}',
        f'{{"keys": [{{"name": "a", "key": "{OTHER}", "concurrent": 0}}]}}',
        None,
    ],
)
def test_a_broken_file_changes_nothing_and_says_nothing_of_a_key(file: Path, content: str | None) -> None:
    ring = KeyRing.of(["of-the-environment"], file)
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    with capture_logs() as logs:
        assert [find(ring, SECRET) for _ in range(3)] == ["ledger"] * 3
    assert [(line["event"], line["log_level"]) for line in logs] == [("keys_not_read", "error")]
    assert "ZOPILOT_GPU_KEYS_FILE" in logs[0]["problem"]
    assert OTHER not in str(logs)
    with pytest.raises(KeysError) as refusal:
        KeyRing.of(["of-the-environment"], file)
    assert OTHER not in str(refusal.value)
    write(file, {"name": "reports", "key": OTHER})
    assert find(ring, OTHER) == "reports"


def test_a_file_renamed_over_the_old_one_is_noticed(file: Path) -> None:
    ring = KeyRing.of([], file)
    found = file.stat()
    new = write(file.with_suffix(".new.json"), {"name": "ledger", "key": SECRET[::-1], "concurrent": 2})
    os.utime(new, ns=(found.st_atime_ns, found.st_mtime_ns))
    new.rename(file)
    assert find(ring, SECRET[::-1]) == "ledger"


def test_a_key_never_shows_what_it_is() -> None:
    assert digest_of(b"one").hex() not in repr(KeyRing.of(["one"]).find(digest_of(b"one")))
