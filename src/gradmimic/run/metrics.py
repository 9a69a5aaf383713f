"""How well scores and selections find labels that are known to be wrong."""

import numpy as np
import numpy.typing as npt


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
    bad, good = int(wrong.sum()), int((~wrong).sum())
    if not bad or not good:
        return None
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2  # ties share the middle of their ranks, from 1
    right_ranks = float(rank[place][~wrong].sum())
    return (right_ranks - good * (good + 1) / 2) / (bad * good)


def detection(removed: npt.ArrayLike, wrong: npt.ArrayLike) -> dict[str, float]:
    """Compare what a selection removes with the labels that are wrong.

    precision = |removed ∧ wrong| / |removed|,  recall = |removed ∧ wrong| / |wrong|,
    F1 = 2 |removed ∧ wrong| / (|removed| + |wrong|)

    Args:
        removed: ``[n]`` bool.
        wrong: ``[n]`` bool.

    Returns:
        ``precision``, ``recall`` and ``f1``, each in [0, 1], higher is better; 0 where undefined.

    Example:
        >>> detection([True, True, False], [True, False, False])["precision"]
        0.5
    """
    removed, wrong = np.asarray(removed, dtype=bool), np.asarray(wrong, dtype=bool)
    both = int((removed & wrong).sum())
    return {
        "precision": both / max(int(removed.sum()), 1),
        "recall": both / max(int(wrong.sum()), 1),
        "f1": 2 * both / max(int(removed.sum()) + int(wrong.sum()), 1),
    }
