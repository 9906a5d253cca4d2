"""The images, built and run on this machine: `make image`. Not part of `make test`: it downloads 6 GB and takes half an hour.

Three of them: the default by the Dockerfile, the default by `bentoml containerize`, and the one for RTX 50xx by the Dockerfile.
Each is built, looked at, run without a network, asked, and stopped. ZOPILOT_GPU_IMAGES=dockerfile,blackwell for some of them.
At the end a table tells their figures.
"""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import KEY
from tests.image.builders import PLACE, ROOT, Builder, builder, copy_of_the_tree, run
from tests.image.containers import Container, Mount, ask, container_of, wait_until_ready
from zopilot_gpu import __version__

pytestmark = pytest.mark.timeout(3600)
BLACKWELL = ("--build-arg", "LOCK=requirements/blackwell.lock.txt")
FORMS = [form for form in os.environ.get("ZOPILOT_GPU_IMAGES", "dockerfile,containerize,blackwell").split(",") if form]
QUESTION = {"prompt": "What is the total?", "context": {"vendor": "Acme", "total": "118.40"}}
SERVES = {"ZOPILOT_GPU_MODEL": "demo", "ZOPILOT_GPU_DEVICE": "cpu", "ZOPILOT_GPU_API_KEY": KEY}
EXPECTED = {"2.6.0": ("12.4", "sm_90", "3.2.0"), "2.8.0": ("12.8", "sm_120", "3.4.0")}
MOST_BYTES = 7e9
SECRETS = re.compile(r"token|secret|password|passwd|credential|api_?key|PRIVATE KEY|index.url|https?://[^/@ ]+@", re.IGNORECASE)
# Whatever a build may leave: caches, lists, logs, version control, keys, notebooks of a shell, tests.
LEFT_OVER = r"""
find / -xdev \( -path /proc -o -path /dev -o -path /tmp \) -prune -o \( \
  -path '/var/lib/apt/lists/?*' -o -path '/var/cache/apt/archives/*.deb' -o -path '/var/cache/apt/*.bin' \
  -o -path '/var/cache/uv/*' \
  -o -path '/roo[t]/.?*/*' -o -path '/hom[e]/?*' -o -path '/build*' -o -path '/var/lib/zopilot-gpu/?*' -o -path '/models/?*' \
  -o -name .git -o -name .env -o -name .netrc -o -name 'id_rsa*' -o -name '*.pypirc' -o -name .bash_history -o -name '.cache' \
  -o -path '/var/log/*.log' -o -path '/app/tests' -o -path '/app/docs' -o -path '/app/benchmarks' -o -path '/app/examples' \
\) -print
"""


@dataclass
class Image:
    """One that was built."""

    form: str
    builder: Builder
    tag: str
    context: Path
    log: Path
    build_s: float
    figures: dict[str, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        return self.builder.config(self.tag)


def build(form: str, engine: Builder, context: Path, tag: str, log: Path) -> float:
    """Builds `form` from `context`; the seconds it took."""
    began_s = time.monotonic()
    if form == "containerize":
        home = context.parent / "bentoml"
        environment = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
        command = [sys.executable, "-m", "bentoml", "build", "--output", "tag"]
        bento = run(command, log, cwd=context, env=os.environ | environment)
        engine.containerize(bento.split("__tag__:")[-1].split()[0], home, tag, log)
    else:
        engine.build(context, tag, BLACKWELL if form == "blackwell" else (), log)
    return time.monotonic() - began_s


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, Image]]:
    made: dict[str, Image] = {}
    yield made
    lines = [f"{'':14}{'build':>8}{'changed':>9}{'ready':>8}{'bytes':>15}  torch, CUDA, cards; the answer"]
    for image in made.values():
        said = image.figures
        lines.append(
            f"{image.form:14}{image.build_s:7.0f}s{said.get('rebuild_s', 0):8.0f}s{said.get('ready_s', 0):7.1f}s"
            f"{said.get('bytes', 0):15,}  {said.get('read')}; {said.get('answer')}"
        )
        lines += [f"    {size / 1e6:8.1f} MB  {' '.join(name.split())[:120]}" for name, size in said.get("layers", [])]
    for image in made.values():
        lines += ["", f"The last lines of {image.form}'s build:", *image.log.read_text().splitlines()[-12:]]
    print("\n\n" + "\n".join(line[:220] for line in lines))  # noqa: T201  (the figures are what `make image` is run for)


