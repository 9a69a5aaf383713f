"""Cross-fitting: a reference made of noisy labels alone, which no sample has seen its own label in.

    z_i = f_{k(i)}(x_i),  f_k fitted to all samples but those of fold k,  i in fold k(i)

A model that learned a wrong label by heart finds it right. One that never saw the sample does not.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradmimic.errors import DataError, ParameterError

Rows = npt.NDArray[np.int64]
Predict: TypeAlias = Callable[[Rows], "Tensor | npt.NDArray[Any]"]
Fit: TypeAlias = Callable[[Rows], Predict]


def cross_fit(
    fit: Fit, n: int, *, folds: int = 5, seed: int = 0, labels: npt.ArrayLike | Tensor | None = None
) -> Tensor:
    """Let every sample be judged by a model that never saw it.

    z_i = f_{k(i)}(x_i), with f_k = fit(all rows but those of fold k)

    Fit with the recipe and as many epochs as the training itself, without label smoothing. The
    outputs are as unsure as noisy labels are. Transport sharpens them; as weights, multiply the
    head by about 10, or the pull is toward less confidence, which punishes clean samples.

    Args:
        fit: ``fit(rows) -> predict``: trains a fresh model on these rows, int64 ``[m]``, and
            returns ``predict(rows) -> [len(rows), K]``, its outputs (a tensor or an array) for
            others. Called once per fold, in order; what ``predict`` holds is free to go before the
            next call.
        n: the number of samples; rows are 0 … n−1.
        folds: the number of models, 2 … n; each learns from (folds − 1)/folds of the samples.
        seed: decides which sample lies in which fold, and nothing else.
        labels: ``[n]`` numbers or names; each one is spread evenly over the folds.

    Returns:
        ``[n, K]`` float32 on the CPU, in the order of the rows; what is good depends on ``fit``.

    Raises:
        ParameterError: fewer than 2 folds, or more than samples.
        DataError: not one label per sample; ``predict`` returns something else than one row of
            finite numbers for each that it was asked for, as wide in every fold.

    Example:
        >>> x, y = torch.tensor([[0.0], [0.2], [1.0], [0.8]]), torch.tensor([0, 0, 1, 1])
        >>> def fit(rows):  # the nearest neighbour's label
        ...     def predict(others):
        ...         nearest = torch.cdist(x[others], x[rows]).argmin(1)
        ...         return torch.eye(2)[y[rows][nearest]]
        ...     return predict
        >>> cross_fit(fit, 4, folds=2, labels=y).argmax(1)
        tensor([0, 0, 1, 1])
    """
    fold = deal(n, folds, seed=seed, labels=labels)  # [n]
    outputs: Tensor | None = None
    for k in range(folds):
        own = np.flatnonzero(fold == k)
        rows = _checked(fit(np.flatnonzero(fold != k))(own), own, k, outputs)
        if outputs is None:
            outputs = torch.empty(n, rows.shape[1])
        outputs[torch.from_numpy(own)] = rows
    assert outputs is not None  # noqa: S101 - there are two folds at least
    return outputs


def deal(
    n: int, folds: int, *, seed: int = 0, labels: npt.ArrayLike | Tensor | None = None
) -> npt.NDArray[np.int64]:
    """Deal samples out to folds by chance, those of each label evenly.

    Args:
        n: the number of samples.
        folds: 2 … n.
        seed: the same one deals the same way.
        labels: ``[n]`` numbers or names.

    Returns:
        ``[n]``, the fold of each sample, 0 … folds−1; folds differ by one sample at most, over all
        and in each label.

    Raises:
        ParameterError: fewer than 2 folds, or more than samples.
        DataError: not one label per sample.

    Example:
        >>> fold = deal(6, 2, labels=["a", "a", "a", "a", "b", "b"])
        >>> sorted(fold[:4].tolist()), sorted(fold[4:].tolist())
        ([0, 0, 1, 1], [0, 1])
    """
    if not 2 <= folds <= n:
        raise ParameterError(
            f"expected from 2 folds to as many as there are samples ({n}), got folds={folds}. "
            + ("More samples are needed." if n < 2 else "5 is a good number; 2 is the cheapest.")
        )
    order = np.random.default_rng(seed).permutation(n)
    if labels is not None:
        given = labels.detach().cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if given.shape != (n,):
            raise DataError(f"expected one label per sample, [{n}], got {list(given.shape)}.")
        order = order[np.argsort(given[order], kind="stable")]
    fold = np.empty(n, dtype=np.int64)
    fold[order] = np.arange(n) % folds
    return fold


def _checked(outputs: Any, own: Rows, k: int, earlier: Tensor | None) -> Tensor:
    """Return one fold's outputs as float32 on the CPU, or say what is wrong with them."""
    values = torch.as_tensor(outputs).detach().float().cpu()
    width = "K" if earlier is None else earlier.shape[1]
    narrow = values.ndim == 2 and width not in ("K", values.shape[1])
    if values.ndim != 2 or len(values) != len(own) or narrow:
        raise DataError(
            f"fold {k}: predict was asked for {len(own)} rows and returned shape "
            f"{list(values.shape)}; expected [{len(own)}, {width}], one row of outputs for each."
            + (" A fold may lack a class: give every fold's model all of them." if narrow else "")
        )
    bad = (~values.isfinite()).any(1).nonzero()[:, 0]
    if len(bad):
        raise DataError(
            f"fold {k}: predict returned NaN or infinite outputs for {len(bad)} of {len(own)} rows,"
            f" the first of them row {own[int(bad[0])]}. Did the fold's training diverge?"
        )
    return values
