"""How well selections find labels that are known to be wrong."""

import numpy as np
import numpy.typing as npt


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
