"""What to flag, given how likely each label is wrong.

n* = argmax_n 2 Σ_{i ≤ n} p_bad,i / (n + Σ_i p_bad,i)      the worst first: expected F1
"""

import numpy as np

from gradmimic.label_issues.inputs import BoolArray, FloatArray


def flagged(p_bad: FloatArray) -> BoolArray:
    """Flag the worst, as many as give the highest expected F1.

    Args:
        p_bad: ``[n]``, how likely each label is wrong, in [0, 1].

    Returns:
        A mask ``[n]``; of nothing, where less than one wrong label is expected.

    Source:
        That a threshold is best, and where it lies: Lipton et al. 2014, arXiv 1402.1892.

    Example:
        >>> flagged(np.array([0.9, 0.05, 0.6, 0.0])).tolist()
        [True, False, True, False]
    """
    mask = np.zeros(len(p_bad), dtype=np.bool_)
    if p_bad.sum() < 1:
        return mask
    order = np.argsort(-p_bad, kind="stable")
    hits = np.cumsum(p_bad[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + hits[-1])
    mask[order[: int(np.argmax(f1)) + 1]] = True
    return mask
