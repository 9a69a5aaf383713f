import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradmimic.curate.label_model import (
    dawid_skene,
    is_tie,
    majority,
    mean,
    one_coin,
)
from gradmimic.curate.vote_patterns import patterns_of, tally
from gradmimic.errors import DataError

MODELS = [one_coin, dawid_skene]
FLOOR = 1e-10

some_votes = hnp.arrays(
    np.int8, st.tuples(st.integers(1, 25), st.integers(1, 4)), elements=st.integers(-1, 1)
).filter(lambda votes: (votes >= 0).any())
some_tallies = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(
        *(hnp.arrays(np.int64, shape, elements=st.integers(0, 6)) for _ in "an"),
        hnp.arrays(np.int64, shape[0], elements=st.integers(1, 9)),
    )
)


def cast_votes(n, right_if_keep, right_if_remove, prior, abstain, seed=0):
    r = np.random.default_rng(seed)
    truth = r.random(n) < prior
    right = r.random((n, len(right_if_keep))) < np.where(
        truth[:, None], right_if_keep, right_if_remove
    )
    votes = np.where(right, truth[:, None], ~truth[:, None]).astype(np.int8)
    votes[r.random(votes.shape) < abstain] = -1
    return votes, truth


def fit(model, votes, **options):
    """Fit to a vote matrix by its patterns; also return p_keep per row."""
    found = patterns_of(votes)
    fitted = model(*tally(found.patterns), found.counts, **options)
    return fitted, fitted.p_keep[found.inverse]


def same(a, b, atol=1e-9):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# ------------------------------------------------------------------ against a plain EM over rows


def em_over_rows(ayes, nays, same_coin, steps):
    """EM one sample and one voter at a time; every row has a vote."""
    sides, rows, voters = (nays, ayes), range(len(ayes)), range(len(ayes[0]))
    cast = [[sum(side[i][j] for i in rows) for j in voters] for side in sides]
    p = [sum(ayes[i]) / (sum(ayes[i]) + sum(nays[i])) for i in rows]
    for _ in range(steps):
        q = [[1 - p_i for p_i in p], p]
        prior = [max(sum(q[c]) / len(p), FLOOR) for c in (0, 1)]
        p_vote = {}
        for j in voters:
            expected = [[sum(q[c][i] * side[i][j] for i in rows) for side in sides] for c in (0, 1)]
            for c in (0, 1):
                if same_coin:
                    right = (expected[0][0] + expected[1][1]) / max(cast[0][j] + cast[1][j], 1)
                    right = min(max(right, FLOOR), 1 - FLOOR)
                    p_vote[c, c, j], p_vote[c, 1 - c, j] = right, 1 - right
                else:
                    seen = [max(expected[c][a], FLOOR) if cast[a][j] else 0 for a in (0, 1)]
                    p_vote[c, 0, j], p_vote[c, 1, j] = (s / (sum(seen) or 1) for s in seen)
        for i in rows:
            log = [np.log(prior[0]), np.log(prior[1])]
            for c, a, j in p_vote:
                if sides[a][i][j]:
                    log[c] += sides[a][i][j] * np.log(p_vote[c, a, j])
            p[i] = float(1 / (1 + np.exp(min(log[0] - log[1], 700.0))))
    return p


@pytest.mark.parametrize("model", MODELS)
@given(votes=some_votes, steps=st.integers(1, 6))
def test_patterns_give_what_rows_give(model, votes, steps):
    votes = votes[(votes >= 0).any(axis=1)]
    rows = em_over_rows((votes == 1).tolist(), (votes == 0).tolist(), model is one_coin, steps)
    same(fit(model, votes, steps=steps, tolerance=0)[1], rows)


@pytest.mark.parametrize("model", MODELS)
@given(tallies=some_tallies, steps=st.integers(1, 4))
def test_groups_give_what_rows_give(model, tallies, steps):
    ayes, nays, counts = tallies
    voted = (ayes + nays).any(axis=1)
    if not voted.any():
        return
    ayes, nays, counts = ayes[voted], nays[voted], counts[voted]
    each = np.repeat(np.arange(len(counts)), counts)
    rows = em_over_rows(ayes[each].tolist(), nays[each].tolist(), model is one_coin, steps)
    same(model(ayes, nays, counts, steps=steps, tolerance=0).p_keep[each], rows)


# ------------------------------------------------------------------ against crowd-kit


