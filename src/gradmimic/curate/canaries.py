"""What the canaries tell: how far to trust the scores, how many samples are bad, and which.

    AUROC   P(canary scores below sample) + ½ P(equal)
    ρ̂       min_t F_all(t) / G(t)             G: canaries of the kind that the bad samples are
    p_bad   ρ̂ · g(x) / f_all(x)               made to fall with the score
    t*      argmax_t 2 ρ̂ G(t) / (F_all(t) + ρ̂)     the expected F1 of removing all x ≤ t

Below every threshold t lie at least the bad samples there: F_all(t) ≥ ρ G(t). Where t is low enough
that hardly a good sample lies below, that is an equality. The smallest ratio of so many would be
small by chance, so the threshold is the one of the smallest *upper bound* of the ratio, and what is
reported is the ratio there.

Three corrections, each measured (docs/quality.md):

- ρ̂ comes from the visit whose scores tell canaries apart best, as a rule the first: later ones know
  less, since the model has learned some bad samples by heart and canaries never.
- A label drawn from the K − 1 other classes is right for one bad sample in K − 1, so
  ρ̂ = r / (1 + r / (K − 1)) for uniform canaries with ratio r, and G is cleared of that share.
- People err in confusable ways. G = (1 − λ) G_uniform + λ G_confusable, where λ places the losses
  of the lowest samples between those of the lowest canaries of either kind.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.curate.isotonic import falling_slope
from gradmimic.curate.votes import FloatArray, Votes
from gradmimic.errors import DataError

_REPEATS = 200  # of the bootstrap
_SLACK = 3.5  # standard errors: 2 for an interval, and more since a minimum was sought
_LEAST = 0.05  # the share of canaries that a threshold needs below it: outliers come in clusters
_TAIL = 0.37  # the share of uniform canaries whose losses place the bad samples between the kinds


class Distribution(NamedTuple):
    """Scores of many samples: distinct values, ascending, and what lies at each.

    Attributes:
        values: ``[k]`` scores, higher is better.
        counts: ``[k]`` samples with about this score.
        losses: ``[k]`` their mean loss.
    """

    values: FloatArray
    counts: FloatArray
    losses: FloatArray


class Seen(NamedTuple):
    """One visit of all samples, or the mean over the visits.

    Attributes:
        real: the samples.
        canaries: by kind, as the log names it, e.g. ``"uniform/10"``.
    """

    real: Distribution
    canaries: Mapping[str, Distribution]


@dataclass(frozen=True)
class Estimate:
    """A number in [0, 1] and an interval that holds the true one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Calibration:
    """What the canaries say about the scores.

    Attributes:
        noise_rate: the share of bad samples; lower is better. Its interval reaches from what fits
            uniform canaries to what fits confusable ones.
        auroc: by kind of canary, of the mean score; 1 is perfect, 0.5 is chance. All samples are
            told from canaries, the bad ones included, so with a share ρ of bad ones even perfect
            scores come to 1 − ρ/2.
        auroc_by_visit: the same for each visit, of the first kind.
        confusable: λ in [0, 1], 0 where bad labels are spread over all classes, 1 where they are
            what the model would confuse.
        visit: which visit the noise rate is read from, from 0.
        votes: over the values of the mean's ``real``: ``p_keep`` is calibrated, and ``keep`` is
            what is above t*.
    """

    noise_rate: Estimate
    auroc: Mapping[str, Estimate]
    auroc_by_visit: Sequence[Estimate]
    confusable: float
    visit: int
    votes: Votes


