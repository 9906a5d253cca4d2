"""Builds images and looks at them: with Docker where its daemon answers, else with buildah, which needs none.

Buildah's storage, with the stand-in for the base image, lies in PLACE (ZOPILOT_GPU_IMAGE_DIR): some 30 GB, kept for the next
run, and outside of the tree, which others walk through. Needs root, and Debian's packages buildah and debootstrap.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

ROOT = Path(__file__).parents[2]
# NOTE: no hidden place: BentoML takes no template from there.
PLACE = Path(os.environ.get("ZOPILOT_GPU_IMAGE_DIR") or Path.home() / "zopilot-gpu-image")
BASE = "docker.io/library/python:3.11-slim-bookworm"
CONTEXT = ("Dockerfile", ".dockerignore", "bentofile.yaml", "bentofile.blackwell.yaml", "README.md", "service.py")
FOLDERS = ("image", "requirements", "runners", "zopilot_gpu")
_PACKAGES = "ca-certificates,netbase,tzdata,python3.11,python3.11-venv,python3-pip,libpython3.11-dev"
_BUNDLE = "etc/ssl/certs/ca-certificates.crt"


class Builder(Protocol):
    """What the checks need of a container engine."""

    name: str

    def build(self, context: Path, tag: str, arguments: Sequence[str], log: Path) -> None:
        """The image of the Dockerfile in `context`."""

    def containerize(self, bento: str, home: Path, tag: str, log: Path) -> None:
        """The image of a bento in the store at `home`."""

    def config(self, tag: str) -> dict[str, Any]:
        """User, Env, Entrypoint and so on, in Docker's words."""

    def layers(self, tag: str) -> list[tuple[str, int]]:
        """What made each layer and its bytes, from the base on."""


def run(command: Sequence[str | Path], log: Path | None = None, **options: Any) -> str:
    """The command's output. Where there is a `log` it goes there as it comes; what fails says its last lines."""
    with tempfile.TemporaryFile("w+") if log is None else log.open("a+") as file:
        begun = file.tell()
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, **options)
        file.seek(begun)
        output = file.read()
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))[:300]} ended with {done.returncode}:\n{output[-3000:]}")
    return output


