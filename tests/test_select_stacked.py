"""Several scorers of one log become one score: as on arrays, and no worse than the best of them."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from gradmimic.curate import estimate_quality, select, stacked
from gradmimic.curate.canaries import Estimate
from gradmimic.curate.stack import stack
from gradmimic.errors import ConfigError
from gradmimic.separation import auroc


def pairs(apart, *, n=1200, noise=0.3, rate=0.4, epochs=1, seed=0, missing=0.0):
    """A log of pairs with swapped canaries; returns it, and which samples are bad.

    Scorer j sets good and bad ``apart[j]`` apart; canaries score as bad ones do.
    """
    chance = np.random.default_rng(seed)
    bad = chance.random(n) < noise
    served = np.flatnonzero(chance.random(n) < rate)
    ids = np.array([f"{i:032x}" for i in chance.permutation(n)])
    tables = []
    for name, distance in apart.items():
        for epoch in range(epochs):
            seen = np.flatnonzero(chance.random(n) >= missing)
            rows, low = np.r_[seen, served], np.r_[bad[seen], np.ones(len(served), bool)]
            scores = np.float32(np.where(low, 0.0, distance) + chance.normal(size=len(rows)))
            kinds = [None] * len(seen) + ["swapped"] * len(served)
            tables.append(
                pa.table(
                    {
                        "sample_id": ids[rows],
                        "epoch": np.full(len(rows), epoch, np.int32),
                        "step": np.full(len(rows), epoch, np.int64),
                        "scorer": [name] * len(rows),
                        "score": scores,
                        "weight": np.full(len(rows), 1 / len(rows), np.float32),
                        "loss": -scores,
                        "batch_size": np.full(len(rows), len(rows), np.int32),
                        "canary": pa.array(kinds, pa.string()),
                    }
                )
            )
    return pa.concat_tables(tables), dict(zip(ids.tolist(), bad.tolist(), strict=True))


def area(selection, bad):
    table = selection.table
    return auroc(table["score"].to_numpy(), [bad[i] for i in table["sample_id"].to_pylist()])


def f1(selection, bad):
    removed = set(selection.removed.tolist())
    hit = sum(bad[i] for i in removed)
    return 2 * hit / (len(removed) + sum(bad.values()))


@pytest.mark.parametrize(
    "apart",
    [
        {"mimic": 1.0, "clip": 1.0, "loss": 1.0},
        {"mimic": 2.0, "clip": 0.0, "loss": 0.2},
        {"mimic": 1.5, "clip": -1.5},
    ],
    ids=["all weak", "one good", "one inverted"],
)
def test_the_combination_is_at_least_as_good_as_the_best(apart):
    log, bad = pairs(apart)
    found = select(log, scorer=list(apart), aggregate="stacked")
    alone = {name: select(log, scorer=name) for name in apart}
    best = max(area(own, bad) for own in alone.values())
    assert area(found, bad) > best - 0.005
    assert f1(found, bad) >= max(f1(own, bad) for own in alone.values()) - 0.03
    if min(apart.values()) == 1.0:
        assert area(found, bad) > best + 0.05
        assert f1(found, bad) > max(f1(own, bad) for own in alone.values()) + 0.05
        assert found.notes[0].startswith("Combined ")
        assert "the combined score is below the canaries' threshold" in "".join(found.reasons())
    elif min(apart.values()) < 0:
        assert found.notes[0].startswith("Chose mimic: canary AUROC ")
        chosen, own = found.table["score"].to_numpy(), alone["mimic"].table["score"].to_numpy()
        np.testing.assert_array_equal(chosen, own)


def test_the_plan_computes_what_arrays_do():
    log, _ = pairs({"mimic": 1.0, "clip": 1.0}, epochs=3, missing=0.2)
    found = select(log, "mixture", scorer=["mimic", "clip"], aggregate="stacked")

    def means(canary):
        kept = log.filter(
            pa.array([(kind is None) != canary for kind in log["canary"].to_pylist()])
        )
        rows: dict = {}
        for row in kept.to_pylist():
            own = rows.setdefault(row["sample_id"], {"mimic": [], "clip": []})
            own[row["scorer"]].append(row["score"])
        return np.array(
            [[np.mean(own[s]) if own[s] else np.nan for s in ("mimic", "clip")]
             for _, own in sorted(rows.items())]
        )  # fmt: skip

    expected = stack(means(False), means(True), ["mimic", "clip"])
    assert expected.chosen is None
    assert np.isnan(means(False)).any()
    np.testing.assert_allclose(found.table["score"].to_numpy(), expected(means(False)), rtol=1e-9)
    assert found.notes == (f"C{expected.why[1:]}.",)


def test_more_samples_than_are_learned_from(monkeypatch):
    from gradmimic.curate import stacked

    log, bad = pairs({"mimic": 1.0, "clip": 1.0})
    before = select(log, scorer=["mimic", "clip"], aggregate="stacked")
    monkeypatch.setattr(stacked, "_MOST", 400)
    found = select(log, scorer=["mimic", "clip"], aggregate="stacked")
    assert len(found) == len(before)
    assert found.notes != before.notes
    assert area(found, bad) == pytest.approx(area(before, bad), abs=0.01)


def test_a_combined_score_can_be_ranked_and_limited():
    log, _ = pairs({"mimic": 1.0, "clip": 1.0})
    names = ["mimic", "clip"]
    found = select(log, scorer=names, aggregate="stacked", drop_bottom={"score": 0.25})
    whole = select(log, "mixture", scorer=names, aggregate="stacked")
    assert set(found.removed) == set(whole.bottom(0.25).kept)
    both = select(
        log, "calibrated", scorer=names, aggregate="stacked", where="clip > 0 and mimic > 0"
    )
    reasons = "".join(both.reasons())
    assert "removed: clip > 0 does not hold" in reasons
    assert "removed: the combined score is below the canaries' threshold" in reasons


def test_what_cannot_be_combined_is_refused():
    log, _ = pairs({"mimic": 1.0, "clip": 1.0})
    with pytest.raises(
        ConfigError, match="combines the scores of two scorers or more, .* are 1 sc"
    ):
        select(log, aggregate="stacked")
    with pytest.raises(ConfigError, match="nor rule='one_over_b'"):
        select(log, "one_over_b", scorer=["mimic", "clip"], aggregate="stacked")
    drawn = np.array([kind is not None for kind in log["canary"].to_pylist()])
    clip = np.array(log["scorer"].to_pylist()) == "clip"
    without = log.filter(pa.array(~(drawn & clip)))
    message = "aggregate='stacked' learns from canaries, but .* none of scorer 'clip'.* one scorer"
    with pytest.raises(ConfigError, match=message):
        select(without, "mixture", scorer=["mimic", "clip"], aggregate="stacked")


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3, 0.5])
@pytest.mark.parametrize("apart", [1.5, 3.0])
def test_swapped_canaries_alone_tell_how_many_pairs_are_bad(noise, apart):
    log, bad = pairs({"mimic": apart}, n=4000, noise=noise)
    quality = estimate_quality(log)
    true = np.mean(list(bad.values()))
    assert quality.calibrated
    assert quality.noise_rate.low - 1e-3 <= true <= quality.noise_rate.high
    assert quality.noise_rate.value == pytest.approx(true, abs=0.06)
    assert quality.auroc.keys() == {"swapped"}
    found = select(log)
    if noise:  # as good as knowing how many to remove, but not which
        assert f1(found, bad) > f1(found.top(1 - true), bad) - 0.03
    else:
        assert len(found.kept) > 0.93 * len(bad)


def test_swapped_canaries_that_tell_nothing_remove_nothing():
    log, _ = pairs({"mimic": 0.0})
    assert len(select(log).removed) == 0
    assert estimate_quality(log).noise_rate == Estimate(0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("share", "uniform", "confusable"), [(0, 40, 0), (0.2, 40, 10), (1, 0, 60)]
)
def test_canaries_are_learned_from_as_there_are_errors_of_their_kind(
    share, uniform, confusable, monkeypatch
):
    log, _ = pairs({"mimic": 1.0, "clip": 1.0}, n=400)
    kinds = log["canary"].to_pylist()
    served = sorted(
        {i for i, kind in zip(log["sample_id"].to_pylist(), kinds, strict=True) if kind}
    )
    # 40 samples serve for uniform canaries, 60 for confusable ones, the others for none
    kind_of = dict.fromkeys(served[:40], "uniform/9") | dict.fromkeys(
        served[40:100], "confusable/9"
    )
    named = [
        kind and kind_of.get(i) for i, kind in zip(log["sample_id"].to_pylist(), kinds, strict=True)
    ]
    kept = [kind is None or name is not None for kind, name in zip(kinds, named, strict=True)]
    place = log.column_names.index("canary")
    log = log.set_column(place, "canary", pa.array(named, pa.string())).filter(pa.array(kept))
    learned = []
    monkeypatch.setattr(stacked, "confusable_share", lambda _seen, _chance: share)
    monkeypatch.setattr(
        stacked, "stack", lambda good, bad, names: learned.append(bad) or stack(good, bad, names)
    )
    select(log, "mixture", scorer=["mimic", "clip"], aggregate="stacked")
    scores = {
        kind: set(log.filter(pc.equal(log["canary"], kind))["score"].to_pylist())
        for kind in ("uniform/9", "confusable/9")
    }
    counts = [sum(row[0] in own for row in learned[0]) for own in scores.values()]
    assert counts == [uniform, confusable]
    select(log.drop_columns("loss"), "mixture", scorer=["mimic", "clip"], aggregate="stacked")
    assert len(learned[1]) == 100  # nothing tells the kinds apart: all of both