def crowd_kit(model, votes, steps, *, tolerance=-np.inf, workers=None):
    """crowd-kit's posteriors of keep, by row, after so many of its iterations."""
    import pandas as pd
    from crowdkit.aggregation import DawidSkene, OneCoinDawidSkene

    row, worker = np.nonzero(votes >= 0)
    table = pd.DataFrame(
        {
            "task": row,
            "worker": worker if workers is None else np.asarray(workers)[worker],
            "label": votes[row, worker].astype(np.int64),
        }
    )
    theirs = {one_coin: OneCoinDawidSkene, dawid_skene: DawidSkene}[model]
    with warnings.catch_warnings():
        # pandas 3 warns of two keywords that crowd-kit 1.4 still passes.
        warnings.filterwarnings("ignore", "The (inplace|copy) keyword", module=r"crowdkit\.")
        posterior = theirs(n_iter=steps, tol=tolerance).fit_predict_proba(table)
    return posterior.reindex(index=np.unique(row), columns=[0, 1], fill_value=0.0)[1].to_numpy()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize("abstain", [0.0, 0.3])
def test_posteriors_are_crowd_kits(model, steps, abstain):
    votes, _ = cast_votes(
        400, [0.9, 0.8, 0.7, 0.95, 0.4], [0.8, 0.85, 0.7, 0.6, 0.45], 0.7, abstain, seed=steps
    )
    votes[:3] = -1 if abstain else 1
    voted = (votes >= 0).any(axis=1)
    fitted, p_keep = fit(model, votes, steps=steps, tolerance=0)
    assert fitted.iterations == steps
    same(p_keep[voted], crowd_kit(model, votes, steps))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("seed", range(12))
def test_posteriors_are_crowd_kits_on_few_votes_too(model, seed):
    r = np.random.default_rng(seed)
    votes = r.integers(-1, 2, (r.integers(1, 9), r.integers(1, 5)), dtype=np.int8)
    votes[:, 0] = 1  # a voter that knows one answer only
    votes[0, -1] = 0  # so that both occur: of one class alone crowd-kit knows no other
    voted = (votes >= 0).any(axis=1)
    same(fit(model, votes, steps=8, tolerance=0)[1][voted], crowd_kit(model, votes, 8))


@pytest.mark.parametrize("model", MODELS)
def test_grouped_voters_are_crowd_kits_worker_with_many_answers(model):
    votes, _ = cast_votes(300, [0.8] * 4 + [0.7] * 3, [0.7] * 4 + [0.9] * 3, 0.6, 0.4)
    groups = np.array([0, 0, 0, 0, 1, 1, 1])
    ayes, nays = (side @ np.eye(2)[groups] for side in tally(votes))
    voted = (votes >= 0).any(axis=1)
    p_keep = model(ayes, nays, np.ones(300), steps=9, tolerance=0).p_keep
    same(p_keep[voted], crowd_kit(model, votes, 9, workers=groups))


@pytest.mark.parametrize(("model", "most"), [(one_coin, 1e-3), (dawid_skene, 8e-3)])
def test_crowd_kits_early_stop_is_near_where_the_posteriors_stand_still(model, most):
    votes, _ = cast_votes(2000, [0.9, 0.85, 0.8, 0.9, 0.8], [0.9, 0.8, 0.85, 0.8, 0.9], 0.7, 0.0)
    fitted, p_keep = fit(model, votes)
    assert fitted.converged
    assert 5 < fitted.iterations < 200
    apart = np.abs(p_keep - crowd_kit(model, votes, 100, tolerance=1e-5)).max()
    assert 1e-9 < apart < most


# ------------------------------------------------------------------ invariances


@pytest.mark.parametrize("model", MODELS)
@given(votes=some_votes, data=st.data())
def test_neither_the_order_of_patterns_nor_of_voters_matters(model, votes, data):
    rows = data.draw(st.permutations(range(votes.shape[0])))
    voters = data.draw(st.permutations(range(votes.shape[1])))
    before = model(*tally(votes), np.ones(len(votes)), steps=5)
    after = model(*tally(votes[rows][:, voters]), np.ones(len(votes)), steps=5)
    same(after.p_keep, before.p_keep[rows])
    same(after.right_if_keep, before.right_if_keep[voters])
    same(after.right_if_remove, before.right_if_remove[voters])
    assert after.log_likelihood == pytest.approx(before.log_likelihood, abs=1e-9)
    assert (is_tie(after.p_keep) == is_tie(before.p_keep)[rows]).all()


@pytest.mark.parametrize("model", MODELS)
@given(tallies=some_tallies, data=st.data())
def test_splitting_a_count_or_adding_an_empty_pattern_or_voter_changes_nothing(
    model, tallies, data
):
    ayes, nays, counts = tallies
    if not (ayes + nays).any():
        return
    i = data.draw(st.integers(0, len(counts) - 1))
    whole = model(ayes, nays, counts, steps=5, tolerance=0)
    apart = np.append(counts, [data.draw(st.integers(0, counts[i])), 0])
    apart[i] -= apart[-2]

    def and_more(side, last):  # rows: the rest of pattern i, then one of no sample
        side = np.vstack([side, side[i], np.full(side.shape[1], last)])
        return np.hstack([side, np.zeros((len(side), 1))])

    split = model(and_more(ayes, 2), and_more(nays, 1), apart, steps=5, tolerance=0)
    same(split.p_keep[:-2], whole.p_keep)
    assert split.p_keep[-2] == split.p_keep[i]
    same(split.right_if_keep[:-1], whole.right_if_keep)
    assert np.isnan([split.right_if_keep[-1], split.accuracies[-1]]).all()
    assert split.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