def copy_of_the_tree(target: Path) -> Path:
    """What is built from, with the files' times."""
    target.mkdir()
    for name in CONTEXT:
        shutil.copy2(ROOT / name, target / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def containerized(bento: str, home: Path, backend: str, tag: str, env: dict[str, str], log: Path) -> None:
    """`bentoml containerize`, from the root directory: BentoML refuses a template that is not below the working directory."""
    command = [sys.executable, "-m", "bentoml", "containerize", bento, "--backend", backend, "--image-tag", tag]
    run(command, log, cwd="/", env=os.environ | env | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"})


@dataclass
class Docker:
    """Docker, through its command line."""

    name: str = "docker"

    def build(self, context: Path, tag: str, arguments: Sequence[str], log: Path) -> None:
        run(["docker", "build", "--progress", "plain", "--tag", tag, *arguments, context], log)

    def containerize(self, bento: str, home: Path, tag: str, log: Path) -> None:
        containerized(bento, home, "docker", tag, {}, log)

    def config(self, tag: str) -> dict[str, Any]:
        return dict(json.loads(run(["docker", "image", "inspect", tag]))[0]["Config"])

    def layers(self, tag: str) -> list[tuple[str, int]]:
        form = "{{json .CreatedBy}} {{.Size}}"
        lines = run(["docker", "history", "--no-trunc", "--human=false", "--format", form, tag]).splitlines()
        return [(line.rpartition(" ")[0], int(line.rpartition(" ")[2])) for line in reversed(lines)]


@dataclass
class Buildah:
    """Buildah without isolation but a chroot, so that it runs in a container or a small virtual machine."""

    name: str = "buildah"
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        PLACE.mkdir(parents=True, exist_ok=True)
        settings = PLACE / "storage.conf"
        driver = "overlay" if _overlays() else "vfs"
        settings.write_text(f'[storage]\ndriver = "{driver}"\ngraphroot = "{PLACE / "storage"}"\nrunroot = "{PLACE / "run"}"\n')
        ours = {"CONTAINERS_STORAGE_CONF": str(settings), "BUILDAH_ISOLATION": "chroot", "BUILDAH_FORMAT": "docker"}
        self.env = dict(os.environ) | ours | {"BUILDAH_LAYERS": "true", "TMPDIR": str(PLACE)}
        if not run(["buildah", "images", "--quiet", "--filter", f"reference={BASE}"], env=self.env).strip():
            self._stand_in()

    def build(self, context: Path, tag: str, arguments: Sequence[str], log: Path) -> None:
        with self._tidy():
            run(["buildah", "build", "--pull-never", "--tag", tag, *arguments, context], log, env=self.env)

    def containerize(self, bento: str, home: Path, tag: str, log: Path) -> None:
        with self._tidy():
            containerized(bento, home, "buildah", tag, self.env, log)

    def config(self, tag: str) -> dict[str, Any]:
        return dict(self._inspect(tag)["Docker"]["config"])

    def layers(self, tag: str) -> list[tuple[str, int]]:
        inspected = self._inspect(tag)
        made_by = [one.get("created_by", "") for one in inspected["OCIv1"]["history"] if not one.get("empty_layer")]
        (driver,) = (PLACE / "storage").glob("*-layers/layers.json")
        stored = {layer["diff-digest"]: layer for layer in json.loads(driver.read_text()) if "diff-digest" in layer}
        digests = inspected["OCIv1"]["rootfs"]["diff_ids"]
        return [(name, int(stored[digest]["diff-size"])) for name, digest in zip(made_by, digests, strict=True)]

    @contextmanager
    def _tidy(self) -> Iterator[None]:
        """Removes the working containers that a build with layers leaves in some versions."""
        before = set(run(["buildah", "containers", "--quiet"], env=self.env).split())
        try:
            yield
        finally:
            if left := set(run(["buildah", "containers", "--quiet"], env=self.env).split()) - before:
                run(["buildah", "rm", *left], env=self.env)

    def _inspect(self, tag: str) -> dict[str, Any]:
        return dict(json.loads(run(["buildah", "inspect", "--type", "image", tag], env=self.env)))

    def _stand_in(self) -> None:
        """Debian's own Python where the official image has its own, under the same name: that is not to be had everywhere."""
        base = PLACE / "base"
        if not (base / "usr/bin/python3.11").exists():
            run(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", base], PLACE / "debootstrap.log")
        if Path("/", _BUNDLE).exists():  # of a machine behind a proxy that vouches for itself
            shutil.copy(Path("/", _BUNDLE), base / _BUNDLE)
            (base / "etc/pip.conf").write_text(f"[global]\ncert = /{_BUNDLE}\n")
            (base / "etc/uv").mkdir(exist_ok=True)
            (base / "etc/uv/uv.toml").write_text("native-tls = true\n")
        for name in ("python", "python3", "python3.11"):
            (base / "usr/local/bin" / name).unlink(missing_ok=True)
            (base / "usr/local/bin" / name).symlink_to("/usr/bin/python3.11")
        for path in [*base.glob("var/cache/apt/archives/*.deb"), *base.glob("var/log/*.log")]:
            path.unlink()
        shutil.rmtree(base / "var/lib/apt/lists")
        container = run(["buildah", "from", "scratch"], env=self.env).strip()
        run(["buildah", "copy", "--quiet", container, base, "/"], env=self.env)
        run(
            ["buildah", "config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container],
            env=self.env,
        )
        run(["buildah", "commit", "--quiet", "--rm", container, BASE], env=self.env)


def _overlays() -> bool:
    """Whether a file system can be laid over another here; copies of every layer take ten times the room and the time."""
    script = 'cd "$1" && mkdir -p l u w m && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m'
    trial = PLACE / "overlay"
    trial.mkdir(exist_ok=True)
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script, "sh", trial], capture_output=True)
    shutil.rmtree(trial)
    return done.returncode == 0


def builder() -> Builder:
    """The engine of this machine."""
    if shutil.which("docker") and not subprocess.run(["docker", "info"], capture_output=True).returncode:
        return Docker()
    return Buildah()
