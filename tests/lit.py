"""A small Lightning training that test modules share, plain or with the callback."""

import lightning.pytorch as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradmimic.data import WithIds

N, WIDTH, CLASSES = 40, 5, 3


class Lit(pl.LightningModule):
    """Returns [b] losses for the callback, or their mean without it."""

    def __init__(self, unreduced=True, lr=0.1, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.trunk = nn.Sequential(nn.Linear(WIDTH, 8), nn.Tanh())
            self.head = nn.Linear(8, CLASSES)
        self.unreduced, self.lr = unreduced, lr

    def forward(self, x):
        return self.head(self.trunk(x))

    def losses(self, batch):
        return F.cross_entropy(self(batch[0]), batch[1], reduction="none")

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        return losses if self.unreduced else losses.mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)


def rows(n=N, seed=0):
    chance = torch.Generator().manual_seed(seed)
    x = torch.randn(n, WIDTH, generator=chance)
    return TensorDataset(x, x[:, :CLASSES].argmax(1))


def noisy(n=N):
    x, y = rows(n).tensors
    y = y.clone()
    y[::3] = (y[::3] + 1) % CLASSES
    return TensorDataset(x, y)


def loader(data=None, size=8, **options):
    return DataLoader(WithIds(noisy() if data is None else data), size, **options)


def better():
    """A reference: the same start, trained a while on right labels."""
    model = Lit()
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    x, y = rows(200, seed=1).tensors
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def trainer(folder, *callbacks, **options):
    quiet = dict.fromkeys(
        ("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    settings = {"max_epochs": 2, "logger": False, "accelerator": "cpu", "devices": 1} | quiet
    return pl.Trainer(default_root_dir=folder, callbacks=[*callbacks], **settings | options)
