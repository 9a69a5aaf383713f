"""Headless Chromium for the tests of pages: offline, and listening to all that goes wrong.

Test modules import the two fixtures; both skip where there is no Playwright or no Chromium.
"""

import os
import shutil
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def find_chromium():
    """Return the path of a Chromium: $CHROMIUM, or what the machine calls by one of its names."""
    named = os.environ.get("CHROMIUM")
    return named or next((found for name in NAMES if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def chromium():
    """A browser, started once for a module."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of 'dev'")
    path = find_chromium()
    if path is None:
        pytest.skip(f"no Chromium: set CHROMIUM to one, or install {NAMES[0]}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(QUIET))
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Open a file in a window of its own, with nothing stored; it must be quiet to the end.

    ``page.troubles`` lists what the console called an error or a warning, what scripts raised, and
    every request that was made but for the file itself.
    """
    opened = []

    def open_one(path, **options):
        options = {"viewport": {"width": 1100, "height": 900}, **options}
        context = chromium.new_context(offline=True, accept_downloads=True, **options)
        page = context.new_page()
        page.set_default_timeout(20_000)
        own = Path(path).resolve().as_uri()
        troubles = page.troubles = []
        page.on("console", lambda said: told(troubles, said))
        page.on("pageerror", lambda error: troubles.append(f"script: {error}"))
        page.on("request", lambda asked: asked_for(troubles, asked.url, own))
        opened.append((context, troubles))
        page.goto(own)
        return page

    yield open_one
    for context, troubles in opened:
        context.close()
        assert troubles == []


def told(troubles, said):
    if said.type in ("error", "warning"):
        troubles.append(f"console: {said.text}")


def asked_for(troubles, url, own):
    if url != own and not url.startswith(("data:", "blob:")):
        troubles.append(f"request: {url}")
