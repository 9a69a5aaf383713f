"""What the pages of several tasks share, from a log: canaries, epochs, and what is left unsaid."""

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("altair", reason="needs the extra 'report'")

from gradmimic import ScoreLog, select
from gradmimic.curate import estimate_quality
from gradmimic.run.outcome import scores_by_epoch
from gradmimic.run.shown import score_charts

N, BAD = 300, 90
IDS = np.arange(N) * 7 + 3


@pytest.fixture(scope="module")
def logged(tmp_path_factory):
    """A log of two visits with two kinds of canaries, its scores ``[2, n]`` and the canaries'."""
    rng = np.random.default_rng(0)
    scores = np.where(np.arange(N) < BAD, -1.0, 1.0) + rng.normal(0, 0.3, (2, N))
    uniform, confusable = rng.normal(-1, 0.3, (2, 60)), rng.normal(-0.8, 0.3, (2, 40))
    for own in (scores, uniform, confusable):
        own[1] += 0.5
    with ScoreLog(tmp_path_factory.mktemp("run") / "log") as log:
        for epoch in range(2):
            for ids, own, kind in (
                (IDS, scores[epoch], None),
                (IDS[:60], uniform[epoch], "uniform/10"),
                (IDS[:40], confusable[epoch], "confusable/10"),
            ):
                n = len(ids)
                log.append(
                    ids, own, np.full(n, 1 / n), 2 - own, epoch=epoch, step=epoch,
                    canary=None if kind is None else [kind] * n,
                )  # fmt: skip
    return ScoreLog.read(log.path), scores, uniform


def charts(log, selection, quality, rule="auto", aggregate="mean", **more):
    return score_charts(
        selection, log, quality, rule=rule, aggregate=aggregate, canaries_are="wrong", **more
    )


def test_the_histogram_takes_the_plainest_canaries_and_the_selection_s_scores(logged):
    log, scores, uniform = logged
    selection = select(log)
    quality = estimate_quality(log).as_dict()
    histogram, visits = charts(log, selection, quality)
    canaries = np.array([int(row[3]) for row in histogram.rows])
    assert canaries.sum() == 60  # one for each of the 60, not for its two visits
    low, high = (
        np.array([float(row[at].replace("−", "-")) for row in histogram.rows]) for at in (0, 1)
    )
    mean = np.sort(uniform.mean(0))
    at = int(np.argmax(canaries))  # bounds are printed with three digits
    assert ((mean >= low[at] - 0.01) & (mean <= high[at] + 0.01)).sum() >= canaries[at]
    moved = histogram.thresholds
    assert moved.own
    assert moved.removed[moved.start] == len(selection.removed)
    assert 80 < len(selection.removed) < 100
    own = selection.table["score"].to_numpy()
    np.testing.assert_allclose(own, scores.mean(0), rtol=1e-5)
    assert (own < moved.at[moved.start]).sum() == len(selection.removed)
    assert moved.selects
    p_bad = 1 - selection.table["p_clean"].to_numpy()
    assert moved.tallies[0].total == pytest.approx(p_bad.sum(), abs=0.5)
    assert "uniform canaries" in visits.caption
    assert [float(row[1]) for row in visits.rows] == [
        round(area["value"], 3) for area in quality["auroc_by_visit"]
    ]


def test_only_canaries_say_what_to_expect(logged):
    log = logged[0]
    selection, quality = select(log), estimate_quality(log).as_dict()
    for rule, aggregate, known in (
        ("calibrated", "mean", quality),
        ("auto", "stacked", quality),
    ):
        histogram, _ = charts(log, selection, known, rule, aggregate)
        assert [own.what for own in histogram.thresholds.tallies] == ["Expected to be bad"]
    useless = {**quality, "noise_rate": {"value": 0.0, "low": 0.0, "high": 1.0}}
    for rule, aggregate, known in (
        ("mixture", "mean", quality),
        ("auto", "majority", quality),
        ("auto", "mean", None),
        ("auto", "mean", useless),
    ):
        histogram, _ = charts(log, selection, known, rule, aggregate)
        assert histogram.thresholds.tallies == []


def test_other_scores_are_no_threshold_of_the_selection(logged):
    log, scores, _ = logged
    selection = select(log)
    histogram, visits = charts(log, selection, None, other_scores=-scores.mean(0), noun="pairs")
    assert not histogram.thresholds.own
    assert not histogram.thresholds.selects
    assert "of 300 pairs" in histogram.summary
    assert visits is None


def test_a_run_that_keeps_all_begins_at_the_lowest_score(logged):
    log = logged[0]
    everything = select(log).above(-10.0)
    histogram, _ = charts(log, everything, None)
    moved = histogram.thresholds
    assert (moved.start, moved.removed[0], moved.own) == (0, 0, True)


def test_scores_of_each_epoch_stand_in_the_selection_s_order(logged):
    log, scores, _ = logged
    selection = select(log)
    found = scores_by_epoch(log, selection.table["sample_id"])
    assert list(found) == [0, 1]
    for epoch in range(2):
        np.testing.assert_allclose(found[epoch], scores[epoch], rtol=1e-6)
    some = type(selection)(selection.table.filter(pa.array(np.arange(N) % 2 == 0)))
    np.testing.assert_allclose(
        scores_by_epoch(log, some.table["sample_id"])[1], scores[1][::2], rtol=1e-6
    )
