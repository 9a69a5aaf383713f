import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradmimic.curate.votes import (
    RULES,
    Mixture,
    Votes,
    fit_mixture,
    mixture,
    one_over_b,
    posterior,
    two_means,
)
from gradmimic.errors import DataError


def test_one_over_b_compares_with_the_equal_share():
    votes = one_over_b([1.01, 0.99, 1.0])
    assert votes.p_keep.tolist() == [1, 0, 1]
    assert (votes.boundary, votes.evidence) == (1.0, True)


@pytest.mark.parametrize("b", [1, 2, 3, 7, 49, 1000])
def test_one_over_b_keeps_a_uniform_batch_whatever_float32_makes_of_its_share(b):
    weights = np.full(b, 1 / b, dtype=np.float32)
    assert one_over_b(weights.astype(np.float64) * b).p_keep.all()


def squares(group):
    return ((group - group.mean()) ** 2).sum()


@given(hnp.arrays(np.float64, st.integers(3, 30), elements=st.integers(-20, 20).map(float)))
def test_two_means_is_the_best_of_all_splits(values):
    if np.ptp(values) == 0:
        return
    keep = two_means(values).p_keep == 1
    costs = [
        squares(values[values < cut]) + squares(values[values >= cut])
        for cut in np.unique(values)[1:]
    ]
    assert values[keep].min() > values[~keep].max()
    assert squares(values[keep]) + squares(values[~keep]) == pytest.approx(min(costs), abs=1e-9)


def test_two_means_does_not_lose_a_small_gap_on_a_large_offset():
    values = 1e4 + np.array([0.0, 0.01, 0.02, 1.0, 1.01, 1.02])
    votes = two_means(values)
    assert votes.p_keep.tolist() == [0, 0, 0, 1, 1, 1]
    assert votes.boundary == values[3]


@pytest.mark.parametrize("rule", ["two_means", "mixture"])
@pytest.mark.parametrize(
    "values", [[], [0.3], [0.3, 0.7], [0.1] * 9, [1.0, 1.0 + 1e-8, 1.0], [0.0] * 3]
)
def test_without_two_groups_everything_is_kept(rule, values):
    votes = RULES[rule](values)
    assert votes.p_keep.tolist() == [1.0] * len(values)
    assert (votes.boundary, votes.evidence) == (-np.inf, False)


def two_groups(seed, gap, n=600):
    rng = np.random.default_rng(seed)
    return np.r_[rng.normal(0, 1, n // 3), rng.normal(gap, 0.5, n - n // 3)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("unit", [1e-8, 1.0, 1e5])
def test_mixture_agrees_with_scikit_learn(seed, unit):
    sklearn = pytest.importorskip("sklearn.mixture")
    values = two_groups(seed, gap=3.0) * unit
    ours = fit_mixture(values, tolerance=1e-12)
    x = (values / unit)[:, None]
    theirs = sklearn.GaussianMixture(
        2, tol=1e-12, max_iter=2000, reg_covar=0, means_init=ours.means[:, None] / unit
    ).fit(x)
    np.testing.assert_allclose(ours.shares, theirs.weights_, rtol=1e-3)
    np.testing.assert_allclose(ours.means / unit, theirs.means_[:, 0], atol=1e-3)
    np.testing.assert_allclose(ours.variances / unit**2, theirs.covariances_[:, 0, 0], rtol=1e-3)
    np.testing.assert_allclose(posterior(ours, values), theirs.predict_proba(x)[:, 1], atol=1e-3)


def test_mixture_keeps_more_where_the_score_is_higher():
    values = np.sort(two_groups(0, gap=3.0))
    votes = mixture(values)
    assert (np.diff(votes.p_keep) >= 0).all()
    # The wide lower component would claim the top again without the clipping.
    assert posterior(fit_mixture(values), [9.0])[0] < 0.5
    assert votes.p_keep[-1] > 0.9
    assert 0.30 < (votes.p_keep < 0.5).mean() < 0.37
    assert votes.boundary == values[votes.p_keep >= 0.5].min()


def test_mixture_is_deterministic_and_does_not_depend_on_order():
    values = two_groups(1, gap=2.0)
    np.testing.assert_array_equal(mixture(values).p_keep, mixture(values.copy()).p_keep)
    np.testing.assert_allclose(
        mixture(values[::-1]).p_keep, mixture(values).p_keep[::-1], atol=1e-6
    )


def test_mixture_survives_a_group_of_one_point():
    votes = mixture([0.0, 0.0, 0.0, 1.0, 1.0])
    assert votes.p_keep.round(6).tolist() == [0, 0, 0, 1, 1]


def test_posterior_is_the_formula():
    two = Mixture(np.array([0.25, 0.75]), np.array([0.0, 2.0]), np.array([1.0, 4.0]))
    lower = 0.25 * np.exp(-0.5) / np.sqrt(2 * np.pi)
    upper = 0.75 * np.exp(-0.125) / np.sqrt(8 * np.pi)
    assert posterior(two, [1.0])[0] == pytest.approx(upper / (lower + upper))


@pytest.mark.parametrize("rule", RULES)
def test_rules_refuse_what_they_are_not_defined_for(rule):
    with pytest.raises(DataError, match=r"shape \(3,\) with 2 that are NaN or infinite"):
        RULES[rule]([1.0, np.nan, np.inf])
    with pytest.raises(DataError, match=r"one finite number per sample, got shape \(1, 2\)"):
        RULES[rule]([[1.0, 2.0]])


def test_no_mixture_fits_equal_scores():
    with pytest.raises(DataError, match=r"at least three scores that are not all equal, got 4"):
        fit_mixture([1.0] * 4)


@pytest.mark.parametrize("rule", RULES)
@given(
    hnp.arrays(np.float64, st.integers(1, 12), elements=st.integers(-9, 9).map(float), unique=True),
    st.data(),
)
def test_a_count_stands_for_as_many_equal_values(rule, values, data):
    counts = data.draw(hnp.arrays(np.int64, len(values), elements=st.integers(1, 5)))
    weighted, repeated = RULES[rule](values, counts), RULES[rule](np.repeat(values, counts))
    assert (weighted.boundary, weighted.evidence) == (repeated.boundary, repeated.evidence)
    np.testing.assert_allclose(np.repeat(weighted.p_keep, counts), repeated.p_keep, atol=1e-5)


def test_a_rule_may_keep_what_is_not_likely_clean():
    votes = Votes(np.array([0.2, 0.4, 0.9]), 0.5, True, np.array([False, True, True]))
    assert votes.keep.tolist() == [False, True, True]
    assert mixture([0.0, 0.1, 0.9, 1.0]).keep.tolist() == [False, False, True, True]


@pytest.mark.parametrize("counts", [[1, 2], [1, 0, 2], [1, np.nan, 2], [[1, 2, 3]]])
@pytest.mark.parametrize("rule", RULES)
def test_counts_that_do_not_fit_are_refused(rule, counts):
    with pytest.raises(DataError, match="expected one count above 0 for each of 3 values, got sh"):
        RULES[rule]([0.1, 0.2, 0.3], counts)
