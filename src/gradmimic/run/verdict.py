"""What came of a run, in sentences that say how sure they are.

    gain    d = q − p,  from d − √((q − l_q)² + (u_p − p)²)  to  d + √((u_q − q)² + (p − l_p)²)

with [l, u] Wilson's 95 % interval of each share. It takes the two for measured on different
samples; on the same test set, as here, differences are if anything surer.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradmimic.curate.canaries import wilson
from gradmimic.report.numbers import Interval, percent, signed
from gradmimic.run.outcome import USELESS

_TWO_SIDED = 1.96  # standard errors: 95 %
_NOTHING = 0.9  # an interval of a share so wide says nothing


def gain(before: float, after: float, n: int) -> Interval:
    """Return the difference of two shares of n test samples, with its interval.

    Args:
        before: p, in [0, 1].
        after: q, in [0, 1].
        n: how many were tested.

    Returns:
        The difference in [−1, 1]; above 0 the second is better.

    Source:
        Newcombe 1998, Statistics in Medicine 17:873, method 10.

    Example:
        >>> [round(number, 3) for number in gain(0.7, 0.75, 1000)]
        [0.05, 0.011, 0.089]
    """
    shares = np.array([before, after])
    (p_low, q_low), (p_high, q_high) = (wilson(shares, n, z) for z in (-_TWO_SIDED, _TWO_SIDED))
    below = np.hypot(after - q_low, p_high - before)
    above = np.hypot(q_high - after, before - p_low)
    d = after - before
    return Interval(d, float(d - below), float(d + above))


def gain_sentence(what: str, before: float, after: float, n: int) -> str:
    """Say what re-weighting changed, and whether chance could have.

    Example:
        >>> said = gain_sentence("test accuracy", 0.7, 0.75, 1000)
        >>> said[54:]
        '(+5.0 points; 95 % interval +1.1 to +8.9).'
    """
    d, low, high = (100 * number for number in gain(before, after, n))
    chance = "; chance alone could do that" if low <= 0 <= high else ""
    return (
        f"Re-weighting took {what} from {percent(before)} to {percent(after)} ({signed(d)} points; "
        f"95 % interval {signed(low)} to {signed(high)}{chance})."
    )


def removal_sentence(removed: int, total: int, what: str) -> str:
    """Say how much the selection removes."""
    share = percent(removed / total) if total else "none"
    return f"The selection removes {removed:,} of {total:,} {what} ({share})."


def told_apart(quality: Mapping[str, Any] | None) -> bool:
    """Tell whether the scores know canaries from samples, beyond what chance may do."""
    if quality is None or not quality["auroc"]:
        return False
    rate = quality["noise_rate"]
    return _area(quality).low > 0.5 and rate["high"] - rate["low"] < _NOTHING


def noise_sentence(quality: Mapping[str, Any] | None, what: str) -> str:
    """Say how many samples are bad by what canaries score; nothing where they do not tell.

    Args:
        quality: as ``Quality.as_dict``.
        what: what so many are, such as "of the labels are likely wrong".
    """
    if quality is None or not told_apart(quality):
        return ""
    rate = Interval(**quality["noise_rate"])
    return (
        f"By what canaries score, {percent(rate.value)} {what} ({percent(rate.low)} to "
        f"{percent(rate.high)})."
    )


def trust_sentence(
    quality: Mapping[str, Any] | None, area: Mapping[str, float] | None = None
) -> str:
    """Say how far the scores can be trusted.

    Args:
        quality: as ``Quality.as_dict``; None where there are no canaries.
        area: the canaries' AUROC as the page says it elsewhere; None takes that of the quality.

    Example:
        >>> auroc, rate = Interval(0.52, 0.49, 0.55)._asdict(), Interval(0, 0, 1)._asdict()
        >>> trust_sentence({"auroc": {"swapped": auroc}, "noise_rate": rate})[:29]
        'The scores cannot be trusted:'
    """
    if quality is None or not quality["auroc"]:
        return "There are no canaries, so nothing tells how far the scores can be trusted."
    own = _area(quality) if area is None else Interval(**area)
    perfect = 1 - quality["noise_rate"]["value"] / 2
    said = (
        f"they tell canaries from samples with AUROC {own.value:.3f} ({own.low:.3f} to "
        f"{own.high:.3f}), where 0.5 is chance"
    )
    if own.low <= 0.5:
        return f"The scores cannot be trusted: {said}."
    if own.value < USELESS:
        return f"The scores know little: {said} and about {perfect:.2f} is perfect."
    return f"The scores can be trusted: {said} and about {perfect:.2f} is perfect."


def _area(quality: Mapping[str, Any]) -> Interval:
    """Return the AUROC of the plainest kind of canary, which comes first."""
    return Interval(**next(iter(quality["auroc"].values())))
