"""Three rules that turn one number per sample into one vote per sample: keep, or not.

    one_over_b   vote_i = [w_i > 1/b]                       w_i: weight, b: its batch's size
    two_means    vote_i = [x_i ≥ s],  s minimises  Σ_{x<s} (x − x̄_<)² + Σ_{x≥s} (x − x̄_≥)²
    mixture      vote_i = [P(upper | x_i) ≥ ½],  x ~ π₀ N(μ₀, σ₀²) + π₁ N(μ₁, σ₁²),  μ₀ ≤ μ₁

One principle decides what the formulas leave open: **removing a sample takes evidence against it**.
A weight of exactly 1/b is a vote to keep, so is a posterior of exactly ½, and where numbers cannot
form two groups (fewer than three, or all equal up to float32 rounding) every vote is to keep.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError

FloatArray = npt.NDArray[np.float64]

# Weights come as float32: shares closer than this to 1 are 1.
_ROUNDING = 1e-6
# Variance floor, in units of the variance of all values: a component cannot shrink to one point.
_VARIANCE_FLOOR = 1e-6


class Votes(NamedTuple):
    """What a rule says about each value.

    Attributes:
        p_keep: ``[n]`` in [0, 1], higher is better; 0.5 and more votes to keep. Hard rules vote
            0 or 1.
        boundary: the lowest value that is kept; −∞ where nothing speaks against any value.
        evidence: false where the values cannot form two groups, so that all were kept.
    """

    p_keep: FloatArray
    boundary: float
    evidence: bool


class Mixture(NamedTuple):
    """Two Gaussians on a line: ``[2]`` each, the component with the lower mean first."""

    shares: FloatArray
    means: FloatArray
    variances: FloatArray


def one_over_b(relative_weights: npt.ArrayLike) -> Votes:
    """Vote for samples that weigh more than an equal share of their batch.

    vote_i = [w_i > 1/b] = [w_i·b > 1]

    The mean of w·b over a batch is 1 whatever the labels, so this rule rejects near 40 % of any
    data set. It needs no second group: it compares a sample with its own batch only.

    Args:
        relative_weights: w·b ``[n]``, the softmax weight times the batch's size.

    Returns:
        Votes of 0 or 1, with boundary 1. A share of 1 up to float32 rounding votes to keep.

    Raises:
        DataError: the values are not one-dimensional or not finite.

    Source:
        arXiv 2501.06708, the filtering stage.

    Example:
        >>> one_over_b([1.6, 0.4]).p_keep
        array([1., 0.])
    """
    values = _as_values(relative_weights)
    return Votes((values >= 1.0 - _ROUNDING).astype(np.float64), 1.0, True)


def two_means(scores: npt.ArrayLike) -> Votes:
    """Vote for the upper of the two groups with the least squared distance to their means.

    The best split maximises k(n−k)/n · (x̄_≥ − x̄_<)², found by trying all n − 1 splits of the
    sorted values with prefix sums: exact, O(n log n), nothing to initialise.

    Args:
        scores: ``[n]``, higher is better.

    Returns:
        Votes of 0 or 1; the boundary is the lowest score of the upper group.

    Raises:
        DataError: the values are not one-dimensional or not finite.

    Example:
        >>> two_means([0.1, 0.9, 0.0, 1.0]).p_keep
        array([0., 1., 0., 1.])
    """
    values = _as_values(scores)
    if not _can_split(values):
        return _keep_all(values)
    boundary = _best_split(values)
    return Votes((values >= boundary).astype(np.float64), boundary, True)


def mixture(scores: npt.ArrayLike) -> Votes:
    """Vote by the posterior probability of the upper of two Gaussians.

    p_i = π₁ N(x_i; μ₁, σ₁²) / (π₀ N(x_i; μ₀, σ₀²) + π₁ N(x_i; μ₁, σ₁²))

    Beyond the two means the wider Gaussian wins on both sides, which would make the very best
    scores suspect. A score outside [μ₀, μ₁] therefore gets the posterior at the nearer mean;
    between the means the posterior only rises, so a higher score is never less likely to be kept.

    Args:
        scores: ``[n]``, higher is better.

    Returns:
        Posteriors; the boundary is the lowest score of posterior 0.5 or more. All are kept where
        not even μ₁ reaches 0.5: then the upper component is a tail, not a group.

    Raises:
        DataError: the values are not one-dimensional or not finite.

    Example:
        >>> mixture([0.0, 0.1, 0.2, 0.9, 1.0, 1.1]).p_keep.round(3)
        array([0., 0., 0., 1., 1., 1.])
    """
    values = _as_values(scores)
    if not _can_split(values):
        return _keep_all(values)
    fitted = fit_mixture(values)
    p_upper = posterior(fitted, np.clip(values, *fitted.means))
    if posterior(fitted, fitted.means)[1] < 0.5:
        return _keep_all(values)
    return Votes(p_upper, float(values[p_upper >= 0.5].min()), True)


def fit_mixture(scores: npt.ArrayLike, *, tolerance: float = 1e-7, steps: int = 1000) -> Mixture:
    """Fit two Gaussians by expectation maximisation, starting from the two-means split.

    Args:
        scores: ``[n]``, not all equal.
        tolerance: stop when the mean log-likelihood per score gains less than this.
        steps: stop after so many steps at the latest.

    Returns:
        Shares, means and variances, the lower mean first. No variance falls below 1e-6 of the
        variance of all scores.

    Raises:
        DataError: the values are not one-dimensional, not finite, or cannot form two groups.

    Example:
        >>> fit_mixture([0.0, 0.2, 0.9, 1.1]).means.round(3)
        array([0.1, 1. ])
    """
    values = _as_values(scores)
    if not _can_split(values):
        raise DataError(
            f"expected at least three scores that are not all equal, got {values.size} scores. "
            "Two groups cannot be told apart in these; log more samples."
        )
    center, scale = float(values.mean()), float(values.std())
    x = (values - center) / scale  # [n], so that floor and tolerance do not depend on the unit
    upper = (values >= _best_split(values)).astype(np.float64)
    responsibility = np.stack([1.0 - upper, upper])  # [2, n]
    gain, likelihood = np.inf, -np.inf
    for _ in range(steps):
        standard = _maximise(x, responsibility)
        joint = _log_joint(standard, x)  # [2, n]
        total = np.logaddexp(joint[0], joint[1])  # [n]
        responsibility = np.exp(joint - total)
        gain, likelihood = float(total.mean()) - likelihood, float(total.mean())
        if gain < tolerance:
            break
    order = np.argsort(standard.means, kind="stable")
    return Mixture(
        standard.shares[order],
        standard.means[order] * scale + center,
        standard.variances[order] * scale**2,
    )


def posterior(fitted: Mixture, scores: npt.ArrayLike) -> FloatArray:
    """Return the probability that each score comes from the upper component.

    Args:
        fitted: the two Gaussians.
        scores: ``[n]``.

    Returns:
        ``[n]`` in [0, 1], as the formula says: not monotone beyond the two means.

    Example:
        >>> two = Mixture(np.array([0.5, 0.5]), np.array([0.0, 1.0]), np.array([0.1, 0.1]))
        >>> posterior(two, [0.5])
        array([0.5])
    """
    joint = _log_joint(fitted, _as_values(scores))
    return np.asarray(np.exp(joint[1] - np.logaddexp(joint[0], joint[1])))


RULES: dict[str, Callable[[npt.ArrayLike], Votes]] = {
    "one_over_b": one_over_b,
    "two_means": two_means,
    "mixture": mixture,
}


def _as_values(values: npt.ArrayLike) -> FloatArray:
    """Return float64 values, refusing what no rule is defined for."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise DataError(
            f"expected one finite number per sample, got shape {array.shape} with "
            f"{int((~np.isfinite(array)).sum())} that are NaN or infinite. Remove those samples."
        )
    return array


