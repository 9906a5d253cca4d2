"""A container of a built image, without a network: by Docker, or in name spaces of its own with the image's files as its root.

What is asked of the service is asked from inside, by the image's own Python. `_Rootfs` does what a runtime does with an image's
configuration: user, environment, working directory, entry point, the service as process 1. Its changes stay out of the image.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.image.builders import Buildah, Builder, run

_ASK = """
import json, sys, urllib.error, urllib.request
method, url, headers, body = json.loads(sys.argv[1])
asked = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers, method=method)
try:
    with urllib.request.urlopen(asked, timeout=60) as answer:
        status, text = answer.status, answer.read().decode()
except urllib.error.HTTPError as error:
    status, text = error.code, error.read().decode()
except OSError as error:
    status, text = 0, str(error)
print(json.dumps([status, text]))
"""
# Mounts are private to the container, and gone with it; {mounts} are those of `Mount`.
_START = """
set -e
mount --make-rprivate /
cd "$1"
mount -t proc proc proc
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmp tmp
{mounts}
ip link set lo up
: > "$5"
exec chroot --userspec="$2" --groups="$3" . /usr/bin/env -i --chdir="$4" "${{@:6}}"
"""


@dataclass(frozen=True)
class Mount:
    """A directory of this machine, seen inside."""

    source: Path
    target: str
    read_only: bool = False


class Container(Protocol):
    """One that runs."""

    def execute(self, command: Sequence[str], user: str | None = None) -> tuple[int, str]:
        """Exit status and output of a command inside, by default as the image's user."""

    def log(self) -> str:
        """What the service has written."""

    def stop(self) -> int:
        """SIGTERM to process 1; its exit status."""


def ask(container: Container, method: str, path: str, body: object = None, key: str = "", port: int = 3000) -> tuple[int, str]:
    """Status and text of a request made inside; status 0 where nothing answers."""
    headers = {"Content-Type": "application/json"} | ({"X-API-Key": key} if key else {})
    asked = json.dumps([method, f"http://127.0.0.1:{port}{path}", headers, body])
    status, output = container.execute(["python", "-I", "-c", _ASK, asked])
    assert status == 0, output
    answer = json.loads(output.splitlines()[-1])
    return int(answer[0]), str(answer[1])


def wait_until_ready(container: Container, port: int = 3000, timeout_s: float = 240) -> float:
    """Seconds until `/readyz` is 200."""
    began_s = time.monotonic()
    while ask(container, "GET", "/readyz", port=port)[0] != 200:
        assert time.monotonic() - began_s < timeout_s, container.log()[-4000:]
        time.sleep(0.5)
    return time.monotonic() - began_s


@contextmanager
def container_of(
    builder: Builder, tag: str, env: dict[str, str], mounts: Sequence[Mount] = (), command: Sequence[str] | None = None
) -> Iterator[Container]:
    """A running container of `tag`; `command` in place of the image's entry point."""
    if isinstance(builder, Buildah):
        with _mounted(builder, tag) as root, _rootfs(builder, tag, root, env, mounts, command) as container:
            yield container
    else:
        with _docker(tag, env, mounts, command) as container:
            yield container


@contextmanager
def _mounted(builder: Buildah, tag: str) -> Iterator[Path]:
    working = run(["buildah", "from", "--pull-never", tag], env=builder.env).strip()
    try:
        yield Path(run(["buildah", "mount", working], env=builder.env).strip())
    finally:
        run(["buildah", "umount", working], env=builder.env)
        run(["buildah", "rm", working], env=builder.env)


@dataclass
class _Rootfs:
    root: Path
    user: str
    env: dict[str, str]
    cwd: str
    process: "subprocess.Popen[bytes]"
    output: Path
    first: int  # process 1, as it is numbered out here

    def execute(self, command: Sequence[str], user: str | None = None) -> tuple[int, str]:
        enter = ["nsenter", "--target", str(self.first), "--mount", "--net", "--pid", "chroot"]
        enter += [f"--userspec={user or self.user}", f"--groups={(user or self.user).rpartition(':')[2]}", str(self.root)]
        enter += ["/usr/bin/env", "-i", f"--chdir={self.cwd}", *(f"{name}={value}" for name, value in self.env.items())]
        done = subprocess.run([*enter, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300)
        return done.returncode, done.stdout

    def log(self) -> str:
        return self.output.read_text()

    def stop(self) -> int:
        os.kill(self.first, signal.SIGTERM)
        return self.process.wait(90)


@contextmanager
def _rootfs(
    builder: Buildah, tag: str, root: Path, env: dict[str, str], mounts: Sequence[Mount], command: Sequence[str] | None
) -> Iterator[_Rootfs]:
    config = builder.config(tag)
    variables = dict(one.split("=", 1) for one in config["Env"]) | env
    lines = []
    for mount in mounts:
        (root / mount.target.strip("/")).mkdir(parents=True, exist_ok=True)
        lines.append(f"mount --bind '{mount.source}' '{mount.target.strip('/')}'")
        if mount.read_only:
            lines.append(f"mount -o remount,bind,ro '{mount.target.strip('/')}'")
    start = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "bash", "-c"]
    start += [_START.format(mounts="\n".join(lines)), "bash", str(root), config["User"], config["User"].rpartition(":")[2]]
    output, ready = root.parent / "output.log", root.parent / "ready"
    start += [config["WorkingDir"], str(ready), *(f"{name}={value}" for name, value in variables.items())]
    with output.open("wb") as file:
        process = subprocess.Popen([*start, *(command or config["Entrypoint"])], stdout=file, stderr=file)
    deadline_s = time.monotonic() + 30
    try:
        while not ready.exists():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline_s, output.read_text()
            time.sleep(0.02)
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        container = _Rootfs(root, config["User"], variables, config["WorkingDir"], process, output, int(first))
        yield container
    finally:
        process.kill()
        process.wait()
        output.unlink()
        ready.unlink(missing_ok=True)


@dataclass
class _Docker:
    name: str

    def execute(self, command: Sequence[str], user: str | None = None) -> tuple[int, str]:
        options = ["--user", user] if user else []
        done = subprocess.run(
            ["docker", "exec", *options, self.name, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        return done.returncode, done.stdout

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return done.stdout

    def stop(self) -> int:
        run(["docker", "kill", "--signal", "TERM", self.name])
        return int(run(["docker", "wait", self.name]))


@contextmanager
def _docker(tag: str, env: dict[str, str], mounts: Sequence[Mount], command: Sequence[str] | None) -> Iterator[_Docker]:
    options = [part for name, value in env.items() for part in ("--env", f"{name}={value}")]
    for mount in mounts:
        options += ["--volume", f"{mount.source}:{mount.target}{':ro' if mount.read_only else ''}"]
    if command:
        options += ["--entrypoint", command[0]]
    started = run(["docker", "run", "--detach", "--network", "none", *options, tag, *(command or [""])[1:]])
    container = _Docker(started.strip())
    try:
        yield container
    finally:
        run(["docker", "rm", "--force", container.name])
