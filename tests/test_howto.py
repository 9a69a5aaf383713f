"""The code of the how-to pages, of the idea and of the README runs, block by block as it stands."""

import os
import re
import subprocess
import sys
import unittest
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file
from sybil import Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser
from torch import nn
from torch.nn import functional as F

import gradmimic

# More than a few seconds each.
SLOW = {
    "command-line", "lightning", "lora", "reproduce", "review", "sft-trainer", "sklearn", "trainer",
}  # fmt: skip


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


def changed_loop(page):
    """Return the training loop of a page's diff, with its changes made."""
    (lines,) = re.findall(r"```diff\n(.*?)```", page.read_text(), re.DOTALL)
    return "".join(f"{line[1:]}\n" for line in lines.splitlines() if not line.startswith("-"))


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readme = SYBIL.parse(ROOT / "README.md")
    decide, more = list(readme.examples())[:2]
    model = nn.Linear(8, 3)
    save_file(nn.Linear(8, 3).state_dict(), "better.safetensors")
    x = torch.randn(256, 8)
    y = x[:, :3].argmax(1)
    readme.namespace |= {
        "F": F, "model": model, "optimizer": torch.optim.SGD(model.parameters(), 0.1),
        "loader": list(zip(x.split(32), y.split(32), torch.arange(256).split(32), strict=True)),
    }  # fmt: skip
    exec(changed_loop(ROOT / "README.md"), readme.namespace)  # noqa: S102  our own page
    decide.evaluate()
    assert Path("keep.parquet").exists()
    with gradmimic.ScoreLog("with canaries") as log:
        mimic = gradmimic.GradMimic(model, "better.safetensors", log=log)
        with mimic:
            logits = model(x)
            losses = F.cross_entropy(logits, y, reduction="none")
            drawn = gradmimic.Canaries(1.0).labels(logits, y, range(256))
        mimic.weigh(losses, range(256), canaries=drawn)
    names = ("estimate_quality", "find_label_issues")
    readme.namespace |= {name: getattr(gradmimic, name) for name in names}
    readme.namespace |= {"log": log, "features": x.numpy(), "labels": y.numpy()}
    readme.namespace["clip"] = gradmimic.Selection.from_scores(range(256), torch.rand(256).numpy())
    more.evaluate()


def test_the_site_opens_with_the_loop_of_the_readme():
    assert changed_loop(ROOT / "docs" / "index.md") == changed_loop(ROOT / "README.md")
