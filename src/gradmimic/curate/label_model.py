"""Label models: from the votes on each sample to one posterior probability that it is to be kept.

    mean       p_i = Σ_g ayes_ig / Σ_g (ayes_ig + nays_ig)
    majority   p_i = 1, ½ or 0 as the ayes outnumber, equal or are fewer than the nays
    one coin, two coins (Dawid and Skene), fitted by expectation maximisation from p = mean:
        M   π_c = Σ_i n_i p_ic / Σ_i n_i                           share of class c, keep or remove
            a_cg = Σ_i n_i p_ic ayes_ig / Σ_i n_i p_ic (ayes_ig + nays_ig)        P(aye of g | c)
            one coin: a_keep,g = 1 − a_remove,g = share of g's votes expected to be right
        E   p_ic ∝ π_c Π_g a_cg^ayes_ig (1 − a_cg)^nays_ig

Samples with the same votes have the same posterior, so i runs over the distinct vote *patterns*,
n_i samples each: at most 3^v for v voters that vote aye, nay or abstain, whatever the size of the
data. g is a voter, with ayes and nays of 0 or 1, or a group of voters that are taken to be alike,
such as one scorer's visits, with as many as it cast. An abstention is a missing answer.

What the formulas leave open:

- **Removing takes evidence.** p = ½ is a tie and keeps. A pattern without votes is one, in every
  model, though the model alone would say π; and it takes no part in the fit.
- **Votes cannot tell right from wrong, only agreement.** EM starts at the mean, so that *keep* is
  what the majority calls so, and the votes' mean accuracy starts at ½ or more. A few voters that
  are mostly wrong are found out, and count against what they say; where most are, every posterior
  comes out upside down, the wrong voters look right, and only canaries could tell.
- **The votes count as independent given the truth.** One scorer's votes at several visits are
  not: the order of the posteriors can still serve, but they are surer than they should be.
- **EM gains where voters abstain**, so that the majority is often a tie, and where they differ:
  0.9704 of a million decisions right against the majority's 0.9587, for five voters that are 80 to
  97 % right, 30 % abstaining and half of the samples to keep. Without abstentions: 0.9923 against
  0.9909. Where 80 % are to keep, ties are mostly right as they are: 0.9771 against 0.9731.
- Expected votes and shares are floored at 1e-10, as in crowd-kit's DawidSkene, whose posteriors
  these are at an equal number of iterations. Here EM runs until the posteriors stand still; its
  early stop leaves differences of up to 8e-3.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError

FloatArray = npt.NDArray[np.float64]

_FLOOR = 1e-10  # of expected votes, shares and accuracies, so that no logarithm is infinite
_ROUNDING = 1e-10  # a posterior this close to ½ is ½: the order of a sum must decide nothing


class Fitted(NamedTuple):
    """A label model after EM.

    Attributes:
        p_keep: posteriors ``[p]`` in [0, 1], higher is better; ½ and more is to keep.
        right_if_keep: P(aye | keep) of each voter or group ``[g]``; NaN if it never voted.
        right_if_remove: P(nay | remove) of each ``[g]``; for one coin the same.
        prior: P(keep), the share of samples to keep among those with votes.
        log_likelihood: natural logarithm of the probability of all votes, one by one.
        iterations: EM steps taken.
        converged: false where the steps ran out before the posteriors stood still.
    """

    p_keep: FloatArray
    right_if_keep: FloatArray
    right_if_remove: FloatArray
    prior: float
    log_likelihood: float
    iterations: int
    converged: bool

    @property
    def accuracies(self) -> FloatArray:
        """P(vote is right) of each voter or group ``[g]``; below ½ its votes count against it."""
        return self.prior * self.right_if_keep + (1 - self.prior) * self.right_if_remove


def mean(ayes: npt.ArrayLike, nays: npt.ArrayLike) -> FloatArray:
    """Return the share of votes to keep.

    p_i = Σ_g ayes_ig / Σ_g (ayes_ig + nays_ig)

    Args:
        ayes: votes to keep ``[p, g]``, by pattern and voter or group of voters.
        nays: votes to remove ``[p, g]``.

    Returns:
        ``[p]`` in [0, 1]; ½ where nobody voted.

    Raises:
        DataError: ayes and nays are not two like matrices of numbers of votes.

    Example:
        >>> mean([[3], [1], [0]], [[1], [1], [0]])
        array([0.75, 0.5 , 0.5 ])
    """
    for_keep, against = (side.sum(axis=1) for side in _as_tallies(ayes, nays))  # [p] each
    cast = for_keep + against
    return np.asarray(np.divide(for_keep, cast, out=np.full(len(cast), 0.5), where=cast > 0))


def majority(ayes: npt.ArrayLike, nays: npt.ArrayLike) -> FloatArray:
    """Return what most votes say.

    p_i = 1 if Σ_g ayes_ig > Σ_g nays_ig, ½ if they are equal, else 0

    Args:
        ayes: votes to keep ``[p, g]``, by pattern and voter or group of voters.
        nays: votes to remove ``[p, g]``.

    Returns:
        ``[p]`` of 0, ½ and 1; ½ where nobody voted.

    Raises:
        DataError: ayes and nays are not two like matrices of numbers of votes.

    Example:
        >>> majority([[3], [1], [0]], [[1], [1], [2]])
        array([1. , 0.5, 0. ])
    """
    for_keep, against = (side.sum(axis=1) for side in _as_tallies(ayes, nays))  # [p] each
    return np.asarray((1 + np.sign(for_keep - against)) / 2)


def one_coin(
    ayes: npt.ArrayLike,
    nays: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    tolerance: float = 1e-9,
    steps: int = 1000,
) -> Fitted:
    """Weigh each voter by how often it is right, whatever the truth; one accuracy per voter.

    p_i ∝ π Π_g s_g^ayes_ig (1 − s_g)^nays_ig, against (1 − π) Π_g (1 − s_g)^ayes_ig s_g^nays_ig

    Args:
        ayes: votes to keep ``[p, g]``, by pattern and voter or group of like voters.
        nays: votes to remove ``[p, g]``.
        counts: samples ``[p]`` of each pattern; one of 0 is judged without a say in the fit.
        tolerance: stop when no posterior changes by this much.
        steps: stop after so many EM steps at the latest.

    Returns:
        Posteriors, accuracies and how the fit went.

    Raises:
        DataError: the arrays do not fit each other, or no sample has a vote.

    Source:
        Zhang et al., Spectral methods meet EM, JMLR 17 (2016); crowd-kit's ``OneCoinDawidSkene``.

    Example:
        >>> from gradmimic.curate.vote_patterns import patterns_of, tally
        >>> found = patterns_of([[1, 1, 0], [0, 0, 0], [1, 1, 1], [1, 1, 0]])
        >>> fitted = one_coin(*tally(found.patterns), found.counts)
        >>> fitted.p_keep[found.inverse].round(3), fitted.accuracies.round(3)
        (array([1., 0., 1., 1.]), array([1. , 1. , 0.5]))
    """

    def same_coin(expected: FloatArray) -> FloatArray:
        right = expected[0, 0] + expected[1, 1]  # [g] nays if remove and ayes if keep
        accuracy = np.clip(_ratio(right, expected.sum(axis=(0, 1))), _FLOOR, 1 - _FLOOR)
        return np.array([[accuracy, 1 - accuracy], [1 - accuracy, accuracy]])

    return _fit(ayes, nays, counts, same_coin, tolerance, steps)


def dawid_skene(
    ayes: npt.ArrayLike,
    nays: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    tolerance: float = 1e-9,
    steps: int = 1000,
) -> Fitted:
    """Weigh each voter by how often it is right on samples to keep, and on samples to remove.

    p_ic ∝ π_c Π_g a_cg^ayes_ig (1 − a_cg)^nays_ig

    Two coins per voter: fits voters that are lenient or strict, and takes more samples to fit. With
    fewer than three voters many pairs of coins explain the votes equally well.

    Args:
        ayes: votes to keep ``[p, g]``, by pattern and voter or group of like voters.
        nays: votes to remove ``[p, g]``.
        counts: samples ``[p]`` of each pattern; one of 0 is judged without a say in the fit.
        tolerance: stop when no posterior changes by this much.
        steps: stop after so many EM steps at the latest.

    Returns:
        Posteriors, both rates of each voter and how the fit went.

    Raises:
        DataError: the arrays do not fit each other, or no sample has a vote.

    Source:
        Dawid and Skene, Maximum likelihood estimation of observer error-rates using the EM
        algorithm, Applied Statistics 28 (1979); crowd-kit's ``DawidSkene``.

    Example:
        >>> fitted = dawid_skene([[9], [8], [1]], [[1], [2], [9]], [500, 400, 100])
        >>> fitted.p_keep.round(3), round(fitted.prior, 3)
        (array([1., 1., 0.]), 0.9)
    """

    def two_coins(expected: FloatArray) -> FloatArray:
        cast = expected.sum(axis=0) > 0  # [2 votes, g]; a kind never cast gets no floor
        floored = np.maximum(expected, _FLOOR) * cast
        return _ratio(floored, floored.sum(axis=1, keepdims=True))

    return _fit(ayes, nays, counts, two_coins, tolerance, steps)


def is_tie(p_keep: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell which posteriors are exactly ½: kept, since nothing speaks against the sample.

    Every model here gives ½ itself, not a number beside it, where the votes are balanced.

    Example:
        >>> is_tie(mean([[1], [2]], [[1], [1]]))
        array([ True, False])
    """
    return np.asarray(np.asarray(p_keep) == 0.5)


