"""Several scorers, one score: canaries say which scorers to believe, and how much.

    z_ij = 3 asinh(y_ij / 3),  y_ij = (x_ij − m_j) / s_j          m, s: median, spread of samples
    score_i = b + Σ_j w_j z_ij,  w ≥ 0
    w, b = argmin  mean_i log(1 + e^{−score_i}) + mean_c log(1 + e^{score_c}) + λ|w|²
                   over samples i and canaries c

A logistic regression that tells canaries from samples: its score is the log-odds that a sample is
none. Samples are partly bad, which lowers every log-odds and changes no order. Weights are never
negative, since a scorer's higher scores are the better ones: where canaries find the opposite, that
scorer is left out. Beyond three spreads z grows like a logarithm, so that one wild number decides
nothing; a sample that a scorer has not seen counts as its median.

λ = 3 / c, as of few canaries c weights are not known well. The combination is judged on folds that
it was not fitted to. Only where the best scorer alone is better there by more than two standard
errors, or no other has a weight, is one scorer taken, as it is: which of several good ones is best,
few canaries do not tell.

Canaries speak for bad samples only where both are treated alike. A model that was trained on the
samples knows bad ones by heart, and canaries not: by its own scores it tells canaries from samples
very well, and finds no bad one. It gives itself away by a noise rate that contradicts another
scorer's, and is left out: an interval of the rate that lies wholly below the other's.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradmimic.curate.canaries import Distribution, Seen, noise_rate
from gradmimic.curate.votes import BoolArray, FloatArray
from gradmimic.errors import DataError
from gradmimic.separation import auroc

BEND = 3.0  # spreads from the median to where z bends
_FOLDS = 5
_NORMAL = 1.4826  # median distances in a standard deviation of a normal distribution
_RIDGE, _LEAST_RIDGE = 3.0, 1e-4  # of the weights, for one canary and for any number
_DOUBT = 2.0  # standard errors by which one scorer alone has to be better than all together
_KNOWING, _TELLING = 0.65, 0.82  # AUROCs that a witness needs, with bad samples and without
_MARGIN = 0.05  # between noise rates that contradict each other
_STEPS, _SWEEPS, _TOLERANCE = 50, 200, 1e-10


@dataclass(frozen=True, eq=False)
class Stack:
    """How scorers are combined, and why so.

    Attributes:
        names: of the k scorers.
        weights: ``[k]``, 0 or more; those of the combination, or 1 for the scorer that was chosen.
        bias: b of the formula.
        center: ``[k]``, the samples' medians.
        scale: ``[k]``, the samples' spreads, above 0.
        auroc: by scorer, how well it alone tells samples from canaries: 1 is perfect, 0.5 chance,
            less than 0.5 inverted.
        combined: the same for the combination, on folds that it was not fitted to.
        chosen: None for the combination, else the name of the scorer that is better.
        left_out: by scorer that is not believed, why.
    """

    names: tuple[str, ...]
    weights: FloatArray
    bias: float
    center: FloatArray
    scale: FloatArray
    auroc: dict[str, float]
    combined: float
    chosen: str | None
    left_out: dict[str, str]

    def __call__(self, scores: npt.ArrayLike) -> FloatArray:
        """Combine scores ``[n, k]`` into ``[n]``, higher is better.

        They are log-odds, or where one scorer was chosen its own scores. NaN is a score that is
        missing.
        """
        x = _matrix(scores, len(self.names), "scores")
        if self.chosen is not None:
            j = self.names.index(self.chosen)
            return np.where(np.isnan(x[:, j]), self.center[j], x[:, j])
        z: FloatArray = _bent(x, self.center, self.scale) @ self.weights + self.bias
        return z

    @property
    def why(self) -> str:
        """What was chosen and why, in a sentence.

        Example:
            >>> chance = np.random.default_rng(0)
            >>> good, bad = chance.normal(1, 1, (500, 2)), chance.normal(0, 1, (500, 2))
            >>> stack(good, bad, ["mimic", "clip"]).why
            'combined 0.86 mimic + 1 clip: canary AUROC 0.833, alone mimic 0.729, clip 0.773'
        """
        alone = ", ".join(f"{name} {area:.3f}" for name, area in self.auroc.items())
        alone += "".join(f"; left out {name}: {reason}" for name, reason in self.left_out.items())
        if self.chosen is not None:
            areas = f"{self.auroc[self.chosen]:.3f}; combined {self.combined:.3f}"
            return f"chose {self.chosen}: canary AUROC {areas}, alone {alone}"
        terms = zip(self.names, self.weights, strict=True)
        sum_ = " + ".join(f"{weight:.3g} {name}" for name, weight in terms if weight > 0)
        return f"combined {sum_}: canary AUROC {self.combined:.3f}, alone {alone}"


def stack(
    scores: npt.ArrayLike,
    canaries: npt.ArrayLike,
    names: Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> Stack:
    """Learn from canaries how to combine several scorers into one.

    score_i = b + Σ_j w_j z_ij, w ≥ 0, by a logistic regression that tells canaries from samples.

    Args:
        scores: ``[n, k]``, of samples; higher is better; NaN where a scorer has not seen a sample.
        canaries: ``[c, k]``, of canaries, by the same scorers.
        names: of the scorers; None means "0", "1", …
        seed: deals samples and canaries to the folds.

    Returns:
        The combination, or the best scorer where that is surely better. Call it with scores
        ``[n, k]`` for one score each.

    Raises:
        DataError: the shapes do not fit each other, a score is infinite, there are fewer than five
            samples or canaries, or a scorer has seen no sample or no canary.

    Source:
        Stacked generalisation, Wolpert 1992; the weights kept above 0 as by Breiman 1996.

    Example:
        >>> chance = np.random.default_rng(0)
        >>> good, bad = chance.normal(1, 1, (500, 2)), chance.normal(0, 1, (500, 2))
        >>> found = stack(good, bad)
        >>> found.combined > max(found.auroc.values())
        True
        >>> found(good).shape
        (500,)
    """
    real, bad = _matrix(scores, None, "scores"), _matrix(canaries, None, "canaries' scores")
    k = real.shape[1]
    names = tuple(str(j) for j in range(k)) if names is None else tuple(names)
    _check(real, bad, names)
    center = np.nanmedian(real, axis=0)  # [k]
    scale = _spread(real, center)
    x = np.concatenate([real, bad])
    z = _bent(x, center, scale)  # [n + c, k]
    wrong = np.arange(len(z)) >= len(real)
    fold = _dealt(len(real), len(bad), seed)
    areas = np.array([_areas(z[:, j], wrong, fold) for j in range(k)])  # [k, folds]
    alone = dict(zip(names, areas.mean(axis=1).tolist(), strict=True))
    left_out = _contradicted(real, bad, alone, np.random.default_rng(seed))
    best = max((name for name in names if name not in left_out), key=lambda name: alone[name])
    z[:, [name in left_out for name in names]] = 0.0
    judged = np.empty(len(z))
    for own in range(_FOLDS):
        inside = fold == own
        judged[inside] = z[inside] @ _fit(z[~inside], wrong[~inside])[0]
    together = _areas(judged, wrong, fold)
    gains = together - areas[names.index(best)]  # [folds]
    weights, bias = _fit(z, wrong)
    chosen = None
    if (weights > 0).sum() <= 1 or gains.mean() < -_DOUBT * gains.std(ddof=1) / _FOLDS**0.5:
        chosen, weights, bias = best, (np.array(names) == best).astype(np.float64), 0.0
    combined = float(together.mean())
    return Stack(names, weights, bias, center, scale, alone, combined, chosen, left_out)


def _fit(z: FloatArray, wrong: BoolArray) -> tuple[FloatArray, float]:
    """Return w ≥ 0 and b: Newton's method, each step a bounded quadratic problem."""
    share = np.where(wrong, 1 / wrong.sum(), 1 / (~wrong).sum())  # [n + c], both sides alike
    design = np.column_stack([z, np.ones(len(z))])  # [n + c, k + 1]
    decay = max(_RIDGE / min(wrong.sum(), (~wrong).sum()), _LEAST_RIDGE)
    ridge = np.r_[np.full(z.shape[1], 2 * decay), 0.0]
    sign = np.where(wrong, -1.0, 1.0)

    def loss(theta: FloatArray) -> float:
        return float(share @ np.logaddexp(0, -sign * (design @ theta)) + ridge @ theta**2 / 2)

    theta = np.zeros(design.shape[1])
    now = loss(theta)
    for _ in range(_STEPS):
        p = 0.5 * (1 + np.tanh(design @ theta / 2))  # that it is a sample
        slope = design.T @ (share * (p - ~wrong)) + ridge * theta
        curve = (design.T * (share * p * (1 - p))) @ design + np.diag(ridge + 1e-12)
        step = _bounded(theta, slope, curve)
        while (then := loss(theta + step)) > now and np.abs(step).max() > _TOLERANCE:
            step = step / 2
        if now - then < _TOLERANCE:
            break
        theta, now = theta + step, then
    return theta[:-1], float(theta[-1])


