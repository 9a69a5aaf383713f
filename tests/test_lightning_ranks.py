"""Two processes with Lightning's DDP come to what one process comes to with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from gradmimic import ScoreLog, select
from gradmimic.data import WithIds

pytestmark = [
    pytest.mark.slow,  # starts processes that import Lightning
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]

# of a folder: which parameters are scored, how many epochs, and where it resumes
CASES = {
    "head": ("head", 2, None),
    "all": ("all", 2, None),
    "cut": ("head", 1, None),
    "resumed": ("head", 2, "cut"),
}


def train(base, name, devices):
    """Train and save; on two ranks each sees every second sample."""
    import lightning.pytorch as pl
    from lit import Lit, noisy, trainer

    from gradmimic.integrations.lightning import MimicCallback

    class Save(pl.Callback):
        def on_train_end(self, trainer, module):
            trainer.save_checkpoint(base / name / "end.ckpt")
            if trainer.global_rank == 0:
                told = {name: value.item() for name, value in trainer.callback_metrics.items()}
                (base / name / "told.json").write_text(json.dumps(told))

    class InOrder(pl.LightningDataModule):
        def train_dataloader(self):
            data, size = WithIds(noisy()), 8 // devices
            if devices == 1:
                return DataLoader(data, size)
            rank = self.trainer.global_rank
            return DataLoader(
                data, size, sampler=DistributedSampler(data, devices, rank, shuffle=False)
            )

    params, epochs, earlier = CASES[name]
    (base / name).mkdir()
    if earlier:
        (base / earlier / "log").rename(base / name / "log")
    callback = MimicCallback(
        base / "better.pt", log=base / name / "log", params=params, temperature=0.5
    )
    settings = {"devices": 2, "strategy": "ddp_fork", "use_distributed_sampler": False}
    run = trainer(base, Save(), callback, max_epochs=epochs, **settings if devices > 1 else {})
    run.fit(Lit(), datamodule=InOrder(), ckpt_path=base / earlier / "end.ckpt" if earlier else None)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    from lit import better

    base = tmp_path_factory.mktemp("lightning")
    found = {}
    for devices in (1, 2):
        folder = base / str(devices)
        folder.mkdir()
        torch.save(better().state_dict(), folder / "better.pt")
        subprocess.run(
            [sys.executable, __file__, str(folder), str(devices)],
            check=True,
            timeout=280,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        found |= {(devices, name): results(folder / name) for name in CASES if name != "cut"}
    return found, base


def results(folder):
    saved = torch.load(folder / "end.ckpt", weights_only=True)
    told = json.loads((folder / "told.json").read_text())
    rows = ScoreLog.read(folder / "log").scan().to_pylist()
    rows.sort(key=lambda row: (row["step"], row["sample_id"]))
    return saved["state_dict"], told, rows


@pytest.mark.parametrize("params", ["head", "all"])
def test_two_ranks_equal_one_process(outcomes, params):
    found, base = outcomes
    one, two = found[1, params], found[2, params]
    for name, weight in one[0].items():
        torch.testing.assert_close(two[0][name], weight, atol=1e-6, rtol=1e-5)
    assert {row["rank"] for row in two[2]} == {0, 1}
    assert len(one[2]) == 80
    for mine, theirs in zip(one[2], two[2], strict=True):
        assert (mine["sample_id"], mine["step"]) == (theirs["sample_id"], theirs["step"])
        assert theirs["batch_size"] == 8
        for name in ("score", "weight", "loss"):
            assert theirs[name] == pytest.approx(mine[name], abs=1e-5)
    epoch = [name for name in one[1] if name.endswith("_epoch")]
    assert len(epoch) == 3
    assert {n: two[1][n] for n in epoch} == pytest.approx({n: one[1][n] for n in epoch}, abs=1e-5)
    assert len(select(base / "2" / params / "log", rule="one_over_b")) == 40


def test_two_ranks_resume(outcomes):
    whole, resumed = outcomes[0][2, "head"], outcomes[0][2, "resumed"]
    for name, weight in whole[0].items():
        torch.testing.assert_close(resumed[0][name], weight, rtol=0, atol=0)
    assert resumed[2] == whole[2]


if __name__ == "__main__":
    for case in CASES:
        train(Path(sys.argv[1]), case, int(sys.argv[2]))
