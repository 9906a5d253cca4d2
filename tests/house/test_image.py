"""Holds the recipe of the images: one Dockerfile, two bentofiles, two locks, and what each says of the same thing."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # comes with BentoML; its stubs are not in the lock
from bentoml._internal.container.generate import build_environment

from zopilot_gpu import __version__

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
BENTOFILES = {"runtime": "bentofile.yaml", "blackwell": "bentofile.blackwell.yaml"}


def instructions(text: str) -> list[str]:
    """The lines that Docker reads, continued ones joined."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", "").splitlines()


def rendered() -> str:
    """The Dockerfile as BentoML makes it of its template."""
    return build_environment().from_string(DOCKERFILE).render()


def defaults(text: str) -> dict[str, str]:
    """Of the build arguments before the first stage, each told once: builders differ in which of two they would take."""
    found = re.findall(r"^ARG (\w+)=(.+)$", text.partition("\nFROM ")[0], re.MULTILINE)
    assert sorted(name for name, _ in found) == ["BASE", "LOCK", "SOURCE"]
    return dict(found)


def sources() -> set[str]:
    """What is copied from the context, below the directory of the code."""
    copies = [line for line in instructions(DOCKERFILE) if line.startswith("COPY") and "--from" not in line]
    return {word.removeprefix("${SOURCE}/") for line in copies for word in line.split()[1:-1]} - {"${LOCK}"}


def test_both_forms_are_built_by_the_same_instructions() -> None:
    ours, bentos = ([line for line in instructions(text) if "ARG SOURCE=" not in line] for text in (DOCKERFILE, rendered()))
    assert [line for line in ours if not line.startswith("ARG LOCK=")] == [
        line for line in bentos if not line.startswith("ARG LOCK=")
    ]
    assert len(ours) > 20


@pytest.mark.parametrize(("lock", "name"), BENTOFILES.items())
def test_a_bento_is_built_with_the_lock_that_it_holds(lock: str, name: str) -> None:
    bentofile = yaml.safe_load((ROOT / name).read_text())
    assert defaults(DOCKERFILE)["LOCK"] == "requirements/runtime.lock.txt"
    assert bentofile["python"] == {"requirements_txt": f"./requirements/{lock}.lock.txt", "lock_packages": False}
    pattern = defaults(rendered())["LOCK"].replace("[^", "[!")
    held = [f"{defaults(rendered())['SOURCE']}/{one}" for one in bentofile["include"]]
    assert [one for one in held if fnmatch(one, pattern)] == [f"src/requirements/{lock}.lock.txt"]


def test_the_bentofiles_differ_in_name_and_lock_alone() -> None:
    one, other = (yaml.safe_load((ROOT / name).read_text()) for name in BENTOFILES.values())
    other["name"] = one["name"]
    other["python"]["requirements_txt"] = one["python"]["requirements_txt"]
    other["include"] = [line.replace("blackwell", "runtime") for line in other["include"]]
    assert one == other
    assert one["docker"] == {"dockerfile_template": "./Dockerfile"}


def test_what_is_copied_is_there_in_both_contexts() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    include = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["include"]
    assert "requirements/tools.lock.txt" in sources()
    for source in sources():
        assert (ROOT / source).exists(), source
        allowed = [line.strip("!/") for line in ignore if line.startswith("!")]
        assert source in allowed or source.partition("/")[0] in allowed, source
        assert any(fnmatch(source, one) or one.startswith(f"{source}/") for one in include), source
    assert {f"!requirements/{lock}.lock.txt" for lock in BENTOFILES} <= set(ignore)


def test_the_image_is_of_this_version_and_runs_this_service_as_nobody_special() -> None:
    lines = instructions(DOCKERFILE)
    assert f'org.opencontainers.image.version="{__version__}"' in DOCKERFILE
    assert [line for line in lines if line.startswith("USER")] == ["USER 1034:1034"]
    assert lines[-1].startswith("ENTRYPOINT")
    assert "bentoml serve service:ZopilotGPU" in lines[-1]
    service = ast.parse((ROOT / "service.py").read_bytes())
    assert "ZopilotGPU" in {node.name for node in service.body if isinstance(node, ast.ClassDef)}
    assert not [line for line in lines if re.search(r"(?i)(token|secret|password|key)\w*=", line)]
