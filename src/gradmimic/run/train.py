"""One training: AdamW on shuffled batches, plain or re-weighted by mimic's or others' scores."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.canaries import Canaries
from gradmimic.measure import check_losses
from gradmimic.reweight import GradMimic
from gradmimic.scorers import BatchScorer


@dataclass(frozen=True)
class Rows:
    """Inputs and class numbers of one data set, on the device that trains.

    Args:
        inputs: ``[n, …]``.
        labels: ``[n]`` int64.
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Curve:
    """What one training came to, a value for each epoch, and one for each step."""

    loss: list[float] = field(default_factory=list)  # mean of the unweighted training losses
    accuracy: list[float] = field(default_factory=list)  # on the test set, where there is one
    step_loss: list[float] = field(default_factory=list)  # of each step's batch, unweighted

    def by_epoch(self) -> dict[str, list[float]]:
        """Return what there is for each epoch, as plain data."""
        return {"loss": self.loss, "accuracy": self.accuracy}


def batches(n: int, size: int, epochs: int, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Yield (epoch, row numbers) of every batch; the same seed gives the same order.

    Example:
        >>> [(epoch, len(rows)) for epoch, rows in batches(5, size=3, epochs=2, seed=0)]
        [(0, 3), (0, 2), (1, 3), (1, 2)]
    """
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for rows in torch.randperm(n, generator=generator).split(size):
            yield epoch, rows


def train(
    model: nn.Module,
    data: Rows,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    seed: int,
    test: Rows | None = None,
    mimic: GradMimic | None = None,
    scores: BatchScorer | None = None,
    canaries: Canaries | None = None,
    ids: list[int] | list[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Curve:
    """Train a classifier in place.

    Args:
        model: the model, on the data's device.
        data: what it learns from.
        epochs: passes over the data.
        batch_size: samples per step; the last batch of a pass may be smaller.
        lr: AdamW's learning rate.
        weight_decay: AdamW's weight decay.
        seed: fixes the order of the batches.
        test: measured after every epoch.
        mimic: re-weights every batch, where given.
        scores: likewise; beside a mimic they are logged alone.
        canaries: drawn from every batch to be scored too.
        ids: ``[n]`` sample ids for the log.
        optimizer: what steps, where a scorer looks into it; None: AdamW of these settings.
        on_step: called after every step.

    Returns:
        Loss and accuracy for each epoch.

    Raises:
        LossError: a loss is NaN or infinite.
    """
    if optimizer is None:
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    curve = Curve()
    last_epoch, total, seen = 0, 0.0, 0

    def end_epoch() -> None:
        curve.loss.append(total / seen)
        if test is not None:
            curve.accuracy.append(accuracy(model, test))

    for epoch, rows in batches(len(data), batch_size, epochs, seed):
        if epoch != last_epoch:
            end_epoch()
            last_epoch, total, seen = epoch, 0.0, 0
        model.train()
        x, y = data.inputs[rows], data.labels[rows]
        batch_ids = rows if ids is None else [ids[row] for row in rows.tolist()]
        with mimic or nullcontext(), scores or nullcontext():
            z = model(x)  # [b, K]
            losses = F.cross_entropy(z, y, reduction="none")  # [b]
            drawn = canaries.labels(z, y, batch_ids) if (mimic or scores) and canaries else None
        if scores is not None:
            loss = scores.weigh(z, y, batch_ids, epoch=epoch, canaries=drawn)
        if mimic is not None:
            loss = mimic.weigh(losses, batch_ids, epoch=epoch, canaries=drawn)
        elif scores is None:
            loss = check_losses(losses).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        own = float(losses.detach().sum())
        total, seen = total + own, seen + len(rows)
        curve.step_loss.append(own / len(rows))
        on_step()
    end_epoch()
    return curve


def few_of_each(rows: Rows, seed: int, each: int) -> tuple[Tensor, Tensor]:
    """Draw some samples of each class.

    Args:
        rows: what to draw from.
        seed: the same one draws the same ones.
        each: how many of each class; all, where there are fewer.

    Returns:
        Inputs and labels.

    Example:
        >>> rows = Rows(torch.eye(4), torch.tensor([0, 0, 0, 1]))
        >>> few_of_each(rows, seed=0, each=2)[1]
        tensor([0, 0, 1])
    """
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    order = order.to(rows.labels.device)
    classes = rows.labels[order]
    chosen = torch.cat([order[classes == label][:each] for label in classes.unique()])
    return rows.inputs[chosen], rows.labels[chosen]


@torch.no_grad()
def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return ``[n, K]``, what a model says of each input."""
    model.eval()
    return torch.cat([model(block) for block in inputs.split(1024)])


def predict(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return ``[n]``, the class numbers that a model gives."""
    return logits(model, inputs).argmax(1)


def accuracy(model: nn.Module, data: Rows) -> float:
    """Return the share of right predictions, in [0, 1]."""
    return float((predict(model, data.inputs) == data.labels).float().mean())
