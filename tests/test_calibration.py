"""What the canaries tell: known mixtures come back, and nothing is claimed without evidence."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradmimic.curate.canaries import Distribution, Estimate, Seen, auroc, calibrate
from gradmimic.curate.isotonic import falling_slope
from gradmimic.errors import DataError


def distribution(scores, losses=None):
    order = np.argsort(scores, kind="stable")
    losses = -scores if losses is None else losses
    return Distribution(scores[order], np.ones(len(scores)), losses[order])


def mixture(rho, *, n=20_000, m=2_000, classes=None, seed=0, apart=3.0):
    """Samples of which a share rho scores as the canaries do."""
    chance = np.random.default_rng(seed)
    bad = chance.random(n) < rho
    real = np.where(bad, chance.normal(size=n), apart + chance.normal(size=n))
    own = chance.normal(size=m)
    kind = "swapped"
    if classes is not None:  # a canary made from a bad sample may be given the right label
        right = (chance.random(m) < rho) & (chance.random(m) < 1 / (classes - 1))
        own, kind = np.where(right, apart + own, own), f"uniform/{classes}"
    return Seen(distribution(real), {kind: distribution(own)}), bad, real


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.3, 0.6])
@pytest.mark.parametrize("classes", [None, 3, 10])
def test_the_share_of_bad_samples_comes_back(rho, classes):
    seen, bad, real = mixture(rho, classes=classes)
    found = calibrate([seen], seen)
    assert found.noise_rate.value == pytest.approx(bad.mean(), abs=0.02)
    assert found.noise_rate.low - 0.001 < bad.mean() < found.noise_rate.high
    assert found.noise_rate.high - found.noise_rate.low < 0.12
    order = np.argsort(real)
    p_bad = 1 - found.votes.p_keep
    assert np.all(np.diff(p_bad) <= 0)  # a higher score is never less likely to be clean
    assert p_bad.mean() == pytest.approx(found.noise_rate.value, abs=0.01)
    if rho:
        removed = ~found.votes.keep
        hit = (removed & bad[order]).sum()
        known = np.arange(len(bad)) < bad.sum()  # what knowing the true rate would remove
        f1 = 2 * hit / (removed.sum() + bad.sum())
        assert f1 > 2 * (known & bad[order]).sum() / (2 * bad.sum()) - 0.02
        assert real[order][found.votes.keep].min() == found.votes.boundary


def test_probabilities_are_calibrated():
    seen, bad, real = mixture(0.3, m=20_000, apart=1.5)
    found = calibrate([seen], seen)
    p_bad, wrong = 1 - found.votes.p_keep, bad[np.argsort(real)]
    for low in np.arange(0, 1, 0.2):
        inside = (p_bad >= low) & (p_bad <= low + 0.2)
        if inside.sum() > 500:
            assert wrong[inside].mean() == pytest.approx(p_bad[inside].mean(), abs=0.06)


def test_clean_data_lose_less_than_one_sample_in_a_hundred():
    seen, *_ = mixture(0.0)
    found = calibrate([seen], seen)
    assert found.noise_rate.value <= 0.01
    assert found.votes.keep.mean() > 0.99


@pytest.mark.parametrize("apart", [0.0, -2.0])
def test_scores_that_tell_nothing_or_the_opposite_remove_nothing(apart):
    seen, *_ = mixture(0.3, apart=apart)
    found = calibrate([seen], seen)
    assert found.auroc["swapped"].low <= 0.5
    assert found.noise_rate == Estimate(0.0, 0.0, 1.0)
    assert found.votes.keep.all()
    assert not found.votes.evidence


def test_all_scores_equal_remove_nothing():
    flat = Distribution(np.zeros(1), np.array([100.0]), np.zeros(1))
    found = calibrate([Seen(flat, {"swapped": flat})], Seen(flat, {"swapped": flat}))
    assert found.auroc["swapped"].value == 0.5
    assert found.votes.keep.tolist() == [True]


def test_the_rate_is_read_from_the_earliest_of_the_sharpest_visits():
    sharp, *_ = mixture(0.2, apart=4.0)
    again, *_ = mixture(0.2, apart=4.0, seed=1)
    blunt, *_ = mixture(0.2, apart=0.5)
    assert calibrate([blunt, sharp, again], sharp).visit == 1
    assert len(calibrate([blunt, sharp, again], sharp).auroc_by_visit) == 3


@pytest.mark.parametrize(("kind", "share"), [("uniform", 0.0), ("confusable", 1.0)])
def test_losses_tell_which_kind_of_canary_the_bad_samples_are(kind, share):
    chance = np.random.default_rng(0)
    uniform, confusable = chance.normal(-3, 1, 2000), chance.normal(-1.5, 1, 2000)
    bad = chance.normal({"uniform": -3, "confusable": -1.5}[kind], 1, 4000)
    real = np.concatenate([bad, chance.normal(3, 1, 16_000)])
    canaries = {
        "uniform/10": distribution(uniform, 4 + 0.1 * chance.normal(size=2000)),
        "confusable/10": distribution(confusable, 2 + 0.1 * chance.normal(size=2000)),
    }
    losses = np.full(20_000, {"uniform": 4.0, "confusable": 2.0}[kind])
    seen = Seen(distribution(real, losses), canaries)
    found = calibrate([seen], seen)
    assert found.confusable == pytest.approx(share, abs=0.03)
    assert found.noise_rate.value == pytest.approx(0.2, abs=0.03)
    assert found.noise_rate.low < 0.2 < found.noise_rate.high
    assert list(found.auroc) == list(canaries)
    turned = Seen(seen.real, dict(reversed(canaries.items())))
    again = calibrate([turned], turned)
    assert list(again.auroc.items()) == list(found.auroc.items())  # in the same order


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-5, 5), min_size=1), st.lists(st.integers(-5, 5), min_size=1))
def test_auroc_is_the_share_of_ordered_pairs(real, canary):
    def counted(values):
        scores, counts = np.unique(values, return_counts=True)
        return Distribution(scores.astype(float), counts.astype(float), np.zeros(len(scores)))

    pairs = np.subtract.outer(real, canary)
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    found = auroc(counted(real), counted(canary), np.random.default_rng(0))
    assert found.value == pytest.approx(expected)
    assert 0 <= found.low <= found.value <= found.high <= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 5)), min_size=1, max_size=20))
def test_falling_slopes_are_the_weighted_isotonic_fit(steps):
    from sklearn.isotonic import IsotonicRegression

    dx, dy = np.array(steps).T
    fitted = falling_slope(np.cumsum(dx), np.cumsum(dy))
    oracle = IsotonicRegression(increasing=False).fit_transform(
        np.arange(len(dx)), dy / dx, sample_weight=dx
    )
    assert fitted == pytest.approx(oracle, abs=1e-9)


def test_no_canaries_are_an_error():
    seen, *_ = mixture(0.1)
    with pytest.raises(DataError, match="no canaries to calibrate with"):
        calibrate([Seen(seen.real, {})], Seen(seen.real, {}))
