"""How far apart do scores of good and bad samples lie? AUROC, and how sure of it one can be.

AUROC = P(m_bad < m_good) + P(m_bad = m_good) / 2
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Area(NamedTuple):
    """An AUROC with its 95 % interval, all in [0, 1]: 1 is perfect, 0.5 is chance."""

    value: float
    low: float
    high: float


def auroc(scores: npt.ArrayLike, wrong: npt.ArrayLike) -> float | None:
    """Take the chance that a wrong label scores lower than a right one.

    AUROC = P(m_wrong < m_right) + P(m_wrong = m_right) / 2

    Args:
        scores: ``[n]``; higher is better.
        wrong: ``[n]`` bool, true where the label is wrong.

    Returns:
        In [0, 1]; 1 is perfect, 0.5 is chance. None where all labels are right, or all are wrong.

    Example:
        >>> auroc([-1.0, 0.2, 0.3, 0.1], [True, False, False, False])
        1.0
    """
    scores, wrong = np.asarray(scores, dtype=np.float64), np.asarray(wrong, dtype=bool)
    if wrong.all() or not wrong.any():
        return None
    return separation(scores[~wrong], scores[wrong]).value


def separation(good: npt.ArrayLike, bad: npt.ArrayLike) -> Area:
    """Take the chance that a bad sample scores lower than a good one, with its interval.

    A ± 1.96 √(Var_j P(good > bad_j) / m + Var_i P(good_i > bad) / n)

    Args:
        good: ``[n]`` scores, n ≥ 1.
        bad: ``[m]`` scores, m ≥ 1.

    Returns:
        The area and its 95 % interval, never narrower than one sample's share.

    Source:
        DeLong, DeLong, Clarke-Pearson 1988.

    Example:
        >>> separation([1.0, 2.0, 3.0], [0.0, 2.0]).value
        0.75
    """
    good, bad = np.sort(np.asarray(good, np.float64)), np.sort(np.asarray(bad, np.float64))
    n, m = len(good), len(bad)
    # For each bad score the share of good ones above it, and the other way round; ties are half.
    above = 1 - (np.searchsorted(good, bad, "left") + np.searchsorted(good, bad, "right")) / (2 * n)
    below = (np.searchsorted(bad, good, "left") + np.searchsorted(bad, good, "right")) / (2 * m)
    area = float(above.mean())
    variance = (above.var(ddof=1) if m > 1 else 0.25) / m + (
        below.var(ddof=1) if n > 1 else 0.25
    ) / n
    half = max(1.96 * float(variance) ** 0.5, 1 / (2 * n) + 1 / (2 * m))
    return Area(area, max(0.0, area - half), min(1.0, area + half))
