"""The site builds from docs without a warning, and asks nobody else for anything."""

import ast
import importlib
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser

import pytest
from conftest import ROOT

from gradmimic.cli import app
from gradmimic.run.config import TASKS

DOCS = ROOT / "docs"
LINK = re.compile(r"\]\(([^()\s#]+\.(?:md|png|py|yaml))(#[^)\s]*)?\)")
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
HINTS = {"author", "canonical", "index", "next", "prev", "search"}  # of <link>: nothing is loaded


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", DOCS, folder],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """Collect what a page loads, other than by a click."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag in LOADED and attrs.get("rel") not in HINTS and (value := attrs.get(LOADED[tag])):
            self.found.append(value)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_loads_nothing_from_elsewhere(site):
    loaded = 0
    for page in site.rglob("*.html"):
        reader = Loads()
        reader.feed(page.read_text())
        for value in reader.found:
            assert not re.match(r"(?:[a-z]+:)?//", value), f"{page.name} loads {value}"
            assert value.startswith("data:") or (page.parent / value.split("?")[0]).exists()
        loaded += len(reader.found)
    assert loaded > 100
    for file in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", file.read_text()), file
    for file in site.rglob("*.js"):
        assert not re.search(
            r"(?:src|fetch\(|import\()\s*[=(]?\s*[\"'`]https?://", file.read_text()
        )


@pytest.mark.slow
def test_the_site_has_every_page_and_its_search_index(site):
    for page in DOCS.rglob("*.md"):
        assert (site / page.relative_to(DOCS)).with_suffix(".html").exists()
    index = (site / "searchindex.js").read_text()
    assert all(word in index for word in ("canari", "gradmimic", "tempera"))


@pytest.mark.slow
def test_commands_keys_and_names_are_those_of_the_package(site):
    said = {page: (site / "reference" / f"{page}.html").read_text() for page in
            ("commands", "keys", "training", "selecting", "errors")}  # fmt: skip
    for command in app.registered_commands:
        assert f"{command.callback.__name__}</span></code><a" in said["commands"]
    for task, kind in TASKS.items():
        assert f">{task}</span>" in said["keys"]
        for key in fields(kind):
            assert f'<span class="pre">{key.name}</span>' in said["keys"]
    import gradmimic
    from gradmimic import errors

    for name in gradmimic.__all__:
        assert f'id="gradmimic.{name}"' in said["training"] + said["selecting"]
    for name in vars(errors):
        if name.endswith("Error"):
            assert f'id="gradmimic.errors.{name}"' in said["errors"]


def slug(heading):
    """Return the anchor that forges give a heading, and Sphinx too."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.stem
)
def test_links_between_pages_lead_somewhere_on_a_forge_too(page):
    for target, anchor in LINK.findall(re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" in target:
            continue
        file = (page.parent / target).resolve()
        assert file.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert anchor[1:] in [slug(heading) for heading in headings], f"{target}{anchor}"


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_python_of_other_pages_is_python_that_imports_what_exists(page):
    """Loops whose data are the reader's cannot run; what they import and how they read can be."""
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        if ">>>" in block:
            continue  # test_howto runs these
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("gradmimic"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), block
