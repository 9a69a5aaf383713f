"""The README's lines for frameworks, run on tiny models."""

import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def block(marker):
    (found,) = [text for text in BLOCKS if marker in text]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_trainer_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trainers = pytest.importorskip("trainers")
    from transformers import Trainer, TrainingArguments

    model = trainers.model_of("classes")
    better = trainers.model_of("classes")
    better.load_state_dict(trainers.better_than(model), strict=False)
    better.save_pretrained("org/better")
    data = trainers.rows_of("classes")
    args = TrainingArguments("out", max_steps=2, report_to=[], use_cpu=True)
    plain = Trainer(model=model, args=args, train_dataset=data)
    names = {"Trainer": Trainer, "model": model, "args": args, "data": data, "trainer": plain}
    exec(block("class MyTrainer"), names)  # noqa: S102  our own page
    assert plain.mimic.step == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_lines_for_other_frameworks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl = pytest.importorskip("lightning.pytorch")
    import lit
    from torch.utils.data import DataLoader

    from gradmimic import Selection
    from gradmimic.integrations.lightning import MimicCallback
    from gradmimic.integrations.sklearn import MimicClassifier

    model, better = lit.Lit(), lit.better()
    model.train_dataloader = lit.loader
    quiet = {"max_epochs": 1, "logger": False, "enable_progress_bar": False, "accelerator": "cpu"}

    torch.save({"state_dict": better.state_dict()}, "better.ckpt")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4))
    names = {
        "L": SimpleNamespace(Trainer=partial(pl.Trainer, **quiet)), "model": model,
        "MimicCallback": MimicCallback, "MimicClassifier": MimicClassifier,
        "X": x, "y": (x[:, 0] > 0).astype(int), "DataLoader": DataLoader, "data": list(range(60)),
        "selection": Selection.from_scores(range(60), x[:, 0]).above(0.0),
    }  # fmt: skip
    exec(block("MimicCallback("), names)  # noqa: S102  our own page
