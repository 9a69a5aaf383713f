"""Plain PyTorch: name the samples, re-weigh, select, and train again on what is kept.

python examples/pytorch.py

Digits of which 40 % are mislabelled; the reference learns from 200 others with checked labels.
"""

import tempfile

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradmimic import Canaries, GradMimic, ScoreLog, select
from gradmimic.data import WithIds, symmetric

CHECKED, TEST, ROWS = np.arange(200), np.arange(200, 600), np.arange(600, 1797)


def tensors(x: np.ndarray, y: np.ndarray) -> TensorDataset:
    return TensorDataset(torch.from_numpy(x).float() / 16 - 0.3, torch.from_numpy(y))


def fresh() -> nn.Module:
    """The same start for all: a direction has no meaning between others."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def train(
    model: nn.Module, loader: DataLoader, mimic: GradMimic | None = None, epochs: int = 10
) -> nn.Module:
    """The loop that one has already, with three lines for the mimic."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    canaries = Canaries(rate=0.2)
    for epoch in range(epochs):
        for x, y, ids in loader:
            if mimic is None:
                loss = F.cross_entropy(model(x), y)
            else:
                with mimic:
                    logits = model(x)
                    losses = F.cross_entropy(logits, y, reduction="none")
                    drawn = canaries.labels(logits, y, ids)
                loss = mimic.weigh(losses, ids, epoch=epoch, canaries=drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    x, y = test.tensors
    return float((model(x).argmax(1) == y).float().mean())


def main() -> None:
    x, y = load_digits(return_X_y=True)
    given = symmetric(y[ROWS], 0.4, 10, seed=0)
    data = WithIds(tensors(x[ROWS], given), ids=ROWS)  # the ids name rows of the whole table
    test, checked = tensors(x[TEST], y[TEST]), WithIds(tensors(x[CHECKED], y[CHECKED]))
    loader = DataLoader(data, batch_size=32, shuffle=True)

    reference = train(fresh(), DataLoader(checked, batch_size=32, shuffle=True), epochs=30)
    print(f"reference     {accuracy(reference, test):.1%}")
    print(f"plain         {accuracy(train(fresh(), loader), test):.1%}")

    with tempfile.TemporaryDirectory() as folder, ScoreLog(folder) as log:
        model = fresh()
        mimic = GradMimic(model, reference, params="all", temperature=0.3, log=log)
        print(f"re-weighted   {accuracy(train(model, loader, mimic), test):.1%}")
        selection = select(log)
    print(selection.summary())

    kept = selection.mask(data.ids)
    print(f"of what is kept {np.mean(given[kept] == y[ROWS][kept]):.1%} are right, of all 60 %")
    for weights in ("keep", "p_clean"):
        sampler = selection.sampler(data.ids, weights=weights)
        model = train(fresh(), DataLoader(data, batch_size=32, sampler=sampler))
        print(f"plain again, by {weights!r:10} {accuracy(model, test):.1%}")


if __name__ == "__main__":
    main()
