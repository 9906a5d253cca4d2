"""Holds what must not be in the repository: registry hosts, paths of a machine, secrets, emoji; and the form of its files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 300
# Each pattern is written so that it does not match itself.
FORBIDDEN = {
    "registry host": re.compile(
        r"pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|npmjs[.]|/artifactory[/]|/simple[/]|--(?:extra-)?index-url[ =]"
    ),
    "machine path": re.compile(r"(?<![\w.~-])/(?:work|root|home|Users)/[\w.-]+"),
    "secret": re.compile(
        r"\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{32,}|rpa_[A-Z0-9]{30,}|AKIA[A-Z0-9]{16}"
        r"|xox[abp]-[\w-]{20,})\b|-{5}BEGIN [A-Z ]*PRIVATE KEY"
    ),
    "emoji": re.compile("[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55\u231a\u231b\u23e9-\u23f3\ufe0f]"),
}
PLANTED = {
    "registry host": ["https://pypi" + ".org/x", "https://mirror/simp" + "le/", "--extra-index" + "-url https://x"],
    "machine path": ["cd /wo" + "rk/main", '"/ro' + 'ot/.cache"', "/ho" + "me/someone/x"],
    "secret": ["hf" + "_" + "a" * 34, "-----BEGIN RSA PRIVATE" + " KEY-----", "AKIA" + "A" * 16],
    "emoji": [chr(0x1F680), chr(0x2705), chr(0x26A0)],
}
ALLOWED = [
    "/workspace/huggingface",
    "work/main",
    "https://example.com/work/x",
    "\u2500\u2502\u251c\u25b6\u2192\u2026\u20ac",
    "a network/home/",
    "sk-short",
]


def tracked() -> list[Path]:
    """The files of the project; what tools leave beside them is named in .gitignore."""
    ignored = [line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()] + [".git", ".whl"]

    def walk(directory: Path) -> Iterator[Path]:
        for path in sorted(directory.iterdir()):
            if any(path.match(pattern) for pattern in ignored):
                continue
            if path.is_dir():
                yield from walk(path)
            else:
                yield path

    return list(walk(ROOT))


def text_of(path: Path) -> str | None:
    content = path.read_bytes()
    try:
        return None if b"\0" in content else content.decode()
    except UnicodeDecodeError:
        return None


def python_files() -> list[Path]:
    return [path for path in tracked() if path.suffix == ".py"]


@pytest.mark.parametrize("kind", FORBIDDEN)
def test_no_tracked_text_holds_what_is_forbidden(kind: str) -> None:
    found = []
    for path in tracked():
        if path.suffix == ".py" or path.parts[-2] != "model":  # the demo model's vocabulary is data, not prose
            for number, line in enumerate((text_of(path) or "").splitlines(), 1):
                if FORBIDDEN[kind].search(line):
                    found.append(f"{path.relative_to(ROOT)}:{number}")
    assert found == []


@pytest.mark.parametrize(("kind", "planted"), [(kind, planted) for kind, several in PLANTED.items() for planted in several])
def test_what_is_planted_is_found(kind: str, planted: str) -> None:
    assert FORBIDDEN[kind].search(planted)


@pytest.mark.parametrize("allowed", ALLOWED)
def test_what_is_harmless_is_let_be(allowed: str) -> None:
    assert not [kind for kind, pattern in FORBIDDEN.items() if pattern.search(allowed)]


def test_every_python_file_says_what_it_is_for() -> None:
    assert len(python_files()) > 30
    assert [str(path.relative_to(ROOT)) for path in python_files() if not ast.get_docstring(ast.parse(path.read_bytes()))] == []


def test_no_file_of_the_product_grows_too_long() -> None:
    product = [path for path in python_files() if path.relative_to(ROOT).parts[0] in {"zopilot_gpu", "runners", "service.py"}]
    assert len(product) > 20
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in product}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}


def test_nothing_that_is_built_or_downloaded_is_tracked() -> None:
    built = {".pyc", ".pyo", ".so", ".bin", ".pt", ".pkl", ".whl", ".egg-info", ".log"}
    assert [str(path.relative_to(ROOT)) for path in tracked() if path.suffix in built] == []
