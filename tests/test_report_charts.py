"""The charts' data against counts made another way, and what is drawn of little or odd data."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

pytest.importorskip("altair", reason="needs the extra 'report'")

from gradmimic.curate import Selection
from gradmimic.report.charts.classes import class_chart, confusion_chart
from gradmimic.report.charts.curves import curve_chart, visit_chart
from gradmimic.report.charts.epochs import epoch_chart
from gradmimic.report.charts.histogram import BINS, counts, edges, score_chart
from gradmimic.report.charts.threshold import thresholds
from gradmimic.report.numbers import Interval

RNG = np.random.default_rng(0)
EVIL = "</script><img src=x onerror=alert(1)>"


def rows_of(spec):
    """All rows of a chart's tables."""
    return [row for rows in spec["datasets"].values() for row in rows]


def number(text):
    return float(text.replace("−", "-").replace(",", ""))


# Thresholds


@given(
    arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    st.data(),
)
def test_what_thresholds_remove_is_exact(scores, data):
    p_clean = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(scores), max_size=60)))
    p_clean = np.resize(p_clean, len(scores))
    wrong = p_clean < 0.3
    own = float(data.draw(st.sampled_from(scores.tolist())))
    removed = int((scores < own).sum())
    found = thresholds(scores, own=own, removed=removed, p_clean=p_clean, wrong=wrong)
    assert found.own
    assert found.at[found.start] == own
    assert found.at == sorted(set(found.at))
    assert found.removed[0] == 0
    bad, known = found.tallies
    assert len(found.at) == len(found.removed) == len(bad.below) == len(known.below)
    for place in {*range(0, len(found.at), 37), found.start}:
        lower = [s for s in range(len(scores)) if scores[s] < found.at[place]]
        assert found.removed[place] == len(lower)
        expected = sum(1 - p_clean[s] for s in lower)
        assert bad.below[place] == pytest.approx(expected, abs=0.5 + 1e-6)
        assert known.below[place] == sum(bool(wrong[s]) for s in lower)
    assert known.total == wrong.sum()
    assert bad.total == pytest.approx((1 - p_clean).sum(), abs=0.5 + 1e-6)


def test_a_printed_threshold_selects_the_very_same_samples():
    scores = RNG.normal(0.3, 1e-3, 5000)
    mimic = Selection.from_scores(np.arange(5000), scores)
    found = thresholds(scores, own=float(np.sort(scores)[1234]), removed=1234)
    assert found.removed[found.start] == 1234
    assert 300 < len(found.at) < 900
    for place in range(0, len(found.at), 83):
        kept = mimic.above(float(repr(found.at[place])))
        assert len(kept.removed) == found.removed[place]
    others = [t for t in found.at if t not in {scores.min(), scores.max(), found.at[found.start]}]
    assert max(len(repr(t)) for t in others) < 9


