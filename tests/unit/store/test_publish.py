"""What a manifest says of its maker, where the project itself is not installed: the image holds its files only."""

from importlib.metadata import PackageNotFoundError, version

import pytest

from zopilot_gpu import __version__
from zopilot_gpu.store import publish
from zopilot_gpu.store.locate import DEMO_DIRECTORY, Located


def test_a_manifest_is_made_where_the_project_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def installed(name: str) -> str:
        if name == "zopilot-gpu":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(publish, "version", installed)
    made = publish.manifest_of(Located("demo", DEMO_DIRECTORY, None, "mixtral"), "f", "double", {})
    assert made.made_by == {"zopilot-gpu": __version__, "bitsandbytes": version("bitsandbytes"), "torch": version("torch")}