@given(tallies=some_tallies)
def test_keep_and_remove_are_treated_alike(model, tallies):
    ayes, nays, counts = tallies
    if not (ayes + nays).any():
        return
    one, other = model(ayes, nays, counts, steps=5), model(nays, ayes, counts, steps=5)
    same(one.p_keep, 1 - other.p_keep)
    same(one.right_if_keep, other.right_if_remove)
    assert one.prior == pytest.approx(1 - other.prior, abs=1e-9)
    same(mean(ayes, nays), 1 - mean(nays, ayes))
    same(majority(ayes, nays), 1 - majority(nays, ayes))


@pytest.mark.parametrize("model", MODELS)
@given(tallies=some_tallies)
def test_every_step_makes_the_votes_more_likely(model, tallies):
    if not any(side.any() for side in tallies[:2]):
        return
    likelihoods = [
        model(*tallies, steps=steps, tolerance=0).log_likelihood for steps in range(1, 9)
    ]
    assert np.diff(likelihoods).min() > -1e-6
    assert likelihoods[-1] <= 1e-9


@given(tallies=some_tallies)
def test_mean_and_majority_decide_alike_and_agree_on_ties(tallies):
    ayes, nays, _ = tallies
    share, most = mean(ayes, nays), majority(ayes, nays)
    assert ((share >= 0.5) == (most >= 0.5)).all()
    assert (is_tie(share) == is_tie(most)).all()
    assert (is_tie(most) == (ayes.sum(axis=1) == nays.sum(axis=1))).all()
    assert set(most) <= {0.0, 0.5, 1.0}


# ------------------------------------------------------------------ what it knows of the truth


@pytest.mark.parametrize("abstain", [0.0, 0.3])
def test_rates_and_prior_are_found(abstain):
    on_keep, on_remove = [0.95, 0.8, 0.7, 0.9, 0.85], [0.7, 0.9, 0.85, 0.6, 0.95]
    fitted, _ = fit(dawid_skene, cast_votes(100_000, on_keep, on_remove, 0.7, abstain)[0])
    same(fitted.right_if_keep, on_keep, atol=0.015)
    same(fitted.right_if_remove, on_remove, atol=0.015)
    same(fitted.accuracies, 0.7 * np.array(on_keep) + 0.3 * np.array(on_remove), atol=0.015)
    assert fitted.prior == pytest.approx(0.7, abs=0.015)


def test_the_posterior_is_the_share_of_right_ones():
    votes, truth = cast_votes(200_000, [0.8, 0.7, 0.75], [0.8, 0.7, 0.75], 0.6, 0.3)
    found = patterns_of(votes)
    fitted = one_coin(*tally(found.patterns), found.counts)
    truly = np.bincount(found.inverse, weights=truth) / found.counts
    voted = (found.patterns >= 0).any(axis=1)
    same(fitted.p_keep[voted], truly[voted], atol=0.03)


def test_em_beats_the_majority_where_voters_abstain_and_hardly_where_none_does():
    rates = [0.97, 0.93, 0.90, 0.85, 0.80]

    def gain(abstain):
        votes, truth = cast_votes(100_000, rates, rates, 0.5, abstain)
        by_majority = (majority(*tally(votes)) >= 0.5) == truth
        return ((fit(dawid_skene, votes)[1] >= 0.5) == truth).mean() - by_majority.mean()

    assert 0 <= gain(0.0) < 0.003
    assert gain(0.3) > 0.009


@pytest.mark.parametrize("model", MODELS)
def test_visits_of_one_scorer_are_a_group_with_one_pair_of_coins(model):
    r = np.random.default_rng(0)
    truth = r.random(50_000) < 0.8
    visits = r.integers(1, 60, len(truth))
    ayes = r.binomial(visits, np.where(truth, 0.7, 0.3))
    fitted = model(ayes[:, None], (visits - ayes)[:, None], np.ones(len(truth)))
    same(fitted.accuracies, [0.7], atol=0.01)
    assert fitted.prior == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_few_wrong_voters_are_found_out_and_many_turn_the_result_upside_down(model):
    for wrong, expected in ((2, 0.9), (3, 0.1)):
        rates = np.array([0.1] * wrong + [0.9] * (5 - wrong))
        votes, truth = cast_votes(20_000, rates, rates, 0.5, 0.0)
        fitted, p_keep = fit(model, votes)
        right = ((p_keep >= 0.5) == truth).mean()
        assert right > 0.98 if expected == 0.9 else right < 0.02
        same(fitted.accuracies, rates if expected == 0.9 else 1 - rates, atol=0.02)