def _fit(
    ayes: npt.ArrayLike,
    nays: npt.ArrayLike,
    counts: npt.ArrayLike,
    coins: Callable[[FloatArray], FloatArray],
    tolerance: float,
    steps: int,
) -> Fitted:
    """Run EM; ``coins`` turns expected votes ``[2 classes, 2 votes, g]`` into P(vote | class)."""
    for_keep, against = _as_tallies(ayes, nays)
    p, g = for_keep.shape
    votes = np.hstack([against, for_keep])  # [p, 2g]; class and vote 0: remove, 1: keep
    voted = votes.any(axis=1)
    weights = _as_counts(counts, p) * voted  # [p]
    if steps < 1:
        raise DataError(f"expected one EM step or more, got steps={steps}. Leave out steps.")
    if not weights.any():
        raise DataError(
            f"expected votes to fit a label model to, got none: all {g} voters abstain on each of "
            f"{p} patterns that hold a sample. Use mean or majority, which keep such samples."
        )
    share = mean(for_keep, against)
    posterior = np.stack([1 - share, share])  # [2, p]
    for iteration in range(1, steps + 1):  # noqa: B007, its last value is reported
        # M step: what the posteriors say of the classes and the voters
        prior = np.maximum(posterior @ weights / weights.sum(), _FLOOR)  # [2]
        prior /= prior.sum()
        expected = (posterior * weights) @ votes  # [2, 2g] votes of each kind in each class
        p_vote = coins(expected.reshape(2, 2, g))  # [2, 2, g]
        # E step: what these say of the samples
        says = np.where(p_vote > 0, p_vote, 1.0)  # a kind of vote never cast in the fit: nothing
        log_joint = np.log(prior)[:, None] + np.log(says).reshape(2, 2 * g) @ votes.T  # [2, p]
        evidence = np.logaddexp(log_joint[0], log_joint[1])  # [p]
        previous, posterior = posterior, np.exp(log_joint - evidence)
        change = float(np.abs(posterior - previous).max())
        if change < tolerance:
            break
    p_keep = posterior[1]
    p_keep[~voted | (np.abs(p_keep - 0.5) < _ROUNDING)] = 0.5
    return Fitted(
        p_keep=p_keep,
        right_if_keep=p_vote[1, 1],
        right_if_remove=p_vote[0, 0],
        prior=float(prior[1]),
        log_likelihood=float(weights @ evidence),
        iterations=iteration,
        converged=change < tolerance,
    )


