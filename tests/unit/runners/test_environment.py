"""Machine code of other kernels than these is never found in a Triton cache that was kept."""

import ast
import asyncio
import importlib
import os
from pathlib import Path

import pytest
import torch
from triton.runtime.jit import JITFunction
from typer.testing import CliRunner

from runners.background import BackgroundRunner
from runners.environment import kernel_files, kernel_folder, set_before_torch, triton_cache
from zopilot_gpu.cli import app
from zopilot_gpu.settings import Settings

ROOT = Path(__file__).parents[3]
OF_DOCTOR = ROOT / "zopilot_gpu/doctor/kernel.py"  # compiled in a cache that is thrown away


def test_a_line_of_assembly_changes_the_folder_and_nothing_else_does(tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    file.write_text('LINE = tl.constexpr("add.s32 $0, $1, 7;")')
    before = kernel_folder([file])
    assert kernel_folder([file]) == before
    os.utime(file, (0, 0))
    assert kernel_folder([file]) == before
    file.write_text('LINE = tl.constexpr("sub.s32 $0, $1, 7;")')
    assert kernel_folder([file]) != before


def test_text_that_moves_to_another_file_changes_the_folder(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("a")
    two.write_text("b")
    before = kernel_folder([one, two])
    one.write_text("")
    two.write_text("ab")
    assert kernel_folder([one, two]) != before


def test_every_file_with_a_kernel_counts() -> None:
    ours = [file for where in ("zopilot_gpu", "runners") for file in (ROOT / where).rglob("*.py")]
    assert {file for file in ours if "@triton.jit" in file.read_text()} - {OF_DOCTOR} <= set(kernel_files())


def test_all_that_kernels_read_beside_their_arguments_is_written_in_a_file_that_counts() -> None:
    """So that a constant from elsewhere is noticed: what it is there would not change the folder."""
    num_globals = 0
    for file in kernel_files():
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        for kernel in [one for one in vars(module).values() if isinstance(one, JITFunction)]:
            assert kernel.cache_key
            for (name, _), (_, seen_from) in kernel.used_global_vals.items():
                if seen_from["__name__"].startswith("triton."):  # whose own text is in every key
                    continue
                where = importlib.import_module(seen_from["__name__"])
                assert Path(str(where.__file__)) in kernel_files()
                assert name in _written(Path(str(where.__file__)))
                num_globals += 1
    assert num_globals > 30


def _written(file: Path) -> set[str]:
    """The names that a module gives values itself, or has from another file that counts."""
    found = set[str]()
    for node in ast.parse(file.read_bytes()).body:
        match node:
            case ast.Assign() | ast.AnnAssign():
                found |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Store)}
            case ast.ImportFrom(module=str(source)) if ROOT / f"{source.replace('.', '/')}.py" in kernel_files():
                found |= {alias.asname or alias.name for alias in node.names}
    return found


def test_the_folder_lies_in_the_cache_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    ours = tmp_path / kernel_folder(kernel_files())
    for _ in range(2):  # the second time as a process that was started by one of ours
        set_before_torch()
        assert Path(os.environ["TRITON_CACHE_DIR"]) == ours == triton_cache()


@pytest.mark.parametrize(("variable", "below"), [("HOME", ".triton/cache"), ("TRITON_HOME", ".triton/cache")])
def test_where_none_is_named_it_lies_in_tritons(
    variable: str, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_HOME", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", " ")  # which Triton takes for none
    monkeypatch.setenv(variable, str(tmp_path))
    assert triton_cache() == tmp_path / below
    set_before_torch()
    assert Path(os.environ["TRITON_CACHE_DIR"]) == tmp_path / below / kernel_folder(kernel_files())


async def test_the_worker_has_it_when_the_model_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    runner = BackgroundRunner(Settings(allow_anonymous=True, model="demo", device="cpu"))
    async with asyncio.timeout(120):
        while runner.state().phase == "loading":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert runner.state().phase == "ready"
    assert triton_cache() == tmp_path / kernel_folder(kernel_files())
    await runner.close()


@pytest.mark.parametrize("command", [["tune"], ["bench", "gpu"]])
def test_commands_that_run_kernels_have_it(command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "GPU" in CliRunner().invoke(app, command).output
    assert triton_cache() == tmp_path / kernel_folder(kernel_files())