def _bounded(theta: FloatArray, slope: FloatArray, curve: FloatArray) -> FloatArray:
    """Minimise slope·d + ½ d·curve·d where θ + d ≥ 0 but for the last, one number at a time."""
    step = np.zeros(len(theta))
    for _ in range(_SWEEPS):
        before = step.copy()
        for j in range(len(theta)):
            step[j] -= (slope[j] + curve[j] @ step) / curve[j, j]
            if j + 1 < len(theta):
                step[j] = max(step[j], -theta[j])
        if np.abs(step - before).max() < _TOLERANCE:
            break
    return step


def _bent(x: FloatArray, center: FloatArray, scale: FloatArray) -> FloatArray:
    """Return z ``[n, k]``; 0 where there is no score."""
    z: FloatArray = BEND * np.arcsinh((x - center) / (BEND * scale))
    return np.nan_to_num(z, nan=0.0)


def _spread(real: FloatArray, center: FloatArray) -> FloatArray:
    """Return s ``[k]``: median distances; where most scores are equal mean ones; of constants 1."""
    distance = np.abs(real - center)
    spread = _NORMAL * np.nanmedian(distance, axis=0)
    spread = np.where(spread > 0, spread, np.nanmean(distance, axis=0))
    return np.where(spread > 0, spread, 1.0)


