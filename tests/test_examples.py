"""Every example is short and runs: here, or in the tests of what it shows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from gradmimic.run.config import load_task

FOLDER = ROOT / "examples"
HERE = {"clip.py": "data/trusted.tar", "digits.py": "data/train.parquet"}  # what each writes
SCRIPTS = sorted(FOLDER.rglob("*.py"), key=lambda path: path.name)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_an_example_is_short_and_run_by_a_test(script):
    assert len(script.read_text().splitlines()) < 100
    if script.name not in HERE:
        others = (path for path in (ROOT / "tests").glob("test_*.py") if path != Path(__file__))
        pages = [FOLDER / "datacomp" / "README.md"]  # whose commands test_datacomp_example runs
        name = re.compile(rf"\b{re.escape(script.name)}\b")
        assert any(name.search(path.read_text()) for path in (*others, *pages))


@pytest.mark.parametrize(("name", "written"), HERE.items())
def test_an_example_writes_its_data(name, written, tmp_path):
    done = subprocess.run(
        [sys.executable, FOLDER / name, "data"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / written).stat().st_size > 100_000


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.name)
def test_the_keys_of_an_example_are_right(file):
    assert load_task(file, {}).data
