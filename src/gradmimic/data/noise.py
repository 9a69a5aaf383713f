"""Injected label noise: k = ⌊ρN⌋ labels are wrong, exactly, and which ones depends on the seed.

symmetric   c → c + u mod K, u uniform on 1 … K−1: any other class, all equally likely
pair_flip   c → c + 1 mod K: always the next class, as if every class had one that it is taken for
"""

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.errors import ConfigError, DataError

Labels = npt.NDArray[np.int64]


def symmetric(labels: npt.NDArray[Any], rate: float, classes: int, seed: int) -> Labels:
    """Move exactly ⌊ρN⌋ labels to another class, uniformly over the other classes.

    Args:
        labels: class numbers, ``[n]``, integers in ``0 … classes − 1``.
        rate: ρ, the share of labels to change, in [0, 1].
        classes: K, the number of classes, at least 2.
        seed: the same seed changes the same labels in the same way.

    Returns:
        The noisy labels, ``[n]`` int64; the input is left as it is.

    Raises:
        ConfigError: the rate is outside [0, 1].
        DataError: fewer than two classes, or labels that are not class numbers.

    Source: arXiv 2501.06708, the noise of its label-noise experiments.

    Example:
        >>> clean = np.arange(10) % 5
        >>> noisy = symmetric(clean, rate=0.4, classes=5, seed=0)
        >>> int((noisy != clean).sum())
        4
    """
    clean, rows, rng = _choose(labels, rate, classes, seed)
    shift = rng.integers(1, classes, size=len(rows))  # [k], 1 … K−1: never the class itself
    return _moved(clean, rows, shift, classes)


def pair_flip(labels: npt.NDArray[Any], rate: float, classes: int, seed: int) -> Labels:
    """Move exactly ⌊ρN⌋ labels to the next class, c → c + 1 mod K.

    Args:
        labels: class numbers, ``[n]``, integers in ``0 … classes − 1``.
        rate: ρ, the share of labels to change, in [0, 1].
        classes: K, the number of classes, at least 2.
        seed: the same seed changes the same labels.

    Returns:
        The noisy labels, ``[n]`` int64; the input is left as it is.

    Raises:
        ConfigError: the rate is outside [0, 1].
        DataError: fewer than two classes, or labels that are not class numbers.

    Example:
        >>> pair_flip(np.array([0, 1, 2]), rate=1.0, classes=3, seed=0)
        array([1, 2, 0])
    """
    clean, rows, _ = _choose(labels, rate, classes, seed)
    return _moved(clean, rows, np.ones(len(rows), dtype=np.int64), classes)


def _choose(
    labels: npt.NDArray[Any], rate: float, classes: int, seed: int
) -> tuple[Labels, npt.NDArray[np.int64], np.random.Generator]:
    """Check the arguments and draw the rows whose label will change."""
    if not 0 <= rate <= 1:
        raise ConfigError(f"the noise rate is a share of the labels, in [0, 1]; got {rate}")
    if classes < 2:
        raise DataError(f"label noise needs at least 2 classes to move between; got {classes}")
    labels = np.asarray(labels)
    if labels.ndim != 1 or (labels.dtype.kind not in "iu" and labels.size):
        raise DataError(
            "labels must be class numbers, one integer per sample; "
            f"got shape {labels.shape} of {labels.dtype}"
        )
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if outside.size:
        raise DataError(
            f"labels must lie in 0 … {classes - 1} for {classes} classes; "
            f"row {outside[0]} holds {labels[outside[0]]}"
        )
    rng = np.random.default_rng(seed)
    rows = rng.choice(len(labels), size=_count(rate, len(labels)), replace=False)
    return labels.astype(np.int64), rows, rng


def _count(rate: float, samples: int) -> int:
    """⌊ρN⌋ for the ρ that was written down."""
    # 0.29 * 100 is 28.999…96 in binary: the nudge of a few ulps undoes the rounding of ρ and of ρN.
    return math.floor(rate * samples * (1 + 4 * sys.float_info.epsilon))


def _moved(
    labels: Labels, rows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64], classes: int
) -> Labels:
    """Shift the class of the chosen rows, in place, and return the labels."""
    labels[rows] = (labels[rows] + shift) % classes
    return labels
