"""Holds the floors: imports only go down, strangers stay strangers, floor 0 and the API see none of the heavy libraries.

The rules are those of `zopilot_gpu/__init__.py` and of the design's first section. Imports inside functions, below
`TYPE_CHECKING` and by `importlib.import_module("...")` count like any other.
"""

import ast
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("service.py", "runners", "zopilot_gpu")
FLOOR_0 = (
    "zopilot_gpu",
    "zopilot_gpu.settings",
    "zopilot_gpu.errors",
    "zopilot_gpu.events",
    "zopilot_gpu.fair",
    "zopilot_gpu.log",
)
TENSORS = frozenset({"torch", "transformers", "bitsandbytes", "accelerate", "tokenizers", "safetensors", "sentencepiece"})
HEAVY = TENSORS | {"huggingface_hub"}


@dataclass(frozen=True)
class Rule:
    """What the modules below a name may import.

    `ours` are the names of ours, besides themselves; None is all. A name stands for the modules below it too, but for
    the bare package. `others` are the only libraries allowed; None is all but `never`.
    """

    ours: tuple[str, ...] | None
    others: frozenset[str] | None = None
    never: frozenset[str] = field(default=frozenset())


_FLOOR_0 = Rule(FLOOR_0, others=frozenset({"pydantic", "pydantic_settings", "structlog"}))
RULES = {
    "zopilot_gpu": _FLOOR_0,
    "zopilot_gpu.settings": _FLOOR_0,
    "zopilot_gpu.errors": _FLOOR_0,
    "zopilot_gpu.events": _FLOOR_0,
    "zopilot_gpu.fair": _FLOOR_0,
    "zopilot_gpu.log": _FLOOR_0,
    "zopilot_gpu.model": Rule(FLOOR_0),
    "zopilot_gpu.engine": Rule((*FLOOR_0, "zopilot_gpu.model")),
    "zopilot_gpu.store": Rule((*FLOOR_0, "zopilot_gpu.model")),
    "zopilot_gpu.text": Rule(FLOOR_0),
    "runners": Rule((*FLOOR_0, "zopilot_gpu.model", "zopilot_gpu.engine", "zopilot_gpu.store", "zopilot_gpu.text")),
    "runners.base": Rule(FLOOR_0, others=frozenset()),
    "runners.line": Rule(FLOOR_0, others=frozenset()),
    "zopilot_gpu.jobs": Rule((*FLOOR_0, "runners.base"), never=HEAVY),
    "zopilot_gpu.api": Rule((*FLOOR_0, "runners.base", "zopilot_gpu.jobs"), never=HEAVY),
    "zopilot_gpu.process": Rule((*FLOOR_0, "runners.base", "zopilot_gpu.api"), never=HEAVY),
    "zopilot_gpu.doctor": Rule(
        (*FLOOR_0, "zopilot_gpu.model", "zopilot_gpu.engine", "zopilot_gpu.store", "runners", "zopilot_gpu.api.keys")
    ),
    "zopilot_gpu.bench": Rule(FLOOR_0, never=HEAVY),
    "zopilot_gpu.bench.gpu": Rule(None, never=frozenset({"service"})),
    "zopilot_gpu.queue_worker": Rule(None, never=HEAVY | {"service"}),
    "zopilot_gpu.cli": Rule(None, never=frozenset({"service"})),
    "zopilot_gpu.demo": Rule(None, never=frozenset({"service"})),
    "service": Rule(None, never=HEAVY),
}


def is_below(module: str, name: str) -> bool:
    return module == name or (name != "zopilot_gpu" and module.startswith(f"{name}."))


