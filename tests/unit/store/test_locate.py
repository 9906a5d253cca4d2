"""Holds the search for a model: every layout of the mounted cache, the order of the roots, refusals that name the file."""

import json
import socket
from pathlib import Path

import pytest

from zopilot_gpu.errors import ModelUnavailable
from zopilot_gpu.store import locate as module
from zopilot_gpu.store.locate import Located, locate, search_roots

MODEL = "mistralai/Mixtral-8x7B-Instruct-v0.1"
FOLDER = "models--mistralai--Mixtral-8x7B-Instruct-v0.1"
COMMIT = "a" * 40
OTHER = "b" * 40
CACHES = ["huggingface/hub", "huggingface", "huggingface-cache/hub", "huggingface-cache", "hub", ""]
SINGLE = {"config.json": '{"model_type": "mixtral"}', "tokenizer.json": "{}", "model.safetensors": "x"}
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]}})
SHARDED = {
    "config.json": '{"model_type": "mixtral"}',
    "tokenizer.model": "x",
    "model.safetensors.index.json": INDEX,
    **dict.fromkeys(SHARDS, "x"),
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("locate opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def write(directory: Path, files: dict[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content)
    return directory


def snapshot(root: Path, files: dict[str, str], *, cache: str = "hub", commit: str = COMMIT, ref: str | None = "main") -> Path:
    """A snapshot in a cache below `root`, with its ref where one is named."""
    folder = root / cache / FOLDER
    if ref:
        write((folder / "refs" / ref).parent, {Path(ref).name: commit})
    return write(folder / "snapshots" / commit, files)


def without(files: dict[str, str], name: str) -> dict[str, str]:
    return {file: content for file, content in files.items() if file != name}


@pytest.mark.parametrize("files", [SINGLE, SHARDED], ids=["single", "sharded"])
@pytest.mark.parametrize("ref", ["main", None], ids=["with ref", "bare snapshot"])
@pytest.mark.parametrize("cache", CACHES)
def test_every_layout_is_found(tmp_path: Path, cache: str, ref: str | None, files: dict[str, str]) -> None:
    directory = snapshot(tmp_path, files, cache=cache, ref=ref)
    assert locate(MODEL, None, [tmp_path]) == Located(MODEL, directory, COMMIT, "mixtral")


@pytest.mark.parametrize("cache", CACHES)
def test_names_lower_cased_by_the_host_are_found(tmp_path: Path, cache: str) -> None:
    directory = write(tmp_path / cache / FOLDER.lower() / "snapshots" / COMMIT, SINGLE)
    assert locate(MODEL, None, [tmp_path]).directory == directory


def test_files_may_be_links_to_blobs_as_the_hub_library_makes_them(tmp_path: Path) -> None:
    directory = snapshot(tmp_path, {})
    blobs = write(tmp_path / "hub" / FOLDER / "blobs", SINGLE)
    for name in SINGLE:
        (directory / name).symlink_to(blobs / name)
    assert locate(MODEL, None, [tmp_path]).directory == directory


def test_a_link_without_its_blob_is_a_missing_file(tmp_path: Path) -> None:
    directory = snapshot(tmp_path, without(SINGLE, "model.safetensors"))
    (directory / "model.safetensors").symlink_to(tmp_path / "blobs" / "gone")
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors not there"):
        locate(MODEL, None, [tmp_path])


@pytest.mark.parametrize("files", [SINGLE, SHARDED], ids=["single", "sharded"])
def test_a_plain_directory_is_taken_as_it_is(tmp_path: Path, files: dict[str, str]) -> None:
    directory = write(tmp_path / "my-model", files)
    assert locate(str(directory)) == Located("my-model", directory, None, "mixtral")


def test_demo_is_the_embedded_model() -> None:
    found = locate("demo")
    assert (found.name, found.revision, found.model_type) == ("demo", None, "mixtral")
    assert found.directory == Path(module.__file__).parents[1] / "demo" / "model"


@pytest.mark.parametrize("model", ["mistralai/Mixtral-8x7B", "other/Mixtral-8x7B-Instruct-v0.1", "Mixtral-8x7B-Instruct-v0.1"])
def test_another_models_folder_is_not_taken(tmp_path: Path, model: str) -> None:
    snapshot(tmp_path, SINGLE)
    with pytest.raises(ModelUnavailable):
        locate(model, None, [tmp_path])


def test_an_earlier_root_wins(tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("absent", "first", "second")]
    snapshot(roots[2], SINGLE, cache="huggingface/hub")
    expected = snapshot(roots[1], SINGLE, cache="")
    assert locate(MODEL, None, roots).directory == expected


def test_an_incomplete_model_in_an_earlier_root_gives_way(tmp_path: Path) -> None:
    snapshot(tmp_path / "first", without(SINGLE, "model.safetensors"))
    expected = snapshot(tmp_path / "second", SINGLE)
    assert locate(MODEL, None, [tmp_path / "first", tmp_path / "second"]).directory == expected


def test_roots_are_the_volume_then_the_mounts_then_hf_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mounts = [Path("/runpod-volume"), Path("/workspace")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert search_roots(Path("/mnt"), Path("/hf")) == [Path("/mnt"), *mounts, Path("/hf")]
    assert search_roots() == [*mounts, tmp_path / "huggingface"]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert search_roots()[-1] == tmp_path / ".cache" / "huggingface"


@pytest.mark.parametrize("revision", [OTHER, "v1", "pr/1"], ids=["commit", "ref", "nested ref"])
def test_a_revision_is_a_commit_or_a_ref(tmp_path: Path, revision: str) -> None:
    snapshot(tmp_path, SINGLE)
    expected = snapshot(tmp_path, SINGLE, commit=OTHER, ref=None if revision == OTHER else revision)
    found = locate(MODEL, revision, [tmp_path])
    assert (found.directory, found.revision) == (expected, OTHER)


def test_a_revision_that_is_not_there_is_refused_though_others_are(tmp_path: Path) -> None:
    snapshot(tmp_path, SINGLE)
    with pytest.raises(ModelUnavailable, match=f"at revision {OTHER}"):
        locate(MODEL, OTHER, [tmp_path])


@pytest.mark.parametrize(("main", "other"), [(COMMIT, OTHER), (OTHER, COMMIT)])
def test_mains_snapshot_wins_over_others(tmp_path: Path, main: str, other: str) -> None:
    expected = snapshot(tmp_path, SINGLE, commit=main)
    snapshot(tmp_path, SINGLE, commit=other, ref=None)
    assert locate(MODEL, None, [tmp_path]).directory == expected


def test_a_complete_snapshot_stands_in_for_mains_incomplete_one(tmp_path: Path) -> None:
    snapshot(tmp_path, without(SHARDED, SHARDS[1]))
    expected = snapshot(tmp_path, SHARDED, commit=OTHER, ref=None)
    assert locate(MODEL, None, [tmp_path]).directory == expected


def test_a_named_revision_that_is_incomplete_is_refused(tmp_path: Path) -> None:
    snapshot(tmp_path, without(SHARDED, SHARDS[1]))
    snapshot(tmp_path, SHARDED, commit=OTHER, ref=None)
    with pytest.raises(ModelUnavailable, match=SHARDS[1]):
        locate(MODEL, COMMIT, [tmp_path])


BAD = {
    "no weights": (without(SINGLE, "model.safetensors"), "model.safetensors"),
    "pickled weights only": (without(SINGLE, "model.safetensors") | {"pytorch_model.bin": "x"}, "model.safetensors"),
    "a shard missing": (without(SHARDED, SHARDS[0]), SHARDS[0]),
    "index missing": (without(SHARDED, "model.safetensors.index.json"), "model.safetensors"),
    "index broken": (SHARDED | {"model.safetensors.index.json": "{"}, "model.safetensors.index.json"),
    "index without a map": (SHARDED | {"model.safetensors.index.json": "{}"}, "model.safetensors.index.json"),
    "index with an empty map": (
        SHARDED | {"model.safetensors.index.json": '{"weight_map": {}}'},
        "model.safetensors.index.json",
    ),
    "index of numbers": (
        SHARDED | {"model.safetensors.index.json": '{"weight_map": {"a": 1}}'},
        "model.safetensors.index.json",
    ),
    "index that leads outside": (
        SHARDED | {"model.safetensors.index.json": '{"weight_map": {"a": "../../refs/main"}}'},
        "model.safetensors.index.json",
    ),
    "index of pickled weights": (
        SHARDED | {"model.safetensors.index.json": '{"weight_map": {"a": "w.bin"}}', "w.bin": "x"},
        "model.safetensors.index.json",
    ),
    "no tokenizer": (without(SINGLE, "tokenizer.json"), "tokenizer.json"),
    "no config": (without(SINGLE, "config.json"), "config.json"),
    "config broken": (SINGLE | {"config.json": "{"}, "config.json"),
    "config not in UTF-8": (SINGLE | {"config.json": "\ud8ff"}, "config.json"),
    "config a list": (SINGLE | {"config.json": "[]"}, "config.json"),
    "code of its own": (SINGLE | {"config.json": '{"auto_map": {"AutoModel": "m.M"}}'}, "config.json"),
}


@pytest.mark.parametrize(("files", "named"), BAD.values(), ids=BAD)
@pytest.mark.parametrize("plain", [False, True], ids=["cache", "directory"])
def test_what_is_incomplete_or_unsafe_is_refused_by_its_files_name(
    tmp_path: Path, files: dict[str, str], named: str, *, plain: bool
) -> None:
    directory = tmp_path / "model" if plain else tmp_path / "hub" / FOLDER / "snapshots" / COMMIT
    directory.mkdir(parents=True)
    write(tmp_path / "hub" / FOLDER / "refs", {"main": COMMIT})
    for name, content in files.items():
        (directory / name).write_bytes(content.encode(errors="surrogatepass"))
    with pytest.raises(ModelUnavailable) as refusal:
        locate(str(directory) if plain else MODEL, None, [tmp_path])
    assert named in str(refusal.value.detail)
    assert str(directory) in str(refusal.value.detail)
    assert refusal.value.message == ModelUnavailable.message  # callers learn no paths


def test_a_refusal_says_where_was_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable) as refusal:
        locate(MODEL, None, [tmp_path / "a", tmp_path / "b"])
    for part in (
        MODEL,
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "ZOPILOT_GPU_VOLUME",
        "HF_HOME",
        "ZOPILOT_GPU_ALLOW_DOWNLOAD=true",
    ):
        assert part in str(refusal.value.detail)


def test_files_in_the_way_of_a_cache_are_stepped_over(tmp_path: Path) -> None:
    (tmp_path / "huggingface").write_text("a file")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / FOLDER).write_text("a file")
    expected = snapshot(tmp_path, SINGLE, cache="")
    assert locate(MODEL, None, [tmp_path]).directory == expected


def test_a_download_that_was_broken_off_is_told(tmp_path: Path) -> None:
    snapshot(tmp_path, without(SHARDED, SHARDS[1]))
    write(tmp_path / "hub" / FOLDER / "blobs", {"abc.incomplete": "x", "def.incomplete": "x", "ghi": "x"})
    with pytest.raises(ModelUnavailable, match=r"broken off \(2 files \.incomplete\); it can go on") as refusal:
        locate(MODEL, None, [tmp_path])
    assert SHARDS[1] in str(refusal.value.detail)