# ------------------------------------------------------------------ ties and degenerate input


@pytest.mark.parametrize("model", MODELS)
def test_a_balanced_pattern_is_exactly_a_tie_in_any_order(model):
    votes = np.array([[1, 1, 1], [0, 0, 0], [1, 0, -1], [0, 1, -1], [1, 1, 0], [0, 0, 1]])
    for voters in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        fitted = model(*tally(votes[:, voters]), [7, 7, 3, 3, 2, 2])
        assert is_tie(fitted.p_keep).tolist() == [False, False, True, True, False, False]
        assert fitted.prior == pytest.approx(0.5, abs=1e-9)


@pytest.mark.parametrize("model", MODELS)
def test_without_votes_a_pattern_is_a_tie_and_has_no_say(model):
    votes = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0], [-1, -1, -1]])
    fitted = model(*tally(votes), [5, 20, 3, 1000])
    assert fitted.p_keep[3] == 0.5
    assert fitted.prior < 0.3
    rest = model(*tally(votes[:3]), [5, 20, 3])
    same(fitted.p_keep[:3], rest.p_keep)
    assert fitted.log_likelihood == pytest.approx(rest.log_likelihood)
    assert mean(*tally(votes))[3] == majority(*tally(votes))[3] == 0.5


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("vote", [0, 1])
@pytest.mark.parametrize("voters", [1, 3])
def test_votes_that_are_all_equal_are_believed(model, vote, voters):
    fitted = model(*tally(np.full((1, voters), vote)), [40])
    same(fitted.p_keep, [vote])
    same(fitted.accuracies, [1.0] * voters)
    assert fitted.prior == pytest.approx(vote, abs=1e-9)
    assert -1e-7 < fitted.log_likelihood < 1e-12


@pytest.mark.parametrize("model", MODELS)
def test_a_single_voter_is_believed_where_it_votes(model):
    fitted = model(*tally([[1], [0], [-1]]), [5, 3, 2])
    same(fitted.p_keep, [1, 0, 0.5])
    same(fitted.accuracies, [1])
    assert fitted.prior == pytest.approx(5 / 8)


@pytest.mark.parametrize("model", MODELS)
def test_a_pattern_of_no_sample_is_judged_by_what_the_others_taught(model):
    votes = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]])
    fitted = model(*tally(votes), [50, 40, 5, 0])
    assert fitted.p_keep[3] < 0.01
    same(fitted.p_keep[:3], model(*tally(votes[:3]), [50, 40, 5]).p_keep)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("votes", "counts"),
    [
        (np.full((2, 3), -1), [1, 1]),
        (np.ones((2, 3), int), [0, 0]),
        (np.empty((0, 3), int), []),
        (np.empty((2, 0), int), [1, 1]),
    ],
)
def test_no_votes_at_all_are_refused(model, votes, counts):
    with pytest.raises(DataError, match="got none: all . voters abstain.*Use mean or majority"):
        model(*tally(votes), counts)


@pytest.mark.parametrize("model", MODELS)
def test_out_of_steps_says_so(model):
    votes, _ = cast_votes(500, [0.7, 0.6, 0.8], [0.7, 0.6, 0.8], 0.5, 0.2)
    assert not fit(model, votes, steps=2)[0].converged
    with pytest.raises(DataError, match="expected one EM step or more, got steps=0"):
        fit(model, votes, steps=0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    ("ayes", "nays", "counts", "message"),
    [
        ([1, 0], [0, 1], [1, 1], r"two matrices .* got \(2,\) and \(2,\)"),
        ([[1, 0]], [[0]], [1], r"of one shape, got \(1, 2\) and \(1, 1\)"),
        ([[1, 0]], [[0, -1]], [1], "got -1 among the nays of pattern 0.*tally"),
        ([[1.0], [np.nan]], [[0], [0]], [1, 1], "got nan among the ayes of pattern 1"),
        ([[1]], [[0]], [1, 1], r"for each of 1 patterns, got shape \(2,\) from 1 to 1"),
        ([[1]], [[0]], [-2], "from -2 to -2.*patterns_of"),
        ([[1]], [[0]], [np.inf], "from inf to inf"),
        ([[1]], [[0]], [], r"got shape \(0,\)\. Pass"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(model, ayes, nays, counts, message):
    with pytest.raises(DataError, match=message):
        model(ayes, nays, counts)