def _can_split(values: FloatArray) -> bool:
    """Tell whether values can form two groups: three or more, not all equal as float32."""
    if values.size < 3:
        return False
    spread = float(values.max() - values.min())
    return spread > 4 * float(np.finfo(np.float32).eps) * float(np.abs(values).max())


def _keep_all(values: FloatArray) -> Votes:
    """Keep everything: there is no evidence against any value."""
    return Votes(np.ones(values.size), -np.inf, False)


def _best_split(values: FloatArray) -> float:
    """Return the lowest value of the upper group in the best split into two."""
    ordered = np.sort(values)
    x = ordered - values.mean()  # centred, so that the prefix sums do not cancel
    n, sums = x.size, np.cumsum(x)[:-1]  # sums[k-1] is the sum of the k lowest
    k = np.arange(1, n)
    gap = (x.sum() - sums) / (n - k) - sums / k
    between = k * (n - k) / n * gap**2  # [n-1]; its maximum never parts equal values
    return float(ordered[int(np.argmax(between)) + 1])


def _maximise(x: FloatArray, responsibility: FloatArray) -> Mixture:
    """Return the two Gaussians that fit the responsibilities ``[2, n]`` best (the M step)."""
    counts = responsibility.sum(axis=1) + 10 * np.finfo(np.float64).eps  # [2]
    means = responsibility @ x / counts
    spread = (x - means[:, None]) ** 2  # [2, n]
    variances = (responsibility * spread).sum(axis=1) / counts
    return Mixture(counts / counts.sum(), means, np.maximum(variances, _VARIANCE_FLOOR))


def _log_joint(fitted: Mixture, x: FloatArray) -> FloatArray:
    """Return log π_k N(x; μ_k, σ_k²) as ``[2, n]``."""
    shares, means, variances = (part[:, None] for part in fitted)
    square = (x - means) ** 2 / variances
    return np.asarray(np.log(shares) - 0.5 * (np.log(2 * np.pi * variances) + square))
