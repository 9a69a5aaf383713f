"""Scorers are combined by what canaries say of them, and never for the worse."""

import re

import numpy as np
import pytest

from gradmimic.curate.stack import stack
from gradmimic.errors import DataError
from gradmimic.separation import auroc


def scored(apart, *, n=800, c=400, seed=0, wild=False):
    """Samples of which 30 % are bad, and canaries; scorer j sets both ``apart[j]`` apart."""
    chance = np.random.default_rng(seed)
    bad = chance.random(n) < 0.3

    def draw(wrong):
        x = np.where(wrong[:, None], 0.0, apart) + chance.normal(size=(len(wrong), len(apart)))
        return np.sinh(1.5 * x) if wild else x

    return draw(bad), draw(np.ones(c, bool)), bad


def gain(found, real, bad):
    return auroc(found(real), bad) - max(auroc(column, bad) for column in real.T)


@pytest.mark.parametrize("wild", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_weak_but_independent_scorers_are_stronger_together(seed, wild):
    real, canaries, bad = scored([0.7, 0.7, 0.7], seed=seed, wild=wild)
    found = stack(real, canaries)
    assert found.chosen is None
    assert (found.weights > 0).all()
    assert gain(found, real, bad) > 0.05
    assert found.combined > max(found.auroc.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("others", [[0.0, 0.0], [0.2], [-0.7]])
def test_beside_one_good_scorer_others_do_little_harm(seed, others):
    real, canaries, bad = scored([1.5, *others], seed=seed)
    found = stack(real, canaries, ["mimic", "second", "third"][: len(others) + 1])
    assert gain(found, real, bad) > -0.005
    assert found.weights[0] > 5 * found.weights[1:].max()
    assert f"alone mimic {found.auroc['mimic']:.3f}" in found.why


@pytest.mark.parametrize("n", [500, 5000])
def test_a_model_that_knows_bad_samples_by_heart_is_not_believed(n):
    chance = np.random.default_rng(n)
    bad = chance.random(n) < 0.4
    mimic = np.where(bad, 0.0, 1.5) + chance.normal(size=n)
    own = np.where(bad, 2.8, 3.0) + chance.normal(size=n)  # trained on both, but not on canaries
    canaries = chance.normal(size=(n // 2, 2))
    found = stack(np.column_stack([mimic, own]), canaries, ["mimic", "own"])
    assert found.auroc["own"] > 0.95 > found.auroc["mimic"]
    assert auroc(own, bad) < 0.6 < auroc(mimic, bad)
    assert found.chosen == "mimic"
    told = r"left out own: by the canaries of own at most \d\.\d% .* of mimic at least [123]\d\.\d%"
    assert re.search(told, found.why)


@pytest.mark.parametrize("apart", [[1.0, 3.0], [1.5, 3.0], [1.5, 1.5, 0.5], [3.0, 0.0]])
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_scorers_that_only_differ_in_how_much_they_know_are_believed(apart, noise):
    chance = np.random.default_rng(3)
    bad = chance.random(2000) < noise
    real = np.where(bad[:, None], 0.0, apart) + chance.normal(size=(2000, len(apart)))
    found = stack(real, chance.normal(size=(800, len(apart))))
    assert found.left_out == {}


def test_one_scorer_is_taken_where_it_is_surely_better_than_all_together(monkeypatch):
    from gradmimic.curate import stack as module

    real, canaries, _ = scored([1.5, 0.1], n=4000, c=2000)
    monkeypatch.setattr(module, "_fit", lambda z, wrong: (np.array([0.2, 0.8]), 0.0))
    assert stack(real, canaries, ["mimic", "other"]).chosen == "mimic"
    monkeypatch.setattr(module, "_fit", lambda z, wrong: (np.array([0.99, 0.01]), 0.0))
    assert stack(real, canaries, ["mimic", "other"]).chosen is None


def test_a_scorer_that_is_chosen_keeps_its_own_numbers():
    real, canaries, _ = scored([1.5, -1.0])
    found = stack(real, canaries, ["mimic", "inverted"])
    assert found.chosen == "mimic"
    assert found.why.startswith(f"chose mimic: canary AUROC {found.auroc['mimic']:.3f}; combined")
    np.testing.assert_array_equal(found(real), real[:, 0])


def test_an_inverted_scorer_gets_no_weight_however_much_it_knows():
    real, canaries, _ = scored([1.0, 1.0, -3.0])
    found = stack(real, canaries)
    assert found.auroc["2"] < 0.2
    assert found.chosen is None
    assert found.weights[2] == 0
    changed = real.copy()
    changed[:, 2] = 7.0
    np.testing.assert_array_equal(found(changed), found(real))


def test_the_fit_is_where_no_allowed_change_makes_it_better():
    from gradmimic.curate.stack import _bent

    real, canaries, _ = scored([1.0, 0.6, -0.5])
    found = stack(real, canaries)

    def loss(weights, bias):
        good, bad = (_bent(x, found.center, found.scale) @ weights + bias for x in (real, canaries))
        fit = np.logaddexp(0, -good).mean() + np.logaddexp(0, bad).mean()
        return fit + 3 / len(canaries) * (weights**2).sum()

    best = loss(found.weights, found.bias)
    for j, step in [(0, 1e-3), (0, -1e-3), (1, 1e-3), (1, -1e-3), (2, 1e-3)]:
        assert loss(found.weights + step * np.eye(3)[j], found.bias) > best
    assert loss(found.weights, found.bias + 1e-3) > best
    assert loss(found.weights, found.bias - 1e-3) > best


def test_numbers_are_log_odds_and_do_not_depend_on_units():
    real, canaries, _ = scored([1.0, 1.0])
    found = stack(real, canaries)
    other = stack(real * [1e-6, 1e6] + [0, 5e6], canaries * [1e-6, 1e6] + [0, 5e6])
    np.testing.assert_allclose(other(real * [1e-6, 1e6] + [0, 5e6]), found(real), rtol=1e-6)
    # As many canaries as samples by weight: where the score is 0 either is as likely.
    scores = np.r_[found(real), found(canaries)]
    kind = np.r_[np.full(len(real), 1 / len(real)), np.full(len(canaries), -1 / len(canaries))]
    for low, high in ((-1.5, -0.5), (-0.5, 0.5), (0.5, 1.5)):
        inside = (scores > low) & (scores < high)
        share = kind[inside & (kind > 0)].sum() / np.abs(kind[inside]).sum()
        assert share == pytest.approx(1 / (1 + np.exp(-(low + high) / 2)), abs=0.07)


def test_a_score_that_is_missing_counts_as_the_median():
    real, canaries, bad = scored([1.0, 1.0])
    chance = np.random.default_rng(1)
    real[chance.random(real.shape) < 0.2] = np.nan
    canaries[chance.random(canaries.shape) < 0.2] = np.nan
    found = stack(real, canaries)
    known = np.where(np.isnan(real), found.center, real)
    np.testing.assert_array_equal(found(real), found(known))
    assert auroc(found(real), bad) > max(auroc(column, bad) for column in known.T)


def test_one_wild_number_decides_nothing():
    real, canaries, bad = scored([1.0, 1.0])
    before = auroc(stack(real, canaries)(real), bad)
    real[0, 0], canaries[0, 1] = 1e30, -1e30
    assert auroc(stack(real, canaries)(real), bad) == pytest.approx(before, abs=0.01)


def test_separable_and_constant_scores_give_finite_weights():
    real, canaries = np.array([[9.0, 1.0]] * 20), np.array([[-9.0, 1.0]] * 20)
    real[:, 0] += np.arange(20)
    found = stack(real, canaries, ["a", "constant"])
    assert np.isfinite(found.weights).all()
    assert found.auroc == {"a": 1.0, "constant": 0.5}
    assert found.chosen == "a"


@pytest.mark.parametrize(
    ("real", "canaries", "names", "message"),
    [
        (np.ones(9), np.ones((9, 1)), None, "expected scores as a matrix of one row per sample"),
        (np.ones((9, 2)), np.ones((9, 1)), None, "got 2 and 1 columns, and 2 names"),
        (np.ones((9, 2)), np.ones((9, 2)), ["a"], "and 1 names"),
        (np.ones((9, 2)), np.ones((9, 2)), ["a", "a"], "expected each scorer once"),
        (np.ones((9, 2)), np.ones((4, 2)), None, "expected at least 5 canaries .* got 4. Log more"),
        (np.full((9, 1), np.inf), np.ones((9, 1)), None, "9 scores are infinite. Leave them out"),
        (np.ones((9, 1)), np.full((9, 1), np.nan), ["clip"], "'clip' has seen none of the canar"),
    ],
)  # fmt: skip
def test_what_cannot_be_combined_is_refused(real, canaries, names, message):
    with pytest.raises(DataError, match=message):
        stack(real, canaries, names)
