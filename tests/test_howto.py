"""The code of the how-to pages, of the idea and of the README runs, block by block as it stands."""

import os
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
from conftest import ROOT
from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser

SLOW = {"command-line"}  # more than a few seconds each


def shell(example):
    """Run the commands of a block that is marked as bash; those marked as sh are only read."""
    done = subprocess.run(
        ["bash", "-euc", str(example.parsed)],  # noqa: S607  wherever a system has it
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"line {example.line}: {done.stdout}{done.stderr}"


SYBIL = Sybil(
    parsers=[PythonCodeBlockParser(), CodeBlockParser("bash", shell), SkipParser()],
)


def pages():
    for page in [ROOT / "docs" / "idea.md", *sorted((ROOT / "docs" / "howto").glob("*.md"))]:
        marks = [pytest.mark.slow] if page.stem in SLOW else []
        yield pytest.param(page, id=page.stem, marks=marks)


def run(page):
    """Run a page's blocks in order, in one namespace; return how many there were."""
    ran = 0
    for example in SYBIL.parse(page).examples():
        try:
            example.evaluate()
        except unittest.SkipTest:  # the page says why, in a comment before the block
            continue
        ran += 1
    return ran


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", list(pages()))
def test_the_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(page) > 0 or page.stem == "index"
