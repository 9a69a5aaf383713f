"""Detection figures are those that one would take by hand from the log."""

import numpy as np
import pyarrow.compute as pc
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from gradmimic import select
from gradmimic.curate.canaries import Calibration, Estimate
from gradmimic.log import ScoreLog
from gradmimic.reproduce.choice import canary_areas, chosen
from gradmimic.reproduce.detection import AGGREGATES, RULES, gaps, judged, report
from gradmimic.reproduce.means import mean_scores

NAMES = ["mimic", "loss", "chance"]
N, BAD, SERVING = 600, 150, 120


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    """Two visits by three scorers: one that knows much, one that knows less, one that guesses."""
    folder = tmp_path_factory.mktemp("log")
    chance = np.random.default_rng(0)
    with ScoreLog(folder) as log:
        for epoch in range(2):
            for name, knows in zip(NAMES, (2.0, 1.0, 0.0), strict=True):
                for kind, ids in ((None, range(N)), ("uniform/10", range(N - SERVING, N))):
                    bad = np.array([kind is not None or i < BAD for i in ids])
                    scores = chance.normal(size=len(ids)) + np.where(bad, -knows, knows)
                    # rows of one call share a batch: weights above 1/b where scores are positive
                    weights = np.where(scores > 0, 2.0, 0.5) / len(ids) * (kind is None)
                    log.append(
                        list(ids), scores, weights, -scores, epoch=epoch, step=epoch, scorer=name,
                        canary=None if kind is None else [kind] * len(ids),
                    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def found(log):
    return judged(log, NAMES, wrong())


def wrong():
    return np.arange(N) < BAD


def by_hand(log, name, canary=None):
    rows = ScoreLog.read(log).scan()
    of_kind = pc.is_null(rows["canary"]) if canary is None else pc.equal(rows["canary"], canary)
    rows = rows.filter(pc.and_(of_kind, pc.equal(rows["scorer"], name)))
    means = rows.group_by("sample_id").aggregate([("score", "mean")]).sort_by("sample_id")
    return means["score_mean"].to_numpy()


def of_first_visit(log, name, canary):
    rows = ScoreLog.read(log).scan()
    of_kind = pc.is_null(rows["canary"]) if canary is None else pc.equal(rows["canary"], canary)
    first = pc.and_(pc.equal(rows["epoch"], 0), pc.equal(rows["scorer"], name))
    return rows.filter(pc.and_(of_kind, first))["score"].to_numpy()


def test_means_are_those_of_the_log(log):
    means = mean_scores(log, NAMES)
    for name in NAMES:
        assert means.of(name) == pytest.approx(by_hand(log, name), abs=1e-6)
    drawn = np.column_stack([by_hand(log, name, "uniform/10") for name in NAMES])
    assert means.canaries == pytest.approx(drawn, abs=1e-6)
    assert means.of("stacked") == pytest.approx(means.stack(means.scores))


def test_every_figure_agrees_with_scikit_learn_and_with_select(log, found):
    assert found["noise"] == BAD / N
    means = mean_scores(log, NAMES)
    for name in (*NAMES, "stacked"):
        own, scores = found["scorers"][name], means.of(name)
        assert own["auroc"] == pytest.approx(roc_auc_score(~wrong(), scores))
        assert own["average_precision"] == pytest.approx(average_precision_score(wrong(), -scores))
        canary = (
            by_hand(log, name, "uniform/10") if name != "stacked" else means.stack(means.canaries)
        )
        against = np.r_[np.ones(N), np.zeros(SERVING)], np.r_[scores, canary]
        assert own["canary_auroc"] == pytest.approx(roc_auc_score(*against), abs=2e-3)  # by bins
        by_name = [
            np.column_stack([of_first_visit(log, each, kind) for each in NAMES])
            for kind in (None, "uniform/10")
        ]
        if name == "stacked":
            real, drawn = (means.stack(scores) for scores in by_name)
        else:
            real, drawn = (scores[:, NAMES.index(name)] for scores in by_name)
        first = roc_auc_score(np.r_[np.ones(N), np.zeros(SERVING)], np.r_[real, drawn])
        assert own["first_canary_auroc"] == pytest.approx(first)
    removed = ~select(log, "mixture", scorer="loss").mask()
    both = (removed & wrong()).sum()
    f1 = 2 * both / (removed.sum() + wrong().sum())
    assert found["scorers"]["loss"]["f1"]["mixture"] == pytest.approx(f1)
    assert set(found["votes"]) == set(RULES)
    assert all(set(own) == set(AGGREGATES) for own in found["votes"].values())
    assert found["votes"]["mixture"]["mean"] == found["scorers"]["mimic"]["f1"]["mixture"]
    assert found["scorers"]["mimic"]["auroc"] > found["scorers"]["loss"]["auroc"] > 0.8
    assert found["scorers"]["chance"]["auroc"] == pytest.approx(0.5, abs=0.06)


def test_gaps_are_to_the_best_in_hindsight(found):
    areas = {name: own["auroc"] for name, own in found["scorers"].items()}
    gap = gaps(found)
    assert gap["chosen"] == pytest.approx(max(areas.values()) - areas[found["chosen"]])
    assert gap["stacked"] == pytest.approx(max(areas.values()) - areas["stacked"])
    assert min(gap.values()) >= 0


def area(value, half=0.01):
    return Estimate(value, value - half, value + half)


def test_who_knows_samples_by_heart_does_not_win_by_a_hair():
    areas = {"loss": area(0.66), "reference_loss": area(0.655), "stacked": area(0.659)}
    first = {"loss": area(0.57), "reference_loss": area(0.658), "stacked": area(0.64)}
    assert chosen(areas, first) == "reference_loss"
    assert chosen({**areas, "loss": area(0.70)}, first) == "loss"  # surely better
    assert chosen({**areas, "stacked": area(0.70)}, first) == "stacked"
    assert chosen(areas, first, left_out=["reference_loss"]) == "stacked"
    assert chosen(areas, {**first, "stacked": area(0.655)}) == "stacked"  # alike twice


def test_kinds_of_canaries_count_as_the_errors_are():
    def told(uniform, confusable, share):
        by_kind = {"uniform/10": area(uniform), "confusable/10": area(confusable, half=0.03)}
        return Calibration(area(0.2), by_kind, [area(0.5)], share, 0, None)

    told_by = {"a": told(0.9, 0.6, 0.2), "b": told(0.8, 0.7, 0.4), "c": told(0.5, 0.5, 0.9)}
    areas, share = canary_areas(told_by, left_out=["c"])
    assert share == pytest.approx(0.3)  # the median of 0.2 and 0.4
    assert areas["a"].value == pytest.approx(0.7 * 0.9 + 0.3 * 0.6)
    assert areas["a"].low == pytest.approx(areas["a"].value - 0.7 * 0.01 - 0.3 * 0.03)
    assert areas["c"].value == pytest.approx(0.5)


def test_the_report_says_what_canaries_chose_and_how_far_from_the_best(found):
    worse = {**found, "chosen": "chance"}
    cells = [{"set": "blobs", "noise": "0.25", "seed": seed} for seed in range(2)]
    shown = report(list(zip(cells, (found, worse), strict=True)))
    gap = gaps(worse)["chosen"]
    within = sum(gaps(values)["chosen"] <= 0.005 for values in (found, worse))
    assert f"in {within} of 2 trainings; the largest gap is {gap:.4f}" in shown.told[0]
    assert f"canaries chose {found['chosen']} (1), chance (1)" in shown.told[1]
    tables = {table.title: table for table in shown.tables}
    (by_noise,) = tables["AUROC: blobs"].rows["loss",]
    assert by_noise.value == pytest.approx(found["scorers"]["loss"]["auroc"])
    (f1,) = tables["F1 of mimic's scores by rule and aggregate: blobs"].rows["mixture", "majority"]
    assert f1.value == pytest.approx(found["votes"]["mixture"]["majority"])
    drawn = shown.charts["auroc"].to_dict()["data"]["values"]
    points = tables["AUROC: blobs"].points()
    assert [(p["name"], p["x"]) for p in drawn] == [(p["scorer"], p["value"]) for p in points]
