"""The code of the how-to pages, of the idea and of the README runs, block by block as it stands."""

import unittest

import pytest
from conftest import ROOT
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

SYBIL = Sybil(parsers=[PythonCodeBlockParser(), SkipParser()])
PAGES = [ROOT / "docs" / "idea.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]


def run(page):
    """Run a page's Python blocks in order, in one namespace; return how many there were."""
    ran = 0
    for example in SYBIL.parse(page).examples():
        try:
            example.evaluate()
        except unittest.SkipTest:  # the page says why, in a comment before the block
            continue
        ran += 1
    return ran


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(page) or page.stem == "index"