def calibrate(visits: Sequence[Seen], mean: Seen, *, seed: int = 0) -> Calibration:
    """Learn from the canaries what a bad sample scores, how many there are, and which to remove.

    Args:
        visits: each visit that has canaries.
        mean: the mean over the visits.
        seed: of the bootstrap.

    Returns:
        The noise rate with its interval, AUROCs, and votes on the mean's values. Where canaries
        score no lower than samples, nothing speaks against any sample: the rate's interval is
        [0, 1] and all are kept.

    Raises:
        DataError: there are no canaries.

    Source:
        The ratio is that of best bin estimation, Garg et al. 2021, arXiv 2111.00980.

    Example:
        >>> x = np.arange(1000.0)
        >>> real = Distribution(x, np.r_[np.full(250, 2.0), np.full(750, 2.0 / 3)], -x)
        >>> canaries = {"swapped": Distribution(x[:250], np.ones(250), -x[:250])}
        >>> found = calibrate([Seen(real, canaries)], Seen(real, canaries))
        >>> round(found.noise_rate.value, 2)
        0.5
    """
    if not mean.canaries or not visits:
        raise DataError("there are no canaries to calibrate with; log some, or use another rule.")
    chance = np.random.default_rng(seed)
    by_visit = [auroc(seen.real, _first(seen.canaries)[1], chance) for seen in visits]
    best = int(np.argmax([estimate.value for estimate in by_visit]))
    # Of visits that chance could have put in another order, the one that was learned from least.
    best = next(t for t, own in enumerate(by_visit) if own.value >= by_visit[best].low)
    seen = visits[best]
    aurocs = {
        kind: auroc(mean.real, mean.canaries[kind], chance) for kind in _in_order(mean.canaries)
    }
    if by_visit[best].low <= 0.5:
        n = len(mean.real.values)
        votes = Votes(np.ones(n), -np.inf, False)
        return Calibration(Estimate(0.0, 0.0, 1.0), aurocs, by_visit, 0.0, best, votes)
    share = confusable_share(seen, chance)
    rate = noise_rate(seen, share, chance)
    classes = _classes(_first(mean.canaries)[0])
    right = 0.0 if classes is None else (1 - share) * rate.value / (classes - 1)
    votes = _decide(mean.real, _blend(mean.canaries, share), rate.value, right)
    return Calibration(rate, aurocs, by_visit, share, best, votes)


def auroc(real: Distribution, canary: Distribution, chance: np.random.Generator) -> Estimate:
    """Estimate the chance that a canary scores below a sample, with a bootstrap interval.

    Args:
        real: samples.
        canary: canaries.
        chance: draws the bootstrap's counts, Poisson with the observed ones as means.

    Returns:
        In [0, 1]; 1 is perfect, 0.5 is chance, ties count half.

    Example:
        >>> low = Distribution(np.array([0.0]), np.array([50.0]), np.zeros(1))
        >>> high = Distribution(np.array([1.0]), np.array([90.0]), np.zeros(1))
        >>> auroc(high, low, np.random.default_rng(0)).value
        1.0
    """
    left = np.searchsorted(canary.values, real.values, side="left")  # [k]
    right = np.searchsorted(canary.values, real.values, side="right")
    # Samples between the same canaries are one cell: sums of Poisson counts are Poisson counts.
    cells, place = np.unique(left + right, return_inverse=True)
    counts = np.bincount(place, weights=real.counts).astype(np.float64)
    left, right = cells // 2, (cells + 1) // 2

    def area(samples: FloatArray, canaries: FloatArray) -> float:
        below = np.r_[0.0, np.cumsum(canaries)]
        total = float(samples.sum() * below[-1])
        return float(samples @ (below[left] + below[right])) / (2 * total) if total else 0.5

    value = area(counts, canary.counts)
    repeats = [
        area(_poisson(chance, counts), _poisson(chance, canary.counts)) for _ in range(_REPEATS)
    ]
    low, high = np.quantile(repeats, [0.025, 0.975])
    return Estimate(value, min(value, float(low)), max(value, float(high)))


def noise_rate(seen: Seen, share: float, chance: np.random.Generator) -> Estimate:
    """Estimate the share of bad samples from one visit's canaries, from uniform to confusable.

    Args:
        seen: the visit.
        share: λ, how confusable the bad samples are.
        chance: for the bootstrap.

    Example:
        >>> x = np.arange(100.0)
        >>> bad, half = np.ones(100), np.r_[np.ones(50), np.full(50, 3.0)]  # x < 50: all of them
        >>> seen = Seen(Distribution(x, half, -x), {"swapped": Distribution(x[:50], bad[:50], -x)})
        >>> noise_rate(seen, 0.0, np.random.default_rng(0)).value
        0.25
    """
    kind, first = _first(seen.canaries)
    lowest = _least_ratio(seen.real, first, _classes(kind))
    others = [canary for other, canary in seen.canaries.items() if other != kind]
    highest = max([lowest.high, *(_least_ratio(seen.real, own, None).high for own in others)])
    value = _least_ratio(seen.real, _blend(seen.canaries, share), _classes(kind)).value
    low = lowest.low if others else min(lowest.low, _extrapolated(seen.real, first, chance))
    return Estimate(value, min(value, low), max(value, highest))