def _contradicted(
    real: FloatArray, bad: FloatArray, alone: dict[str, float], chance: np.random.Generator
) -> dict[str, str]:
    """Return the scorers whose noise rate lies below what another one's allows, and why.

    Only a scorer that overlaps little is a witness, by its AUROC without the bad among the samples:
    A = (1 − ρ) A_good + ρ / 2.
    """
    rates, witnesses = {}, {}
    for j, (name, area) in enumerate(alone.items()):
        own = [np.sort(x[~np.isnan(x[:, j]), j]) for x in (real, bad)]
        samples, canaries = (Distribution(x, np.ones(len(x)), np.zeros(len(x))) for x in own)
        rates[name] = rate = noise_rate(Seen(samples, {"swapped": canaries}), 0.0, chance)
        if area > _KNOWING and area - rate.value / 2 >= _TELLING * (1 - rate.value):
            witnesses[name] = rate.low
    if not witnesses:
        return {}
    most = max(witnesses, key=lambda name: witnesses[name])
    return {
        name: (
            f"by the canaries of {name} at most {own.high:.1%} of the samples are bad, by those of "
            f"{most} at least {witnesses[most]:.1%}, as happens where a model was trained on them"
        )
        for name, own in rates.items()
        if own.high + _MARGIN < witnesses[most]
    }


def _areas(z: FloatArray, wrong: BoolArray, fold: npt.NDArray[np.int64]) -> FloatArray:
    """Return the AUROC ``[folds]`` within each fold."""
    return np.array([auroc(z[fold == own], wrong[fold == own]) for own in range(_FOLDS)])


def _dealt(n: int, c: int, seed: int) -> npt.NDArray[np.int64]:
    """Return the fold of every sample, then of every canary ``[n + c]``, dealt evenly."""
    chance = np.random.default_rng(seed)
    return np.concatenate([chance.permutation(np.arange(m) % _FOLDS) for m in (n, c)])


def _matrix(scores: npt.ArrayLike, k: int | None, what: str) -> FloatArray:
    """Return float64 ``[n, k]``, refusing whatever else."""
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] == 0 or k not in (None, x.shape[1]):
        raise DataError(
            f"expected {what} as a matrix of one row per sample and one column per scorer"
            f"{'' if k is None else f', {k} of them'}, got shape {x.shape}."
        )
    if np.isinf(x).any():
        raise DataError(f"{int(np.isinf(x).sum())} {what} are infinite. Leave them out, as NaN.")
    return x


def _check(real: FloatArray, bad: FloatArray, names: Sequence[str]) -> None:
    """Refuse what no combination can be learned from."""
    if real.shape[1] != bad.shape[1] or real.shape[1] != len(names):
        raise DataError(
            f"expected the same scorers for samples and canaries, got {real.shape[1]} and "
            f"{bad.shape[1]} columns, and {len(names)} names."
        )
    if len(set(names)) < len(names):
        raise DataError(f"expected each scorer once, got {list(names)}.")
    for x, what in ((real, "samples"), (bad, "canaries")):
        if len(x) < _FOLDS:
            raise DataError(
                f"expected at least {_FOLDS} {what} to combine scorers by, got {len(x)}. Log more, "
                "or take one scorer."
            )
        if (blind := np.isnan(x).all(axis=0)).any():
            name = names[int(np.argmax(blind))]
            raise DataError(f"scorer {name!r} has seen none of the {what}. Leave it out.")