def modules_in(root: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of ours below `root`."""
    files = [file for name in OURS for file in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))]
    names = {
        file: ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for file in files
        if file.is_file()
    }
    return {name: file for file, name in names.items()}


def imports_of(module: str, file: Path, known: Iterable[str]) -> Iterator[str]:
    """Every module that `file` imports; of ours by its own name, of libraries by the top one."""
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_bytes())):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names]
            case ast.ImportFrom(module=source, names=names, level=level):
                parts = package.split(".")[: len(package.split(".")) + 1 - level] if level else []
                base = ".".join([*parts, *([source] if source else [])])
                found = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in names]
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                found = [name]
            case _:
                continue
        yield from (name if name in known else name.partition(".")[0] for name in found)


def rule_for(module: str) -> Rule | None:
    names = [name for name in RULES if is_below(module, name)]
    return RULES[max(names, key=len)] if names else None


def violations(root: Path) -> list[str]:
    """One sentence for each import that a rule forbids, and each module without a rule."""
    known = modules_in(root)
    found = []
    for module, file in known.items():
        rule = rule_for(module)
        if rule is None:
            found.append(f"{module} stands on no floor")
            continue
        own = max((name for name in RULES if is_below(module, name)), key=len)
        for imported in set(imports_of(module, file, known)):
            if imported in known:
                allowed = rule.ours is None or any(is_below(imported, name) for name in (own, *rule.ours))
            else:
                allowed = imported in sys.stdlib_module_names or rule.others is None or imported in rule.others
            if not allowed or imported in rule.never:
                found.append(f"{module} imports {imported}")
    return sorted(found)


def test_imports_only_go_down() -> None:
    assert violations(ROOT) == []


def test_the_walk_sees_the_whole_tree() -> None:
    known = modules_in(ROOT)
    assert {
        "service",
        "runners.base",
        "runners.plain",
        "zopilot_gpu",
        "zopilot_gpu.api.gate",
        "zopilot_gpu.store.locate",
    } <= set(known)
    assert {"runners.causal_lm", "torch", "zopilot_gpu.text.answer"} <= set(
        imports_of("runners.plain", known["runners.plain"], known)
    )


PLANTED = [
    ("zopilot_gpu/log.py", "import torch", "zopilot_gpu.log imports torch"),
    ("zopilot_gpu/log.py", "import yaml", "zopilot_gpu.log imports yaml"),
    ("zopilot_gpu/log.py", "import zopilot_gpu.text.template", "zopilot_gpu.log imports zopilot_gpu.text.template"),
    ("zopilot_gpu/__init__.py", "from .api import auth", "zopilot_gpu imports zopilot_gpu.api.auth"),
    (
        "zopilot_gpu/store/locate.py",
        "from zopilot_gpu.text import template",
        "zopilot_gpu.store.locate imports zopilot_gpu.text.template",
    ),
    (
        "zopilot_gpu/text/template.py",
        "def f():\n    from ..store import locate",
        "zopilot_gpu.text.template imports zopilot_gpu.store.locate",
    ),
    ("zopilot_gpu/text/template.py", "import runners.base", "zopilot_gpu.text.template imports runners.base"),
    ("zopilot_gpu/api/auth.py", "import torch.nn as nn", "zopilot_gpu.api.auth imports torch"),
    (
        "zopilot_gpu/api/auth.py",
        "if TYPE_CHECKING:\n    from transformers import A",
        "zopilot_gpu.api.auth imports transformers",
    ),
    ("zopilot_gpu/api/auth.py", "from runners import plain", "zopilot_gpu.api.auth imports runners.plain"),
    (
        "zopilot_gpu/api/auth.py",
        'importlib.import_module("zopilot_gpu.store.locate")',
        "zopilot_gpu.api.auth imports zopilot_gpu.store.locate",
    ),
    ("zopilot_gpu/api/auth.py", "from zopilot_gpu.demo import MODEL", "zopilot_gpu.api.auth imports zopilot_gpu.demo"),
    ("runners/base.py", "from runners.plain import x", "runners.base imports runners.plain"),
    ("runners/base.py", "import torch", "runners.base imports torch"),
    ("runners/plain.py", "from zopilot_gpu.api.auth import Auth", "runners.plain imports zopilot_gpu.api.auth"),
    ("runners/plain.py", "from zopilot_gpu import cli", "runners.plain imports zopilot_gpu.cli"),
    ("zopilot_gpu/bench/load.py", "import torch", "zopilot_gpu.bench.load imports torch"),
    ("zopilot_gpu/bench/load.py", "import service", "zopilot_gpu.bench.load imports service"),
    ("zopilot_gpu/bench/load.py", "from runners import base", "zopilot_gpu.bench.load imports runners.base"),
    ("zopilot_gpu/bench/gpu/run.py", "import service", "zopilot_gpu.bench.gpu.run imports service"),
    ("zopilot_gpu/cli/__init__.py", "import service", "zopilot_gpu.cli imports service"),
    ("service.py", "import bitsandbytes", "service imports bitsandbytes"),
    ("zopilot_gpu/newcomer.py", "", "zopilot_gpu.newcomer stands on no floor"),
]


@pytest.mark.parametrize(("file", "line", "sentence"), PLANTED, ids=[sentence for _, _, sentence in PLANTED])
def test_a_planted_violation_is_caught(tmp_path: Path, file: str, line: str, sentence: str) -> None:
    sound = {
        "service.py": "import bentoml\nfrom runners.plain import x\nfrom zopilot_gpu.api import auth",
        "runners/__init__.py": "",
        "runners/base.py": "import asyncio\nfrom zopilot_gpu.log import x",
        "runners/plain.py": "import torch\nfrom runners import base\nfrom zopilot_gpu.store import locate",
        "zopilot_gpu/__init__.py": "",
        "zopilot_gpu/log.py": "import structlog, logging.handlers",
        "zopilot_gpu/store/__init__.py": "",
        "zopilot_gpu/store/locate.py": "from zopilot_gpu import log",
        "zopilot_gpu/text/__init__.py": "",
        "zopilot_gpu/text/template.py": "from ..log import x",
        "zopilot_gpu/api/__init__.py": "",
        "zopilot_gpu/api/auth.py": "from runners.base import Runner\nfrom zopilot_gpu import __version__",
        "zopilot_gpu/bench/__init__.py": "",
        "zopilot_gpu/bench/gpu/__init__.py": "",
        "zopilot_gpu/bench/gpu/run.py": "import torch\nfrom zopilot_gpu.bench import load",
        "zopilot_gpu/bench/load.py": "import aiohttp\nfrom zopilot_gpu import __version__",
        "zopilot_gpu/demo/__init__.py": "import torch",
        "zopilot_gpu/cli/__init__.py": "from zopilot_gpu.demo import MODEL",
    }
    for name, content in sound.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert violations(tmp_path) == []
    (tmp_path / file).write_text(f"{sound.get(file, '')}\n{line}\n")
    assert violations(tmp_path) == [sentence]
