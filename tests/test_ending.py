"""A rank that ends or does not come is an error, never a hang; and the example, under torchrun."""

import os
import re
import signal
import subprocess
import sys
import time

import on_ranks
import pytest
from conftest import ROOT
from test_launchers import here, message, weighed

from gradmimic import GradMimic
from gradmimic.errors import RankError


def silent(rank, _folder):
    """A rank that does not come in time."""
    model, reference = on_ranks.models()
    mimic = GradMimic(model, reference)
    if rank:
        return time.sleep(3)
    began = time.monotonic()
    text = message(RankError, weighed, mimic, model, *here(rank)[:2])
    assert time.monotonic() - began < 20
    return text


def killed(rank, _folder):
    model, reference = on_ranks.models()
    mimic = GradMimic(model, reference)
    weighed(mimic, model, *here(rank)[:2])
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return message(RankError, weighed, mimic, model, *here(rank)[:2])


CASES = {"silent": silent, "killed": killed}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_rank_that_is_gone_is_an_error_and_no_hang(tmp_path):
    names = [f"test_ending.{name}" for name in CASES]
    found, codes, output = on_ranks.run_on_two(tmp_path, names, patience=2)
    for name in names:
        assert "another rank ended" in found[0][name], (name, found[0][name], output)
    assert codes[1] == -signal.SIGKILL


@pytest.mark.slow
def test_the_example_under_torchrun(tmp_path):
    pytest.importorskip("sklearn")
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         ROOT / "examples" / "ddp.py", tmp_path / "log"],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = re.search(r"2 ranks; removed (\d+) of 1797 samples, (\d+)% .*: (\d+)% of", done.stdout)
    assert found is not None, done.stdout
    removed, right, share = map(int, found.groups())
    assert removed < 900
    assert right > 60
    assert share > 85
