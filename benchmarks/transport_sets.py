"""The sets of benchmarks/transport.py: noisy samples, a reference from elsewhere, a test set.

Labels are 40 % symmetric noise throughout. Each reference is a model of the same shape from another
initialisation, trained on trusted samples that are not among the noisy ones.
"""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.data import symmetric
from gradmimic.data.images import read_parquet_images
from gradmimic.separation import auroc

DATA = Path(os.environ.get("GRADMIMIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
RATE = 0.4

Build = Callable[[int], nn.Sequential]


@dataclass(frozen=True)
class Task:
    """Noisy samples, and what a reference says of them.

    Args:
        x: inputs of the noisy samples ``[n, …]``.
        y: their true labels ``[n]``.
        noisy: their given ones.
        said: the reference's logits ``[n, K]``.
        test: inputs and labels.
        build: seed -> trunk and head, whose names are 0 and 1.
        reference: what the reference is worth.
        groups: classes to be looked at by themselves.
    """

    name: str
    x: Tensor
    y: Tensor
    noisy: Tensor
    said: Tensor
    test: tuple[Tensor, Tensor]
    build: Build
    epochs: int
    batch: int
    lr: float
    reference: dict[str, float]
    groups: dict[str, list[int]] = field(default_factory=dict)

    def accuracy(self, model: nn.Module) -> float:
        return float((logits(model, self.test[0]).argmax(1) == self.test[1]).float().mean())


@torch.no_grad()
def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return what a model says in eval mode."""
    model.eval()
    found = torch.cat([model(part) for part in x.split(500)])
    model.train()
    return found


def cnn(channels: int, width: int) -> Build:
    def block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True),
        )  # fmt: skip

    def build(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        blocks = block(channels, width), block(width, 2 * width), block(2 * width, 4 * width)
        trunk = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(trunk, nn.Linear(4 * width, 10))

    return build


def mlp(inputs: int, width: int, classes: int) -> Build:
    def build(seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        trunk = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        return nn.Sequential(trunk, nn.Linear(width, classes))

    return build


def fit(model: nn.Sequential, x: Tensor, y: Tensor, epochs: int, lr: float, seed: int) -> None:
    """Train a reference."""
    steps = epochs * -(-len(x) // 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()


def _task(
    name: str, x: Any, y: Any, sizes: tuple[int, int], build: Build, seed: int,
    *, epochs: int, trusted_epochs: int, batch: int, lr: float,
    test: tuple[Any, Any] | None = None,
) -> Task:  # fmt: skip
    """Split, corrupt, and train the reference. Sizes: trusted and noisy ones; test is the rest."""
    order = np.random.default_rng(seed).permutation(len(y))
    trusted, train, rest = np.split(order, np.cumsum(sizes))
    x, y = torch.as_tensor(x).float(), torch.as_tensor(np.asarray(y, np.int64))
    held_out = (x[rest], y[rest])
    if test is not None:
        held_out = torch.as_tensor(test[0]).float(), torch.as_tensor(np.asarray(test[1], np.int64))
    mean, spread = x[trusted].mean(0, keepdim=True), x[trusted].std()
    if x.ndim == 4:
        mean = mean.mean((2, 3), keepdim=True)
    x, held_out = (x - mean) / spread, ((held_out[0] - mean) / spread, held_out[1])
    noisy = torch.from_numpy(symmetric(y[train].numpy(), RATE, int(y.max()) + 1, seed))
    reference = build(seed + 7777)
    fit(reference, x[trusted], y[trusted], trusted_epochs, lr, seed)
    said = logits(reference, x[train])
    loss = F.cross_entropy(said, noisy, reduction="none")
    worth = {
        "accuracy": float((logits(reference, held_out[0]).argmax(1) == held_out[1]).float().mean()),
        "auroc of its own loss": auroc(-loss.numpy(), (noisy != y[train]).numpy()) or 0.0,
    }
    return Task(name, x[train], y[train], noisy, said, held_out, build, epochs, batch, lr, worth)


def fashion_mnist(seed: int) -> Task:
    def idx(kind: str, offset: int) -> Any:
        with gzip.open(DATA / "fashion_mnist" / f"t10k-{kind}-ubyte.gz") as file:
            return np.frombuffer(file.read(), np.uint8)[offset:]

    x = idx("images-idx3", 16).reshape(-1, 1, 28, 28).astype(np.float32)
    return _task(
        "fashion-mnist", x, idx("labels-idx1", 8), (1000, 6000), cnn(1, 16), seed,
        epochs=6, trusted_epochs=20, batch=64, lr=3e-3,
    )  # fmt: skip


def cifar10(seed: int) -> Task:
    path = DATA / "cifar10n" / "images_train.parquet"
    labels = pq.read_table(path, columns=["clean_label"])["clean_label"].to_numpy()
    x = read_parquet_images(path, "image", 32).pixels[:15_000]
    return _task(
        "cifar10n images", x, labels[:15_000], (5000, 8000), cnn(3, 16), seed,
        epochs=5, trusted_epochs=10, batch=64, lr=3e-3,
    )  # fmt: skip


def dtd(seed: int) -> Task:
    path = DATA / "dtd10" / "images.parquet"
    labels = pq.read_table(path, columns=["label"])["label"].to_numpy()
    x = read_parquet_images(path, "image", 32).pixels
    return _task(
        "dtd", x, labels, (300, 600), cnn(3, 16), seed,
        epochs=20, trusted_epochs=40, batch=32, lr=3e-3,
    )  # fmt: skip


def banking77(seed: int) -> Task:
    folder = DATA / "banking77"
    y, yt = (
        pq.read_table(folder / f"{part}.parquet", columns=["label"])["label"].to_numpy()
        for part in ("train", "test")
    )
    x, xt = (np.load(folder / f"features_{part}.npy") for part in ("train", "test"))
    return _task(
        "banking77", x.astype(np.float32), y, (2000, 8000), mlp(384, 256, 77), seed,
        epochs=5, trusted_epochs=30, batch=64, lr=3e-3, test=(xt.astype(np.float32), yt),
    )  # fmt: skip


SETS: dict[str, Callable[[int], Task]] = {
    "fashion-mnist": fashion_mnist, "cifar10n images": cifar10, "dtd": dtd, "banking77": banking77,
}  # fmt: skip


def shuffled(task: Task, batch: int) -> Task:
    """The same in batches of another size."""
    lr = task.lr * (batch / task.batch) ** 0.5
    return replace(task, name=f"{task.name}, batches of {batch}", batch=batch, lr=lr)


def few(task: Task, per_class: int) -> Task:
    """So many noisy samples of each true class, in small batches and for more epochs."""
    rows = torch.cat([(task.y == c).nonzero()[:per_class, 0] for c in task.y.unique()])
    epochs = max(task.epochs, min(40, 4000 // len(rows)))
    name = f"{task.name}, {per_class} a class"
    return _only(replace(task, name=name, epochs=epochs, batch=16), rows)


def long_tailed(task: Task, ratio: float = 50.0) -> Task:
    """Class c has n₀ · ratio^(−c/9) samples."""
    n = int((task.y == 0).sum())
    rows = torch.cat(
        [(task.y == c).nonzero()[: max(1, round(n * ratio ** (-c / 9))), 0] for c in range(10)]
    )
    groups = {"head": [0, 1, 2, 3], "tail": [6, 7, 8, 9]}
    task = replace(task, name=f"{task.name}, long-tailed", epochs=15, batch=32, groups=groups)
    noisy = task.noisy.clone()
    noisy[rows] = torch.from_numpy(symmetric(task.y[rows].numpy(), RATE, 10, 0))
    return _only(replace(task, noisy=noisy), rows)


def wide(task: Task) -> Task:
    """A head on 2,048 features, more than the statistics remember samples."""

    def build(seed: int) -> nn.Sequential:
        trunk = task.build(seed)[0]
        return nn.Sequential(
            nn.Sequential(trunk, nn.Linear(64, 2048), nn.ReLU()), nn.Linear(2048, 10)
        )

    return replace(task, name=f"{task.name}, 2,048 features", build=build, batch=32, epochs=3)


def thousand_classes(seed: int) -> Task:
    """Clouds around 1,000 centres, 2,048 learned features, a reference that errs a little.

    A wrong label is one of the ten nearest classes: any other of 1,000 would give itself away.
    """
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(1000, 128, generator=generator)
    y = torch.randint(1000, (10_000,), generator=generator)
    x = centres[y] + 2 * torch.randn(len(y), 128, generator=generator)
    near = torch.cdist(centres, centres).topk(11, largest=False).indices[:, 1:]  # [1000, 10]
    noisy, wrong = y[:8_000].clone(), torch.rand(8_000, generator=generator) < RATE
    other = torch.randint(10, (8_000,), generator=generator)
    noisy[wrong] = near[y[:8_000], other][wrong]
    said = x @ (centres + 0.5 * torch.randn(1000, 128, generator=generator)).T / 4
    loss = F.cross_entropy(said[:8_000], noisy, reduction="none")
    worth = {
        "accuracy": float((said[8_000:].argmax(1) == y[8_000:]).float().mean()),
        "auroc of its own loss": auroc(-loss.numpy(), (noisy != y[:8_000]).numpy()) or 0.0,
    }
    return Task(
        "1,000 classes, 2,048 features", x[:8_000], y[:8_000], noisy, said[:8_000],
        (x[8_000:], y[8_000:]), mlp(128, 2048, 1000), 1, 64, 1e-3, worth,
    )  # fmt: skip


def _only(task: Task, rows: Tensor) -> Task:
    return replace(
        task, x=task.x[rows], y=task.y[rows], noisy=task.noisy[rows], said=task.said[rows]
    )
