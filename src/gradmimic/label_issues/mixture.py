"""How many labels are wrong, where some are known to be right.

    F_judged = (1 − ρ) F_trusted + ρ [(1 − λ) G_uniform + λ G_confusable]

F are the scores of samples, G those of canaries made of the trusted ones, which are surely wrong.
Scores fall into bins of as many of these each, and the shares of the three are those under which
the judged samples' bins are likeliest, found by expectation maximisation.
"""

from collections.abc import Sequence

import numpy as np

from gradmimic.label_issues.inputs import FloatArray

_BINS = 10
_IN_A_BIN = 20  # trusted samples, at least
_STEPS = 500
_LEAST = 1e-9


def wrong_share(judged: FloatArray, trusted: FloatArray, canaries: Sequence[FloatArray]) -> float:
    """Return ρ, the share of the judged samples that score as canaries do.

    Args:
        judged: ``[n]`` scores.
        trusted: ``[m]`` scores of right labels.
        canaries: for each kind, ``[c]`` scores of wrong ones.

    Returns:
        In [0, 1]; 0 is good.

    Source:
        A finite mixture with known parts: McLachlan and Peel 2000, section 1.15.

    Example:
        >>> right, wrong = np.linspace(5, 9, 400), np.linspace(-4, 0, 400)
        >>> round(wrong_share(np.r_[right[::4], wrong[::4]], right, [wrong]), 2)
        0.5
    """
    parts = [trusted, *canaries]
    bins = int(np.clip(len(trusted) // _IN_A_BIN, 2, _BINS))
    inner = np.quantile(np.concatenate(parts), np.linspace(0, 1, bins + 1)[1:-1])

    def binned(scores: FloatArray) -> FloatArray:
        counts = np.bincount(np.searchsorted(inner, scores), minlength=bins)
        return np.asarray(counts / len(scores))

    shares = np.stack([binned(scores) for scores in parts]) + _LEAST  # [parts, bins]
    seen = binned(judged)  # [bins]
    weights = np.full(len(parts), 1 / len(parts))
    for _ in range(_STEPS):
        likely = weights[:, None] * shares
        weights = (likely / likely.sum(0)) @ seen
    return float(1.0 - weights[0])