def _least_ratio(real: Distribution, canary: Distribution, classes: int | None) -> Estimate:
    """Return min_t F_all(t) / G(t), found with slack for chance."""
    n, m = float(real.counts.sum()), float(canary.counts.sum())
    f, g, t = _least(real, canary)
    low = wilson(f, n, -_SLACK) / wilson(g, m, _SLACK)
    high = wilson(f, n, _SLACK) / wilson(g, m, -_SLACK)
    ratios = f[t] / g[t], low[t], high[t]
    right = 0.0 if classes is None else 1.0 / (classes - 1)  # canaries of bad samples made right
    return Estimate(*(float(np.clip(r / (1 + right * r), 0, 1)) for r in ratios))


def _extrapolated(real: Distribution, canary: Distribution, chance: np.random.Generator) -> float:
    """Bound ρ from below, where no second kind of canary says how sure the first is.

    R(t) = F_all(t) / G(t) = ρ + (1 − ρ) F_good(t) / G(t), whose last term dwindles with G: along
    the line through R(t) and R(t½), G(t½) = G(t) / 2, it is gone at G = 0, where
    R = 2 R(t½) − R(t).
    """
    n, m = float(real.counts.sum()), float(canary.counts.sum())
    f, g, t = _least(real, canary)
    half = int(np.searchsorted(g, g[t] / 2))
    at = np.array([half, t])
    samples, canaries = (np.diff(share[at] * size, prepend=0.0) for share, size in ((f, n), (g, m)))

    def intercept() -> float:
        ratio = np.cumsum(_poisson(chance, samples)) / n  # [2]
        ratio /= np.maximum(np.cumsum(_poisson(chance, canaries)), 1.0) / m
        return float(2 * ratio[0] - ratio[1])

    return float(np.clip(np.quantile([intercept() for _ in range(_REPEATS)], 0.025), 0.0, 1.0))


def _least(real: Distribution, canary: Distribution) -> tuple[FloatArray, FloatArray, int]:
    """Return F_all and G at each canary's value ``[c]``, and where their ratio is surely lowest."""
    n, m = float(real.counts.sum()), float(canary.counts.sum())
    g = np.cumsum(canary.counts) / m
    below = np.r_[0.0, np.cumsum(real.counts)]
    f = below[np.searchsorted(real.values, canary.values, side="right")] / n
    high = wilson(f, n, _SLACK) / wilson(g, m, -_SLACK)
    return f, g, int(np.argmin(np.where(g < _LEAST, np.inf, high)))


def confusable_share(seen: Seen, chance: np.random.Generator) -> float:
    """Return λ: where between the kinds the losses of the lowest samples lie, less one error.

    Args:
        seen: a visit; its losses are those of the model.
        chance: for the bootstrap.

    Returns:
        In [0, 1]: 0 where errors are spread over all classes, or there are not both kinds.

    Example:
        >>> x = np.arange(100.0)
        >>> of = lambda loss: Distribution(x, np.ones(100), np.full(100, loss))
        >>> seen = Seen(of(2.0), {"uniform/3": of(3.0), "confusable/3": of(1.0)})
        >>> confusable_share(seen, np.random.default_rng(0))
        0.5
    """
    kinds = {kind.partition("/")[0]: own for kind, own in seen.canaries.items()}
    if "uniform" not in kinds or "confusable" not in kinds:
        return 0.0
    uniform, confusable, real = kinds["uniform"], kinds["confusable"], seen.real
    t = uniform.values[np.searchsorted(np.cumsum(uniform.counts), _TAIL * uniform.counts.sum())]
    lowest = [
        Distribution(*(column[own.values <= t] for column in own))
        for own in (uniform, confusable, real)
    ]

    def place(counts: Sequence[FloatArray]) -> float:
        if not all(own.sum() for own in counts):
            return 0.0
        u, c, r = (own @ part.losses / own.sum() for own, part in zip(counts, lowest, strict=True))
        return float((u - r) / (u - c)) if u != c else 0.0

    repeats = [place([_poisson(chance, part.counts) for part in lowest]) for _ in range(_REPEATS)]
    # One standard error to the safe side: λ moves the rate, so it takes evidence.
    return float(np.clip(place([part.counts for part in lowest]) - np.std(repeats), 0.0, 1.0))


