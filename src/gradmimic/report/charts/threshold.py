"""What a threshold on the mean score would remove, for as many thresholds as a slider has places.

    removed(t) = #{i : s_i < t}
    bad(t)     = Σ_{i : s_i < t} (1 − p_clean_i)     how many of them are expected to be bad
    wrong(t)   = #{i : s_i < t and i is known to be wrong}

The thresholds are short decimals, which ``Selection.above`` takes as they are printed to remove the
very same samples; the run's own is among them. Their number does not grow with that of the samples.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor, log10
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.report.numbers import percent, short

OUTSIDE = 0.002  # the share of the scores on either side that charts leave to their last bars
_PLACES = 800  # about as many as a chart has pixels


@dataclass(frozen=True)
class Tally:
    """How many samples of some kind lie below each threshold.

    Args:
        what: the kind.
        below: ``[k]`` how many lie below.
        total: how many there are.
    """

    what: str
    below: Sequence[int]
    total: int


@dataclass(frozen=True)
class Thresholds:
    """What each threshold removes.

    Args:
        at: ``[k]`` thresholds, ascending; the first removes nothing.
        removed: ``[k]`` how many samples lie below.
        total: how many samples there are.
        tallies: what is known of the samples that lie below.
        start: which of them is the run's own, or removes about as many.
        own: whether it is the run's own.
        selects: whether ``Selection.above`` takes them: whether the selection has these scores.
        noun: what the samples are called.
    """

    at: Sequence[float]
    removed: Sequence[int]
    total: int
    tallies: Sequence[Tally]
    start: int
    own: bool
    selects: bool = True
    noun: str = "samples"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for the page's script."""
        return {**asdict(self), "printed": [short(t) for t in self.at]}

    def said(self, place: int) -> str:
        """Say what one threshold removes; ``charts.js`` says the same of the others.

        Example:
            >>> found = thresholds([0.0, 1.0, 2.0, 4.0], own=2.0, removed=2, wrong=[True] * 3 + [0])
            >>> found.said(found.start).replace("\N{NO-BREAK SPACE}", " ")[-57:]
            'Known to be wrong: 2 of these (100.0 %), 1 of those kept.'
        """
        count = self.removed[place]
        words = (
            f"A threshold of {short(self.at[place])} removes {count:,} of {self.total:,} "
            f"{self.noun} ({percent(count / self.total)})."
        )
        for tally in self.tallies:
            below = tally.below[place]
            share = f" ({percent(below / count)})" if count else ""
            kept = tally.total - below
            words += f" {tally.what}: {below:,} of these{share}, {kept:,} of those kept."
        return words


def thresholds(
    scores: npt.ArrayLike,
    *,
    own: float | None,
    removed: int,
    p_clean: npt.ArrayLike | None = None,
    wrong: npt.ArrayLike | None = None,
    selects: bool = True,
    noun: str = "samples",
) -> Thresholds:
    """Count what lies below each of several hundred thresholds.

    Args:
        scores: ``[n]``, the mean score of each sample, n ≥ 1; higher is better.
        own: the run's threshold, the lowest score that is kept; None where the run decided by
            something else.
        removed: how many samples the run removed.
        p_clean: ``[n]`` in [0, 1], calibrated by canaries.
        wrong: ``[n]`` bool, which samples are known to be wrong.
        selects: whether these are the scores that the selection has.
        noun: what the samples are called.

    Returns:
        The counts, exact for every threshold.

    Example:
        >>> found = thresholds([0.0, 1.0, 2.0, 4.0], own=2.0, removed=2)
        >>> found.at[found.start], found.removed[found.start], found.own
        (2.0, 2, True)
    """
    scores = np.asarray(scores, np.float64)  # [n]
    order = np.argsort(scores, kind="stable")
    s = scores[order]
    ends = [s[0], s[-1], *([] if own is None else [own])]
    at = np.unique(np.r_[ends, _decimals(*np.quantile(s, [OUTSIDE, 1 - OUTSIDE]).tolist())])
    at = at[at >= s[0]]
    below = np.searchsorted(s, at, side="left")  # [k], #{s < t}
    # Of equal scores the run may have kept some; then no threshold does what it did.
    start = int(np.abs(below - removed).argmin() if own is None else np.searchsorted(at, own))
    is_own = own is not None and bool(below[start] == removed)
    tallies = []
    if p_clean is not None:
        p_bad = 1.0 - np.asarray(p_clean, np.float64)[order]
        tallies.append(_tally("Expected to be bad", p_bad, below))
    if wrong is not None:
        known = np.asarray(wrong, np.float64)[order]
        tallies.append(_tally("Known to be wrong", known, below))
    return Thresholds(at.tolist(), below.tolist(), len(s), tallies, start, is_own, selects, noun)


def _tally(what: str, values: npt.NDArray[np.float64], below: npt.NDArray[np.int64]) -> Tally:
    """Sum the values of the lowest samples, up to each count."""
    sums = np.rint(np.r_[0.0, np.cumsum(values)]).astype(np.int64)
    return Tally(what, sums[below].tolist(), int(sums[-1]))


def _decimals(low: float, high: float) -> npt.NDArray[np.float64]:
    """Return the multiples of 1, 2 or 5 · 10^e from low to high, at most about 800."""
    if not (high - low) / _PLACES > 0:
        return np.zeros(0)
    least = (high - low) / _PLACES
    e = floor(log10(least))
    m = next(m for m in (1, 2, 5, 10) if m * 10.0**e >= least or m == 10)
    step = m * 10.0**e
    # By their text, so that each is the number that its shortest text names.
    multiples = range(ceil(low / step), floor(high / step) + 1)
    return np.array([float(f"{k * m}e{e}") for k in multiples])
