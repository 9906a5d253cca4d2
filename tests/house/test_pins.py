"""Holds the dependencies: floors below which something is known to be broken or unsafe, exact hashed versions, equal locks."""

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from zopilot_gpu import __version__

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock.txt"))
FLOORS = {
    "aiohttp": ">=3.14.4",
    "bentoml": ">=1.4.39",
    "bitsandbytes": ">=0.50",
    "jinja2": ">=3.1.6",
    "protobuf": ">=5.29.6",
    "python-multipart": ">=0.0.27",
    "sentencepiece": ">=0.2.1",
    "starlette": ">=1.3.1",
    "torch": "==2.6.0",
    "transformers": ">=4.57.1,<5",
}
FLOORS_IF_USED = {
    "llguidance": ">=1.9",
    "runpod": "!=1.7.11,!=1.7.12,!=1.7.13,!=1.8.*,!=1.9.*,!=1.10.0",
    "xgrammar": ">=0.1.32",
}
# What the lock for RTX 50xx (sm_120) has otherwise, and nothing else: torch, what it brings, and what it pins.
BLACKWELL = {"torch": "==2.8.0", "triton": "==3.4.0"}
OF_TORCH = re.compile(r"torch|triton|sympy|nvidia-\w+-cu12|nvidia-cuda-\w+-cu12")
NEVER = {"outlines", "outlines-core", "diskcache"}
_ENTRY = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[a-z0-9,_-]+\])?==(?P<version>[^\s;\\]+)(?P<marker> ;[^\\]*)?\\?$")
_HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}( \\)?$")


@dataclass(frozen=True)
class Entry:
    """One locked version; `marker` says for which machines."""

    name: str
    version: Version
    marker: str


def entries(lock: Path) -> Iterator[Entry]:
    for line in lock.read_text().splitlines():
        if found := _ENTRY.match(line.replace(" \\", "\\")):
            yield Entry(canonicalize_name(found["name"]), Version(found["version"]), (found["marker"] or "").strip(" ;"))


def locked(name: str) -> set[Entry]:
    return set(entries(ROOT / "requirements" / name))


def declared() -> dict[str, SpecifierSet]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return {canonicalize_name(one.name): one.specifier for one in map(Requirement, lines)}


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_the_locked_version_stands_on_its_floor(name: str, floor: str) -> None:
    versions = [entry.version for entry in locked("runtime.lock.txt") if entry.name == name]
    assert versions
    assert all(version in SpecifierSet(floor) for version in versions)


@pytest.mark.parametrize(("name", "floor"), FLOORS.items())
def test_the_declared_range_does_not_reach_below_the_floor(name: str, floor: str) -> None:
    lower = [Version(one.version) for one in declared()[name] if one.operator in {">=", "=="}]
    assert lower
    assert max(lower) in SpecifierSet(floor)
    if "<" in floor:
        assert Version("5.0.0") not in declared()[name]


def test_what_is_declared_is_locked_in_its_range() -> None:
    dev = locked("dev.lock.txt")
    for name, specifier in declared().items():
        versions = [entry.version for entry in dev if entry.name == name]
        assert versions, name
        assert all(version in specifier for version in versions), name


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_what_is_known_to_be_unsafe_is_not_locked(lock: Path) -> None:
    for entry in entries(lock):
        assert entry.name not in NEVER
        assert entry.version in SpecifierSet(FLOORS_IF_USED.get(entry.name, "")), entry


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_is_an_exact_version_or_its_hash(lock: Path) -> None:
    hashed = 0
    for before, line in zip(lines := ["", *lock.read_text().splitlines()], lines[1:], strict=False):
        if line.startswith("#"):
            continue
        assert _ENTRY.match(line.replace(" \\", "\\")) or _HASH.match(line), line
        if _ENTRY.match(before.replace(" \\", "\\")):
            assert _HASH.match(line), f"no hash for {before}"
            hashed += 1
    assert hashed == len(list(entries(lock))) > 0


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_no_lock_names_a_host(lock: Path) -> None:
    assert re.findall(r"://|--(extra-)?index-url|--find-links|--trusted-host| @ ", lock.read_text()) == []


@pytest.mark.parametrize(("image", "tests"), [("runtime", "dev"), ("blackwell", "blackwell-dev")])
def test_the_lock_of_the_tests_is_the_lock_of_the_image_and_more(image: str, tests: str) -> None:
    runtime, dev = locked(f"{image}.lock.txt"), locked(f"{tests}.lock.txt")
    assert runtime < dev
    shared = {entry.name for entry in runtime}
    assert {entry for entry in dev if entry.name in shared} == runtime


@pytest.mark.parametrize(("ours", "blackwells"), [("runtime", "blackwell"), ("dev", "blackwell-dev")])
def test_the_lock_for_blackwell_differs_only_where_torch_makes_it(ours: str, blackwells: str) -> None:
    one, other = locked(f"{ours}.lock.txt"), locked(f"{blackwells}.lock.txt")
    assert {entry.name for entry in one ^ other if not OF_TORCH.fullmatch(entry.name)} == set()
    for name, version in BLACKWELL.items():
        assert [entry.version in SpecifierSet(version) for entry in other if entry.name == name] == [True]


def test_the_override_names_torch_alone() -> None:
    lines = (ROOT / "requirements" / "blackwell.override.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [f"torch{BLACKWELL['torch']}"]


def test_the_package_tells_the_version_of_the_project() -> None:
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == __version__


def test_the_parser_sees_every_entry() -> None:
    for lock in LOCKS:
        assert len(list(entries(lock))) == sum("==" in line.partition(" ;")[0] for line in lock.read_text().splitlines())