def _decide(real: Distribution, canary: Distribution, rate: float, right: float) -> Votes:
    """Return calibrated probabilities, and what to keep for the highest expected F1.

    A share ε = ``right`` of the canaries was made right: G = (1 − ε) F_bad + ε F_good, and
    F_all = ρ F_bad + (1 − ρ) F_good; these two are solved for F_bad.
    """
    n = real.counts.sum()
    f = np.cumsum(real.counts) / n  # [k]
    below = np.r_[0.0, np.cumsum(canary.counts)] / canary.counts.sum()
    g = below[np.searchsorted(canary.values, real.values, side="right")]  # [k]
    if (rest := (1 - rate) * (1 - right) - rate * right) > 0:
        g = ((1 - rate) * g - right * f) / rest
    p_bad = np.clip(rate * falling_slope(f, g), 0.0, 1.0)
    if rate * n < 1:  # less than one sample
        return Votes(1.0 - p_bad, -np.inf, True, np.ones(len(f), dtype=np.bool_))
    last = int(np.argmax(g / (f + rate)))  # of those removed
    keep = np.arange(len(f)) > last
    boundary = float(real.values[last + 1]) if last + 1 < len(f) else np.inf
    return Votes(1.0 - p_bad, boundary, True, keep)


def _blend(canaries: Mapping[str, Distribution], share: float) -> Distribution:
    """Return G = (1 − λ) G_uniform + λ G_confusable, or the only kind there is."""
    kind, first = _first(canaries)
    others = [own for other, own in canaries.items() if other.startswith("confusable/")]
    if share == 0 or kind.startswith("confusable/") or not others:
        return first
    parts = (first, 1 - share), (others[0], share)
    values = np.concatenate([part.values for part, _ in parts])
    counts = np.concatenate([part.counts * part_share for part, part_share in parts])
    losses = np.concatenate([part.losses for part, _ in parts])
    order = np.argsort(values, kind="stable")
    return Distribution(values[order], counts[order], losses[order])


def _first(canaries: Mapping[str, Distribution]) -> tuple[str, Distribution]:
    """Return the kind that makes the fewest assumptions: uniform, else swapped, else any."""
    kind = _in_order(canaries)[0]
    return kind, canaries[kind]


def _in_order(kinds: Iterable[str]) -> list[str]:
    """Sort kinds: those of the fewest assumptions first, whatever order the log gave them in."""
    return sorted(
        kinds, key=lambda kind: (not kind.startswith("uniform/"), kind != "swapped", kind)
    )


def _classes(kind: str) -> int | None:
    """Return K of ``uniform/K``; None for other kinds."""
    name, _, classes = kind.partition("/")
    return int(classes) if name == "uniform" and classes.isdigit() else None


def wilson(share: FloatArray, n: npt.ArrayLike, z: float) -> FloatArray:
    """Bound a binomial share (Wilson 1927).

    Args:
        share: observed shares, in [0, 1].
        n: of how many.
        z: standard errors: the upper bound where it is positive, the lower where negative.

    Returns:
        Bounds above 0, of the shape of the shares.

    Example:
        >>> wilson(np.array([0.5]), 100, 1.96).round(3)
        array([0.596])
    """
    n = np.asarray(n, dtype=np.float64)
    center = share + z**2 / (2 * n)
    width = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    bound: FloatArray = np.maximum((center + width) / (1 + z**2 / n), np.finfo(np.float64).tiny)
    return bound


def _poisson(chance: np.random.Generator, counts: FloatArray) -> FloatArray:
    """Resample counts."""
    return chance.poisson(counts).astype(np.float64)
