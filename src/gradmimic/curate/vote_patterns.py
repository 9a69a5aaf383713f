"""Vote patterns: samples that were voted on alike, found once and counted.

    code_i = Σ_j 3^(v−1−j) (vote_ij + 1),   n_code = #{i : code_i = code},   vote ∈ {−1, 0, 1}

n samples with v votes each share at most 3^v patterns, so that whatever follows from the votes
alone, a label model above all, costs the same for a thousand samples as for a billion.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError

_MOST_CODED = 39  # voters: 3^39 patterns still have int64 codes
_FEW_CODES = 3**12  # cells that are cheaper to count through than codes are to sort


class Patterns(NamedTuple):
    """The distinct rows of a vote matrix: ``patterns[inverse]`` are its rows again.

    Attributes:
        patterns: votes ``[p, v]``, int8: 1 keep, 0 remove, −1 abstain; in ascending order.
        counts: samples ``[p]``, int64, that voters voted on so.
        inverse: the number of each sample's pattern ``[n]``.
    """

    patterns: npt.NDArray[np.int8]
    counts: npt.NDArray[np.int64]
    inverse: npt.NDArray[np.intp]


def patterns_of(votes: npt.ArrayLike) -> Patterns:
    """Find the distinct rows of a vote matrix and count them.

    By code, in O(n) while 3^v is small, else by sorting the codes; the rows themselves are sorted
    only where more than 39 voters leave no int64 code.

    Args:
        votes: ``[n, v]`` integers: 1 keep, 0 remove, −1 abstain.

    Returns:
        Patterns, counts and the way back to the samples.

    Raises:
        DataError: the votes are no matrix of 1, 0 and −1.

    Example:
        >>> found = patterns_of([[1, 0], [1, -1], [1, 0]])
        >>> found.patterns.tolist(), found.counts.tolist(), found.inverse.tolist()
        ([[1, -1], [1, 0]], [1, 2], [1, 0, 1])
    """
    matrix = _as_votes(votes)
    n, v = matrix.shape
    if v > _MOST_CODED:
        found = np.unique(matrix, axis=0, return_inverse=True, return_counts=True)
        return Patterns(found[0], found[2], found[1].reshape(n))
    code = np.zeros(n, dtype=np.int64)
    for column in matrix.T:
        code *= 3
        code += column
        code += 1
    if 3**v <= max(n, _FEW_CODES):
        cells = np.bincount(code, minlength=3**v)
        distinct = np.flatnonzero(cells)
        rank = np.zeros(len(cells), dtype=np.intp)
        rank[distinct] = np.arange(len(distinct))
        counts, inverse = cells[distinct], rank[code]
    else:
        distinct, inverse, counts = np.unique(code, return_inverse=True, return_counts=True)
    powers = 3 ** np.arange(v - 1, -1, -1, dtype=np.int64)
    patterns = (distinct[:, None] // powers % 3 - 1).astype(np.int8)  # [p, v]
    return Patterns(patterns, counts, inverse)


def tally(votes: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Count ayes and nays, each voter for itself: one or none.

    Sum columns to take voters together: one scorer's visits, say.

    Args:
        votes: ``[p, v]`` integers: 1 keep, 0 remove, −1 abstain.

    Returns:
        Ayes ``[p, v]`` and nays ``[p, v]``.

    Raises:
        DataError: the votes are no matrix of 1, 0 and −1.

    Example:
        >>> ayes, nays = tally([[1, 0, -1]])
        >>> ayes.tolist(), nays.tolist()
        ([[1, 0, 0]], [[0, 1, 0]])
    """
    matrix = _as_votes(votes)
    return (matrix == 1).astype(np.int64), (matrix == 0).astype(np.int64)


def _as_votes(votes: npt.ArrayLike) -> npt.NDArray[Any]:
    """Return a vote matrix, refusing whatever else."""
    matrix = np.asarray(votes)
    if matrix.ndim != 2 or matrix.dtype.kind not in "iub":
        raise DataError(
            "expected votes as a matrix [samples, voters] of integers, 1 keep, 0 remove and "
            f"−1 abstain, got shape {matrix.shape} of {matrix.dtype}. Write missing votes as −1."
        )
    low, high = int(matrix.min(initial=0)), int(matrix.max(initial=0))
    if low < -1 or high > 1:
        raise DataError(
            f"expected votes of 1 keep, 0 remove and −1 abstain, got values from {low} to {high}. "
            "Turn scores into votes with a rule first."
        )
    return matrix.astype(np.int8, copy=False)