def _ratio(part: FloatArray, whole: FloatArray) -> FloatArray:
    """Divide, NaN where there is nothing to divide by."""
    whole = np.broadcast_to(whole, part.shape)
    return np.asarray(np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def _as_tallies(ayes: npt.ArrayLike, nays: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return numbers of votes as float64, refusing whatever else."""
    for_keep, against = np.asarray(ayes, dtype=np.float64), np.asarray(nays, dtype=np.float64)
    if for_keep.ndim != 2 or for_keep.shape != against.shape:
        raise DataError(
            "expected ayes and nays as two matrices [patterns, voters] of one shape, got "
            f"{for_keep.shape} and {against.shape}. Pass tally(votes) for a matrix of votes."
        )
    for name, side in (("ayes", for_keep), ("nays", against)):
        wrong = ~(np.isfinite(side) & (side >= 0))
        if wrong.any():
            raise DataError(
                f"expected numbers of votes, 0 or more, got {side[wrong][0]:g} among the {name} of "
                f"pattern {int(np.argwhere(wrong)[0, 0])}. Pass tally(votes) for a matrix of votes "
                "with −1 for abstentions."
            )
    return for_keep, against


def _as_counts(counts: npt.ArrayLike, p: int) -> FloatArray:
    """Return samples per pattern as float64, refusing whatever else."""
    array = np.asarray(counts, dtype=np.float64)
    if array.shape != (p,) or not (np.isfinite(array) & (array >= 0)).all():
        raise DataError(
            f"expected one count of samples, 0 or more, for each of {p} patterns, got shape "
            f"{array.shape}"
            + (f" from {array.min():g} to {array.max():g}" if array.size else "")
            + ". Pass the counts that patterns_of found."
        )
    return array