def test_as_many_places_whatever_the_number_of_samples():
    few, many = (
        thresholds(np.random.default_rng(1).normal(size=n), own=None, removed=n // 3)
        for n in (500, 200_000)
    )
    assert len(many.at) < 900
    assert abs(len(few.at) - len(many.at)) < 500
    assert many.removed[many.start] == pytest.approx(200_000 / 3, rel=0.02)
    assert not many.own
    assert len(json.dumps(many.as_dict())) < 40_000


def test_a_threshold_that_equal_scores_share_is_not_the_run_s_own():
    scores = np.array([0.0, 1.0, 1.0, 1.0, 2.0])
    assert thresholds(scores, own=1.0, removed=1).own
    assert not thresholds(scores, own=1.0, removed=2).own


@pytest.mark.parametrize(
    "scores",
    [[1.0], [0.0] * 4, [1e-30, 2e-30], [-1e30, 1e30], [1.0, 1.0 + 2**-52], [0.0, 5e-324]],
)
def test_thresholds_of_little_data(scores):
    found = thresholds(scores, own=scores[-1], removed=int(np.sum(np.array(scores) < scores[-1])))
    for t, count in zip(found.at, found.removed, strict=True):
        assert count == sum(s < t for s in scores)
    assert f"of {len(scores)} samples" in found.said(found.start)


# The histogram


def test_the_histogram_counts_every_sample_once_and_canaries_to_the_same_area():
    scores, canaries = RNG.normal(size=3000) ** 3, RNG.normal(-1, 1, 100)
    bad = scores < -0.5
    drawn = score_chart(scores, canaries, bad=bad)
    rows = rows_of(drawn.spec)
    low, high = np.quantile(np.r_[scores, canaries], [0.002, 0.998])
    for name, own in (("right label", scores[~bad]), ("wrong label", scores[bad])):
        bars = [row for row in rows if row.get("which") == name]
        assert len(bars) == BINS
        assert sum(row["samples"] for row in bars) == len(own)
        for at, row in enumerate(bars[1:-1], 1):
            last = at == BINS - 1
            inside = (own >= row["from"]) & ((own < row["to"]) | (last & (own == row["to"])))
            assert row["samples"] == inside.sum()
        assert bars[0]["from"] < low < bars[0]["to"]
        assert bars[-1]["from"] < high < bars[-1]["to"]
        assert bars[0]["samples"] == (own < bars[0]["to"]).sum()
    outline = [row["height"] for row in rows if "height" in row]
    assert sum(outline) == pytest.approx(len(scores))
    assert len(drawn.rows) == BINS
    assert sum(int(row[4]) for row in drawn.rows) == len(canaries)


def test_the_histogram_shows_the_threshold_and_says_where_it_is_not_the_runs():
    scores = RNG.normal(size=50)
    assert score_chart(scores, scores[:9]).thresholds is None
    own = thresholds(scores, own=float(np.median(scores)), removed=25)
    other = thresholds(scores, own=None, removed=25)
    first, second = (score_chart(scores, np.zeros(0), thresholds=t) for t in (own, other))
    assert first.spec["datasets"]["outline"] == []
    assert first.spec["params"] == [{"name": "threshold", "value": own.at[own.start]}]
    assert "did not decide by a threshold" in second.caption
    assert "did not decide" not in first.caption
    assert "canaries" not in json.dumps(first.spec) + first.caption
    assert "removes" in first.summary


def test_histograms_of_little_data():
    none = np.zeros(0)
    assert score_chart(none, none) is None
    for values in (np.zeros(5), np.array([1.0]), np.full(4, 1e-30), np.array([1e30, 1e30])):
        bounds = edges([values])
        assert (np.diff(bounds) > 0).all()
        assert counts(values, bounds).sum() == len(values)
        assert score_chart(values, none, bad=np.zeros(len(values), bool)) is not None


# Epochs, curves, visits


def test_the_ridges_of_each_epoch():
    scores = {epoch: np.linspace(-1, 1, 50) / (epoch + 1) for epoch in range(20)}
    scores[3] = np.full(50, np.nan)
    flags = np.arange(50) < 20
    plain, marked = epoch_chart(scores), epoch_chart(scores, flags)
    assert {row["which"] for row in rows_of(marked.spec) if "which" in row} == {
        "right label", "wrong label",
    }  # fmt: skip
    assert {row["which"] for row in rows_of(plain.spec) if "which" in row} == {"samples"}
    bases = {row["base"] for row in rows_of(plain.spec) if "base" in row}
    assert bases == {-place for place in range(8)}
    assert "'epoch 0', " in json.dumps(plain.spec)
    assert "'epoch 19'" in json.dumps(plain.spec)
    assert [row[0] for row in plain.rows] == [str(epoch) for epoch in range(20) if epoch != 3]
    for row in plain.rows:
        own = np.quantile(scores[int(row[0])], [0.05, 0.25, 0.5, 0.75, 0.95])
        np.testing.assert_allclose([number(cell) for cell in row[2:]], own, rtol=0.01, atol=1e-9)
    top = max(row["ridge"] - row["base"] for row in rows_of(marked.spec) if "ridge" in row)
    assert top == pytest.approx(1.3)
    assert epoch_chart({}) is None
    assert epoch_chart({0: np.full(3, np.nan)}) is None
    for values in (np.zeros(5), np.array([1.0]), np.array([1.0, np.nan])):
        assert epoch_chart({0: values}, np.zeros(len(values), bool)) is not None


def test_learning_curves_say_their_ends_and_draw_the_reference():
    curves = {"plain": {0: 0.5, 2: 0.75}, "re-weighted": {1: 0.625}, "never": {}}
    drawn = curve_chart(curves, "accuracy", "Higher is better.", 0.7)
    points = [(r["which"], r["epoch"], r["value"]) for r in rows_of(drawn.spec) if "epoch" in r]
    assert points == [("plain", 0, 0.5), ("plain", 2, 0.75), ("re-weighted", 1, 0.625)]
    assert {"value": 0.7, "which": "reference"} in rows_of(drawn.spec)
    cells = [[cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in drawn.rows]
    assert cells == [
        ["0", "50.0 %", "–", "70.0 %"],
        ["1", "–", "62.5 %", "70.0 %"],
        ["2", "75.0 %", "–", "70.0 %"],
    ]
    assert "plain from 50.0" in drawn.summary
    loss = curve_chart({"plain": {0: 2.0}}, "loss", "")
    assert loss.rows == [["0", "2"]]
    assert curve_chart({"plain": {}}, "recall", "") is None


def test_auroc_by_visit():
    areas = [Interval(0.9, 0.85, 0.95), Interval(0.6, 0.4, 0.7)]
    drawn = visit_chart(areas, "uniform")
    rows = [row for row in rows_of(drawn.spec) if "auroc" in row]
    assert rows[:2] == [
        {"visit": at, "auroc": own.value, "low": own.low, "high": own.high}
        for at, own in enumerate(areas)
    ]
    assert drawn.rows == [["0", "0.900", "0.850", "0.950"], ["1", "0.600", "0.400", "0.700"]]
    assert "uniform canaries" in drawn.caption
    assert visit_chart(areas[:1], "uniform") is None


# Classes


def test_classes_are_ordered_by_their_noise_and_the_table_has_all():
    rates = {f"class {at}": Interval(at / 100, at / 200, at / 50) for at in range(40)}
    drawn = class_chart(rates, {"class 39": 0.5})
    rows = [row for row in rows_of(drawn.spec) if "class" in row]
    assert [row["class"] for row in rows[:30]] == [f"class {at}" for at in range(39, 9, -1)]
    assert rows[0] == {"class": "class 39", "value": 0.39, "low": 0.195, "high": 0.78, "known": 0.5}
    assert rows[1]["known"] is None
    assert "The 30 noisiest of 40 classes" in drawn.caption
    assert [row[0] for row in drawn.rows] == [f"class {at}" for at in range(39, -1, -1)]
    assert "highest for class 39" in drawn.summary
    assert class_chart({"one": Interval(0.1, 0, 1)}) is None


@pytest.mark.parametrize("k", [3, 16, 17, 60])
def test_pairs_of_classes_are_counted_among_the_removed(k):
    classes = [f"c{at}{EVIL}" for at in range(k)]
    given_class, suggested = RNG.integers(k, size=(2, 2000))
    removed = RNG.random(2000) < 0.5
    drawn = confusion_chart(classes, given_class, suggested, removed)
    matrix = np.zeros((k, k), int)
    for g, s, gone in zip(given_class, suggested, removed, strict=True):
        matrix[g, s] += gone
    np.fill_diagonal(matrix, 0)
    rows = [row for row in rows_of(drawn.spec) if "given" in row]
    places = {name: at for at, name in enumerate(classes)}
    seen = {(row["given"], row["suggested"]): row["samples"] for row in rows}
    for (g, s), count in seen.items():
        assert matrix[places[g], places[s]] == count
    assert len(seen) == ((matrix > 0).sum() if k <= 16 else min(25, (matrix > 0).sum()))
    assert max(seen.values()) == matrix.max()
    assert f"{matrix.sum():,} would get another label" in drawn.caption
    assert sum(number(row[2]) for row in drawn.rows) == (
        matrix.sum() if (matrix > 0).sum() <= 500 else np.sort(matrix.ravel())[-500:].sum()
    )


def test_without_confusion_there_is_no_chart():
    same = np.array([0, 1, 1])
    assert confusion_chart(["a", "b"], same, same, np.ones(3, bool)) is None
    assert confusion_chart(["a", "b"], same, 1 - same, np.zeros(3, bool)) is None


def test_names_are_data_and_no_part_of_an_expression():
    names = ["');alert(1)//", "datum.x"]
    label = np.array([0, 1])
    for drawn in (
        class_chart({name: Interval(0.1, 0, 0.2) for name in names}),
        confusion_chart(names, label, 1 - label, np.ones(2, bool)),
    ):
        for text in texts_of(drawn.spec, "labelExpr") + texts_of(drawn.spec, "expr"):
            assert not any(name in text for name in names)
        assert texts_of(drawn.spec, "sort") == []


def texts_of(spec, key):
    if isinstance(spec, list):
        return [text for value in spec for text in texts_of(value, key)]
    if not isinstance(spec, dict):
        return []
    own = [json.dumps(spec[key])] if spec.get(key) is not None else []
    return own + [text for value in spec.values() for text in texts_of(value, key)]
