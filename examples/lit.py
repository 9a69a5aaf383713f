"""Lightning on digits of which 40 % are mislabelled: one callback re-weighs every batch.

python examples/lit.py

The reference is the same net, trained from the same start on 200 digits with checked labels.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradmimic import select
from gradmimic.data import WithIds, symmetric
from gradmimic.integrations.lightning import MimicCallback

CHECKED, TEST, ROWS = np.arange(200), np.arange(200, 600), np.arange(600, 1797)


class Digits(pl.LightningModule):
    def __init__(self, reduction: str) -> None:
        super().__init__()
        torch.manual_seed(0)  # the same start for all: a direction has no meaning between others
        self.net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.reduction = reduction

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y, _ = batch
        losses = F.cross_entropy(self.net(x), y, reduction=self.reduction)
        self.log("train_loss", losses.mean())
        return losses

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=3e-3)


def loader(x: np.ndarray, y: np.ndarray) -> DataLoader:
    data = TensorDataset(torch.from_numpy(x).float() / 16 - 0.3, torch.from_numpy(y))
    return DataLoader(WithIds(data), batch_size=32, shuffle=True)


def fit(
    model: Digits, data: DataLoader, folder: Path, *callbacks: pl.Callback, epochs: int = 10
) -> pl.Trainer:
    trainer = pl.Trainer(
        max_epochs=epochs,
        callbacks=[*callbacks],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(model, data)
    return trainer


def main(folder: Path) -> None:
    x, y = load_digits(return_X_y=True)
    given = symmetric(y[ROWS], 0.4, 10, seed=0)
    noisy, checked = loader(x[ROWS], given), loader(x[CHECKED], y[CHECKED])

    reference, plain, model = Digits("mean"), Digits("mean"), Digits("none")
    fit(reference, checked, folder, epochs=30).save_checkpoint(folder / "better.ckpt")
    fit(plain, noisy, folder)
    callback = MimicCallback(
        folder / "better.ckpt", log=folder / "scores", params="all", temperature=0.3
    )
    told = fit(model, noisy, folder, callback).callback_metrics

    test = torch.from_numpy(x[TEST]).float() / 16 - 0.3
    for name, one in (("reference", reference), ("plain", plain), ("re-weighted", model)):
        right = one.net(test).argmax(1).numpy() == y[TEST]
        print(f"{name:12} {right.mean():.1%}")
    print({name: round(float(value), 2) for name, value in told.items()})
    print(select(folder / "scores").summary())


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as name:
        main(Path(name))
