"""A run's reference where nobody checked any label: from the noisy labels themselves.

    cross_fit   z_i = f_{k(i)}(x_i),  w_i = p(y_i | z_i): models that never saw sample i say how far
                to trust its label. Fitted again on Σ w_i ℓ_i they say it better, and with these
                weights the reference is fitted to all samples
    early       θ_ref = θ after the first epoch of a plain training
    average     θ_ref = mean of θ after each of its epochs

and then, for each of them, the head's weights × 10. A model of noisy labels is as unsure as they
are; the pull θ_ref − θ would be toward doubt as soon as the model is surer than its reference, and
the samples that it has learned, the clean ones, would score lowest (docs/references.md).
"""

from collections.abc import Callable
from copy import deepcopy
from math import ceil
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.cross_fit import Predict, cross_fit
from gradmimic.measure import check_losses
from gradmimic.run.models import Classifier
from gradmimic.run.train import Rows, batches, logits

Kind = Literal["cross_fit", "early", "average"]

SHARPER = 10.0  # 1 is chance, 2 helps, 4 is nearly enough, 10 and 100 are alike
# Two rounds of three folds and the fit to all are 5 trainings. More of either are worth 0.002 of
# AUROC, and a third round of few samples makes the first one's errors its own.
_FOLDS = 3
_ROUNDS = 2


class Recipe(NamedTuple):
    """How the run trains: a reference is trained alike."""

    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    seed: int


class SelfReference(NamedTuple):
    """What stands in for a better model.

    Attributes:
        model: weights of the run's architecture, from its initial weights, the head sharpened.
        outputs: ``[n, K]`` logits for each training sample, sharpened, on the CPU; from models that
            never saw the sample where the reference is cross-fitted. For transport, and to suggest
            labels.
    """

    model: Classifier
    outputs: Tensor


def self_reference(
    kind: Kind,
    initial: Classifier,
    data: Rows,
    recipe: Recipe,
    *,
    trusted: Rows | None = None,
    progress: Callable[[str, int], Callable[[], None]] = lambda _what, _steps: lambda: None,
) -> SelfReference:
    """Make a reference of the noisy labels, and of trusted ones where there are some.

    Args:
        kind: ``"cross_fit"``, the best, at the cost of five trainings; ``"early"``, that of one
            epoch; or ``"average"``, of one training.
        initial: the model that all trainings start from; left as it is.
        data: inputs and noisy labels.
        recipe: the run's own.
        trusted: rows known to be clean; they take part in every fit, with weight 1, and are judged
            by none.
        progress: told of the training and of every step.

    Returns:
        The reference, as weights and as outputs.

    Raises:
        LossError: a loss is NaN or infinite.
        ParameterError: fewer samples than folds.
    """
    n = len(data)
    extra = 0 if trusted is None else len(trusted)
    both = data if trusted is None else _joined(data, trusted)
    sizes = [n + extra]
    if kind == "cross_fit":
        sizes += [n - len(part) + extra for part in np.array_split(np.arange(n), _FOLDS)] * _ROUNDS
    epochs = 1 if kind == "early" else recipe.epochs
    steps = epochs * sum(ceil(size / recipe.batch_size) for size in sizes)
    on_step = progress("reference", steps)

    def fitted(rows: Rows, weights: Tensor | None) -> Classifier:
        model = deepcopy(initial)
        _fit(model, rows, weights, recipe, on_step)
        return model

    if kind == "cross_fit":
        weights = torch.ones(n + extra, device=data.labels.device)
        outputs = torch.empty(0)
        for _ in range(_ROUNDS):
            outputs = _out_of_fold(fitted, data, both, weights, recipe.seed)
            weights[:n] = agreement(outputs, data.labels)
        model = fitted(both, weights)
    elif kind == "early":
        model = deepcopy(initial)
        _fit(model, both, None, recipe._replace(epochs=1), on_step)
    else:
        model = _averaged(deepcopy(initial), both, recipe, on_step)
    if kind != "cross_fit":
        outputs = logits(model, data.inputs).cpu()
    return SelfReference(sharpened(model), SHARPER * outputs)


def agreement(outputs: Tensor, labels: Tensor) -> Tensor:
    """Say how far to trust each label.

    w_i = p(y_i | z_i) = softmax(z_i)_{y_i}

    Args:
        outputs: ``[n, K]`` logits, not sharpened, from models that never saw sample i.
        labels: ``[n]`` int64.

    Returns:
        ``[n]`` in [0, 1], higher is better.

    Example:
        >>> agreement(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([0.2500, 0.2500])
    """
    chosen = outputs.to(labels.device).softmax(1).gather(1, labels[:, None])
    return chosen[:, 0]


@torch.no_grad()
def sharpened(model: Classifier, factor: float = SHARPER) -> Classifier:
    """Multiply the logits of a classifier, in place: the same classes, said with more certainty."""
    model.head.weight.mul_(factor)
    model.head.bias.mul_(factor)
    return model


def _out_of_fold(
    fitted: Callable[[Rows, Tensor | None], Classifier],
    data: Rows,
    both: Rows,
    weights: Tensor,
    seed: int,
) -> Tensor:
    """Return ``[n, K]`` logits of models that never saw the sample; trusted rows see all folds."""
    n, device = len(data), data.labels.device
    trusted = np.arange(n, len(both))

    def fit(rows: npt.NDArray[np.int64]) -> Predict:
        taken = torch.from_numpy(np.concatenate([rows, trusted])).to(device)
        model = fitted(Rows(both.inputs[taken], both.labels[taken]), weights[taken])
        return lambda own: logits(model, data.inputs[torch.from_numpy(own).to(device)])

    return cross_fit(fit, n, folds=_FOLDS, seed=seed, labels=data.labels)


def _fit(
    model: nn.Module,
    data: Rows,
    weights: Tensor | None,
    recipe: Recipe,
    on_step: Callable[[], None],
) -> None:
    """Train on mean(w_i ℓ_i) of each batch; without weights that is the run's plain training."""
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    model.train()
    for _, rows in batches(len(data), recipe.batch_size, recipe.epochs, recipe.seed):
        z = model(data.inputs[rows])  # [b, K]
        losses = check_losses(F.cross_entropy(z, data.labels[rows], reduction="none"))  # [b]
        if weights is not None:
            losses = weights[rows] * losses
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        on_step()


def _averaged(
    model: Classifier, data: Rows, recipe: Recipe, on_step: Callable[[], None]
) -> Classifier:
    """Train, and return the mean of the weights after each epoch."""
    total = deepcopy(model)
    parameters = list(zip(total.parameters(), model.parameters(), strict=True))
    per_epoch, step = ceil(len(data) / recipe.batch_size), 0

    @torch.no_grad()
    def after_step() -> None:
        nonlocal step
        step += 1
        if step % per_epoch == 0:
            for mean, parameter in parameters:
                mean.lerp_(parameter, per_epoch / step)  # 1, ½, ⅓ …: the first one replaces
        on_step()

    _fit(model, data, None, recipe, after_step)
    return total


def _joined(data: Rows, trusted: Rows) -> Rows:
    """Put the trusted rows behind the others."""
    return Rows(torch.cat([data.inputs, trusted.inputs]), torch.cat([data.labels, trusted.labels]))