@pytest.fixture(scope="module", params=FORMS)
def image(request: pytest.FixtureRequest, images: dict[str, Image], tmp_path_factory: pytest.TempPathFactory) -> Image:
    form = str(request.param)
    if form not in images:
        engine = builder()
        PLACE.mkdir(parents=True, exist_ok=True)
        context = copy_of_the_tree(tmp_path_factory.mktemp(form) / "tree")
        log = PLACE / f"{form}.log"
        log.unlink(missing_ok=True)
        tag = f"localhost/zopilot-gpu:{form}"
        images[form] = Image(form, engine, tag, context, log, build(form, engine, context, tag, log))
    return images[form]


@pytest.fixture(scope="module")
def served(image: Image) -> Iterator[Container]:
    """The service inside, with the demo model, on a port of its own."""
    with container_of(image.builder, image.tag, SERVES | {"PORT": "8123"}) as container:
        image.figures["ready_s"] = wait_until_ready(container, port=8123)
        yield container


def inside(image: Image, *command: str, mounts: tuple[Mount, ...] = (), user: str | None = None) -> tuple[int, str]:
    with container_of(image.builder, image.tag, {}, mounts, ["sleep", "600"]) as container:
        return container.execute(list(command), user)


def test_it_runs_the_service_as_nobody_special_and_says_how_it_is(image: Image) -> None:
    config = image.config()
    assert config["User"] == "1034:1034"
    assert config["Entrypoint"][-1] == "exec bentoml serve service:ZopilotGPU --host 0.0.0.0 --port ${PORT:-3000}"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert "3000/tcp" in config["ExposedPorts"]
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    env = dict(one.split("=", 1) for one in config["Env"])
    assert env["BENTOML_CONTAINERIZED"] == "1"
    assert not [name for name in env if SECRETS.search(name)]


def test_both_forms_are_the_same(image: Image, images: dict[str, Image]) -> None:
    others = [other for other in images.values() if other is not image and "blackwell" not in {other.form, image.form}]
    for other in others:
        assert image.config() == other.config()


def test_its_size(image: Image) -> None:
    layers = image.builder.layers(image.tag)
    image.figures |= {"layers": layers, "bytes": sum(size for _, size in layers)}
    assert image.figures["bytes"] < MOST_BYTES


def test_what_is_built_with_is_not_in_it(image: Image) -> None:
    status, found = inside(image, "sh", "-c", LEFT_OVER, user="0:0")
    assert (status, found.splitlines()) == (0, [])


def test_no_layer_was_made_with_a_secret(image: Image) -> None:
    assert [name for name, _ in image.builder.layers(image.tag) if SECRETS.search(name)] == []


def test_the_code_can_not_be_written_and_its_home_can(image: Image) -> None:
    script = 'id -u; for p in /app /app/.venv /app/zopilot_gpu "$HOME" /models /tmp; do test -w "$p" && echo "$p"; done; true'
    status, said = inside(image, "sh", "-c", script)
    assert (status, said.split()) == (0, ["1034", "/var/lib/zopilot-gpu", "/models", "/tmp"])  # noqa: S108  (the image's own)


def test_every_library_works_and_is_of_the_right_version(image: Image) -> None:
    with container_of(image.builder, image.tag, {}, (), ["sleep", "600"]) as container:
        check = (ROOT / "image" / "check.py").read_text()
        status, said = container.execute(["sh", "-c", f"cat > /tmp/check.py <<'END'\n{check}\nEND\npython -I /tmp/check.py"])
        assert status == 0, said
        found = json.loads(said.splitlines()[-1])
        cuda, newest, triton = EXPECTED[found["torch"].partition("+")[0]]
        assert (found["cuda"], found["triton"], found["arch_flags"].split()[-1]) == (cuda, triton, newest)
        assert (cuda == "12.8") == (image.form == "blackwell")
        assert found["numpy"].startswith("2.")
        assert newest in found["cubin_bytes"]
        image.figures["read"] = f"{found['torch']}, {found['cuda']}, {found['arch_flags']}, NumPy {found['numpy']}"
        pip = ["/usr/local/bin/python", "-m", "pip", "--python", "/app/.venv/bin/python", "check"]
        assert container.execute(pip) == (0, "No broken requirements found.\n")


