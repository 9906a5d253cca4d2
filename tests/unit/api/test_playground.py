"""Holds the page without a browser: its headers, its policy, nothing from elsewhere, nothing inline, sound HTML."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any

import pytest
from pydantic import SecretStr
from starlette.types import ASGIApp

from zopilot_gpu.api import playground
from zopilot_gpu.api.gate import through_the_gate
from zopilot_gpu.settings import Settings

VOID = {"meta", "link", "input", "img", "br", "hr"}
FILES = {path: files(playground).joinpath(name).read_text() for path, (name, _) in playground._FILES.items()}


def gate(app: ASGIApp, **settings: Any) -> ASGIApp:
    return through_the_gate(app, Settings(api_key=(SecretStr("key-of-the-tests"),), **settings))


class Page(HTMLParser):
    """Collects elements, and refuses what is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page() -> Page:
    page = Page()
    page.feed(FILES["/playground"])
    assert page.open == []
    return page


@pytest.mark.parametrize("path", sorted(playground.PATHS))
async def test_a_file_is_open_and_comes_with_its_policy(client: Any, echo: ASGIApp, path: str) -> None:
    async with client(gate(echo)) as http:
        answer = await http.get(path)
        assert (answer.status_code, answer.text) == (200, FILES[path])
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert set(re.findall(r"https?:|[*]|data:", policy)) == set()
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = await http.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert (await http.head(path)).status_code == 200
        refused = await http.post(path, headers={"X-API-Key": "key-of-the-tests"})
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
        assert refused.json()["error"]["code"] == "method_not_allowed"


async def test_switched_off_it_is_a_path_like_any_other(client: Any, echo: ASGIApp) -> None:
    async with client(gate(echo, playground=False)) as http:
        for path in playground.PATHS:
            assert (await http.get(path)).status_code == 401


@pytest.mark.parametrize("path", ["/playground/", "/playground/x", "/playground/../prompt", "/playground/app", "/Playground"])
async def test_nothing_else_is_open(client: Any, raw: Any, echo: ASGIApp, path: str) -> None:
    assert (await raw(gate(echo), path=path)).status == 401


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(page: Page) -> None:
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            assert name != "style"
            if name in {"src", "href", "action"}:
                assert f"/{value}" in FILES, value
    for path, text in FILES.items():
        own = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?://|//[a-z]+[.]|@import", own), path
    assert "url(" not in FILES["/playground/style.css"]
    assert not re.search(r"<script(?![^>]*src=)|<style", FILES["/playground"])


def test_every_field_has_a_label_and_every_button_a_name(page: Page) -> None:
    labelled = {attributes.get("for") for tag, attributes in page.elements if tag == "label"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    fields = {attributes["id"] for tag, attributes in page.elements if tag in {"input", "textarea"}}
    assert fields == labelled
    assert all("type" in attributes for tag, attributes in page.elements if tag == "button")
    used = set(re.findall(r"""[$][(]["']([\w-]+)["'][)]""", FILES["/playground/app.js"]))
    assert used <= set(ids)


def test_the_key_is_kept_in_the_tab_only() -> None:
    script = FILES["/playground/app.js"]
    assert "sessionStorage" in script
    assert not re.search(r"localStorage|document[.]cookie|indexedDB|innerHTML|eval[(]|new Function", script)
    assert not re.search(r"searchParams|location[.](search|hash)", script)
