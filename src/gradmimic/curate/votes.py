"""Three rules that turn one number per sample into one vote per sample: keep, or not.

    one_over_b   vote_i = [w_i > 1/b]                       w_i: weight, b: its batch's size
    two_means    vote_i = [x_i ≥ s],  s minimises  Σ_{x<s} n(x − x̄_<)² + Σ_{x≥s} n(x − x̄_≥)²
    mixture      vote_i = [P(upper | x_i) ≥ ½],  x ~ π₀ N(μ₀, σ₀²) + π₁ N(μ₁, σ₁²),  μ₀ ≤ μ₁

A value x_i stands for n_i samples, one unless counts say otherwise: a histogram of a billion scores
is judged at the cost of its bins.

One principle decides what the formulas leave open: **removing a sample takes evidence against it**.
A weight of exactly 1/b is a vote to keep, so is a posterior of exactly ½, and where numbers cannot
form two groups (fewer than three, or all equal up to float32 rounding) every vote is to keep.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

# Weights come as float32: shares closer than this to 1 are 1.
ROUNDING = 1e-6
# Variance floor, in units of the variance of all values: a component cannot shrink to one point.
_VARIANCE_FLOOR = 1e-6


class Votes(NamedTuple):
    """What a rule says about each value.

    Attributes:
        p_keep: ``[k]`` in [0, 1], higher is better. Hard rules vote 0 or 1.
        boundary: the lowest value that is kept; −∞ where nothing speaks against any value.
        evidence: false where nothing in the values speaks against any, so that all were kept.
        decided: ``[k]`` of bool, for a rule that does not keep where p_keep ≥ ½; see ``keep``.
    """

    p_keep: FloatArray
    boundary: float
    evidence: bool
    decided: BoolArray | None = None

    @property
    def keep(self) -> BoolArray:
        """Which values are kept ``[k]``: those with p_keep ≥ ½, unless the rule says otherwise.

        Example:
            >>> Votes(np.array([0.2, 0.5]), 1.0, True).keep
            array([False,  True])
        """
        return self.p_keep >= 0.5 if self.decided is None else self.decided


class Rule(Protocol):
    """Judges values ``[k]`` that stand for ``counts`` samples each."""

    def __call__(self, values: npt.ArrayLike, counts: npt.ArrayLike | None = None, /) -> Votes:
        """Return one vote per value."""


class Mixture(NamedTuple):
    """Two Gaussians on a line: ``[2]`` each, the component with the lower mean first."""

    shares: FloatArray
    means: FloatArray
    variances: FloatArray


def one_over_b(relative_weights: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> Votes:
    """Vote for samples that weigh more than an equal share of their batch.

    vote_i = [w_i > 1/b] = [w_i·b > 1]

    The mean of w·b over a batch is 1 whatever the labels, so this rule rejects near 40 % of any
    data set. It needs no second group: it compares a sample with its own batch only.

    Args:
        relative_weights: w·b ``[k]``, the softmax weight times the batch's size.
        counts: samples ``[k]`` of each value; they do not change this rule.

    Returns:
        Votes of 0 or 1, with boundary 1. A share of 1 up to float32 rounding votes to keep.

    Raises:
        DataError: the values are not one-dimensional or not finite, or counts do not fit them.

    Source:
        arXiv 2501.06708, the filtering stage.

    Example:
        >>> one_over_b([1.6, 0.4]).p_keep
        array([1., 0.])
    """
    values, _ = _as_weighted(relative_weights, counts)
    return Votes((values >= 1.0 - ROUNDING).astype(np.float64), 1.0, True)


def two_means(scores: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> Votes:
    """Vote for the upper of the two groups with the least squared distance to their means.

    The best split maximises n_<·n_≥/n · (x̄_≥ − x̄_<)², found by trying all k − 1 splits of the
    sorted values with prefix sums: exact, O(k log k), nothing to initialise.

    Args:
        scores: ``[k]``, higher is better.
        counts: samples ``[k]`` of each score; None means one.

    Returns:
        Votes of 0 or 1; the boundary is the lowest score of the upper group.

    Raises:
        DataError: the values are not one-dimensional or not finite, or counts do not fit them.

    Example:
        >>> two_means([0.1, 0.9, 0.0, 1.0]).p_keep
        array([0., 1., 0., 1.])
    """
    values, weights = _as_weighted(scores, counts)
    if not _can_split(values, weights):
        return _keep_all(values)
    boundary = _best_split(values, weights)
    return Votes((values >= boundary).astype(np.float64), boundary, True)


def mixture(scores: npt.ArrayLike, counts: npt.ArrayLike | None = None) -> Votes:
    """Vote by the posterior probability of the upper of two Gaussians.

    p_i = π₁ N(x_i; μ₁, σ₁²) / (π₀ N(x_i; μ₀, σ₀²) + π₁ N(x_i; μ₁, σ₁²))

    Beyond the two means the wider Gaussian wins on both sides, which would make the very best
    scores suspect. A score outside [μ₀, μ₁] therefore gets the posterior at the nearer mean;
    between the means the posterior only rises, so a higher score is never less likely to be kept.

    Args:
        scores: ``[k]``, higher is better.
        counts: samples ``[k]`` of each score; None means one.

    Returns:
        Posteriors; the boundary is the lowest score of posterior 0.5 or more. All are kept where
        not even μ₁ reaches 0.5: then the upper component is a tail, not a group.

    Raises:
        DataError: the values are not one-dimensional or not finite, or counts do not fit them.

    Example:
        >>> mixture([0.0, 0.1, 0.2, 0.9, 1.0, 1.1]).p_keep.round(3)
        array([0., 0., 0., 1., 1., 1.])
    """
    values, weights = _as_weighted(scores, counts)
    if not _can_split(values, weights):
        return _keep_all(values)
    fitted = fit_mixture(values, weights)
    p_upper = posterior(fitted, np.clip(values, *fitted.means))
    if posterior(fitted, fitted.means)[1] < 0.5:
        return _keep_all(values)
    return Votes(p_upper, float(values[p_upper >= 0.5].min()), True)


def fit_mixture(
    scores: npt.ArrayLike,
    counts: npt.ArrayLike | None = None,
    *,
    tolerance: float = 1e-7,
    steps: int = 1000,
) -> Mixture:
    """Fit two Gaussians by expectation maximisation, starting from the two-means split.

    Args:
        scores: ``[k]``, not all equal.
        counts: samples ``[k]`` of each score; None means one.
        tolerance: stop when the mean log-likelihood per score gains less than this.
        steps: stop after so many steps at the latest.

    Returns:
        Shares, means and variances, the lower mean first. No variance falls below 1e-6 of the
        variance of all scores.

    Raises:
        DataError: the values are not one-dimensional, not finite, or cannot form two groups, or
            counts do not fit them.

    Example:
        >>> fit_mixture([0.0, 0.2, 0.9, 1.1]).means.round(3)
        array([0.1, 1. ])
    """
    values, weights = _as_weighted(scores, counts)
    if not _can_split(values, weights):
        raise DataError(
            "expected at least three scores that are not all equal, got "
            f"{weights.sum():.0f} scores. "
            "Two groups cannot be told apart in these; log more samples."
        )
    share = weights / weights.sum()  # [k]
    center = float((share * values).sum())
    scale = float(np.sqrt((share * (values - center) ** 2).sum()))
    x = (values - center) / scale  # [k], so that floor and tolerance do not depend on the unit
    upper = (values >= _best_split(values, weights)).astype(np.float64)
    responsibility = np.stack([1.0 - upper, upper])  # [2, k]
    gain, likelihood = np.inf, -np.inf
    for _ in range(steps):
        standard = _maximise(x, responsibility * share)
        joint = _log_joint(standard, x)  # [2, k]
        most = joint.max(axis=0)  # [k]
        responsibility = np.exp(joint - most)
        total = responsibility.sum(axis=0)
        responsibility /= total
        mean = float((share * (most + np.log(total))).sum())
        gain, likelihood = mean - likelihood, mean
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


RULES: dict[str, Rule] = {
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


def _as_weighted(
    values: npt.ArrayLike, counts: npt.ArrayLike | None
) -> tuple[FloatArray, FloatArray]:
    """Return values and how many samples each stands for, as float64."""
    array = _as_values(values)
    if counts is None:
        return array, np.ones(array.size)
    weights = np.asarray(counts, dtype=np.float64)
    if weights.shape != array.shape or not (np.isfinite(weights) & (weights > 0)).all():
        raise DataError(
            f"expected one count above 0 for each of {array.size} values, got shape "
            f"{weights.shape}"
            + (f" from {weights.min():g}" if weights.size else "")
            + ". Pass the counts of a histogram without its empty bins."
        )
    return array, weights


def _can_split(values: FloatArray, weights: FloatArray) -> bool:
    """Tell whether values can form two groups: three or more, not all equal as float32."""
    if weights.sum() < 3:
        return False
    spread = float(values.max() - values.min())
    return spread > 4 * float(np.finfo(np.float32).eps) * float(np.abs(values).max())


def _keep_all(values: FloatArray) -> Votes:
    """Keep everything: there is no evidence against any value."""
    return Votes(np.ones(values.size), -np.inf, False)


def _best_split(values: FloatArray, weights: FloatArray) -> float:
    """Return the lowest value of the upper group in the best split into two."""
    order = np.argsort(values, kind="stable")
    ordered, below = values[order], np.cumsum(weights[order])
    n = below[-1]
    x = ordered - (weights * values).sum() / n  # centred, so that the prefix sums do not cancel
    sums = np.cumsum(x * weights[order])  # sums[j] is the sum of the lowest up to j
    left, low = below[:-1], sums[:-1]  # [k-1]
    gap = (sums[-1] - low) / (n - left) - low / left
    between = left * (n - left) / n * gap**2  # [k-1]; its maximum never parts equal values
    return float(ordered[int(np.argmax(between)) + 1])


def _maximise(x: FloatArray, responsibility: FloatArray) -> Mixture:
    """Return the two Gaussians that fit the responsibilities ``[2, k]`` best (the M step)."""
    counts = responsibility.sum(axis=1) + np.finfo(np.float64).tiny  # [2], of shares
    # Not a matrix product: a few thousand values are too few for the threads it starts.
    means = (responsibility * x).sum(axis=1) / counts
    spread = (x - means[:, None]) ** 2  # [2, k]
    variances = (responsibility * spread).sum(axis=1) / counts
    return Mixture(counts / counts.sum(), means, np.maximum(variances, _VARIANCE_FLOOR))


def _log_joint(fitted: Mixture, x: FloatArray) -> FloatArray:
    """Return log π_k N(x; μ_k, σ_k²) as ``[2, k]``."""
    shares, means, variances = (part[:, None] for part in fitted)
    square = (x - means) ** 2 / variances
    return np.asarray(np.log(shares) - 0.5 * (np.log(2 * np.pi * variances) + square))