def test_it_answers(image: Image, served: Container) -> None:
    status, text = ask(served, "POST", "/prompt", QUESTION, KEY, 8123)
    answer = json.loads(text)
    image.figures["answer"] = answer.get("output")
    assert (status, answer.get("output")) == (200, "118.40"), text
    assert ask(served, "POST", "/prompt", QUESTION, port=8123)[0] == 401
    assert json.loads(ask(served, "GET", "/health", key=KEY, port=8123)[1])["version"] == __version__
    assert served.execute(["id", "-u"])[1].strip() == "1034"
    status, said = served.execute(["sh", "-c", "tr '\\0' ' ' < /proc/1/cmdline; grep Uid /proc/1/status"])
    assert "bentoml serve service:ZopilotGPU" in said
    assert said.split("Uid:")[1].split() == ["1034"] * 4


def test_jobs_are_kept_in_its_home(served: Container) -> None:
    status, text = ask(served, "POST", "/jobs", QUESTION, KEY, 8123)
    assert status == 202, text
    assert served.execute(["sh", "-c", "ls $HOME/.local/state/zopilot-gpu"])[1].split()[0] == "jobs.db"


def test_health_is_what_the_check_says(image: Image, served: Container) -> None:
    command = image.config()["Healthcheck"]["Test"][1:]
    assert served.execute(command) == (0, "")
    assert served.execute(["env", "PORT=9", *command])[0] == 1
    assert served.execute(["env", "PORT=9", "ZOPILOT_GPU_FACE=runpod-queue", *command])[0] == 0


def test_no_package_looks_for_the_network(served: Container) -> None:
    assert [line for line in served.log().splitlines() if "Traceback" in line or "resolve" in line.lower()] == []


def test_it_packs_where_it_may_write_and_says_why_where_not(image: Image, tmp_path: Path) -> None:
    command = ["zopilot-gpu", "prepare", "--synthetic", "demo-size", "--volume"]
    status, said = inside(image, *command, "/models")
    assert status == 0, said
    assert "/models/packed/" in said
    tmp_path.chmod(0o755)  # as root's volumes are
    for read_only in (False, True):
        mount = Mount(tmp_path, "/runpod-volume", read_only)
        status, said = inside(image, *command, "/runpod-volume", mounts=(mount,))
        assert (status, "user 1034 can write to" in " ".join(said.split())) == (1, True), said
        assert "Traceback" not in said


def test_without_a_key_it_ends_with_a_sentence(image: Image) -> None:
    with container_of(image.builder, image.tag, {}, (), ["sleep", "600"]) as container:
        status, said = container.execute(image.config()["Entrypoint"])
    assert status == 2
    assert "zopilot-gpu: " in said
    assert "ZOPILOT_GPU_API_KEY" in said


def test_a_stop_is_an_end_with_status_0(image: Image) -> None:
    with container_of(image.builder, image.tag, SERVES) as container:
        wait_until_ready(container)
        assert container.stop() == 0, container.log()[-4000:]


def test_a_change_of_the_code_builds_on_the_packages_that_are_there(image: Image) -> None:
    """Last: it makes another image."""
    before = image.builder.layers(image.tag)
    changed = image.context / "service.py"
    changed.write_text(changed.read_text() + "\n# changed\n")
    tag = f"{image.tag}-changed"
    image.figures["rebuild_s"] = build(image.form, image.builder, image.context, tag, PLACE / f"{image.form}-changed.log")
    after = image.builder.layers(tag)
    assert [size for _, size in after[:3]] == [size for _, size in before[:3]]
    status, said = inside(Image(image.form, image.builder, tag, image.context, image.log, 0), "tail", "-1", "service.py")
    assert (status, said.strip()) == (0, "# changed")
