import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from stage2_logs import logged

from gradmimic.curate import Selection, label_model, select
from gradmimic.errors import ConfigError, LogError
from gradmimic.log import ScoreLog


def visits(scores, ids=None, **columns):
    """One batch per epoch; scores [epochs, n], NaN where a sample was not visited."""
    scores = np.atleast_2d(np.asarray(scores, dtype=float))
    epoch, position = np.nonzero(~np.isnan(scores))
    ids = np.arange(scores.shape[1]) if ids is None else np.asarray(ids)
    exponent = np.where(np.isnan(scores), 0.0, np.exp(scores))
    size = (~np.isnan(scores)).sum(axis=1)
    table = {
        "sample_id": ids[position],
        "epoch": epoch,
        "step": epoch,
        "scorer": ["mimic"] * len(epoch),
        "score": scores[epoch, position],
        "weight": (exponent / exponent.sum(axis=1, keepdims=True))[epoch, position],
        "batch_size": size[epoch],
        "canary": pa.nulls(len(epoch), pa.string()),
    }
    return pa.table(table | columns)


def column(selection, name):
    return selection.table[name].to_pylist()


N = np.nan


def test_mean_of_the_relative_weight():
    selection = select(visits([[2.0, 0.0, 1.0], [0.0, 2.0, 1.0]]), "one_over_b")
    assert column(selection, "keep") == [True, True, False]
    assert column(selection, "score") == [1.0, 1.0, 1.0]
    assert column(selection, "p_clean") == [1.0, 1.0, 0.0]
    assert column(selection, "reason")[2] == (
        "removed: the mean relative weight is below the uniform share 1"
    )


def test_majority_counts_the_visits_made_and_keeps_a_tie():
    scores = [[3.0, 0.0, 3.0, 0.0], [3.0, 0.0, 0.0, N], [3.0, 3.0, N, 0.0]]
    selection = select(visits(scores), "one_over_b", aggregate="majority")
    assert column(selection, "keep") == [True, False, True, False]
    assert column(selection, "p_clean") == [1.0, pytest.approx(1 / 3), 0.5, 0.0]
    assert column(selection, "visits") == [3, 3, 2, 2]
    assert column(selection, "reason") == [
        "kept: 3 of 3 visits voted to keep by the uniform share",
        "removed: 1 of 3 visits voted to keep by the uniform share",
        "kept: 1 of 2 visits voted to keep by the uniform share, a tie",
        "removed: 0 of 2 visits voted to keep by the uniform share",
    ]


@pytest.mark.parametrize("rule", ["two_means", "mixture"])
def test_majority_fits_each_epoch_by_itself(rule):
    # Scores fall from epoch to epoch: one boundary for all would judge by the epoch.
    scores = np.array([[1.0, 1.1, 0.0, 0.1]]) + np.array([[20.0], [10.0], [0.0]])
    selection = select(visits(scores), rule, aggregate="majority")
    assert column(selection, "p_clean") == [1.0, 1.0, 0.0, 0.0]
    assert column(selection, "keep") == [True, True, False, False]


def test_mean_of_the_score_with_two_means():
    selection = select(visits([[1.0, 0.0, 0.9], [N, 0.2, 1.1]]), "two_means")
    assert column(selection, "reason") == [
        "kept: the mean score is not below the two-means boundary 1",
        "removed: the mean score is below the two-means boundary 1",
        "kept: the mean score is not below the two-means boundary 1",
    ]
    assert column(selection, "visits") == [1, 2, 2]


def test_the_default_finds_the_noise_that_the_uniform_share_overstates():
    rng = np.random.default_rng(0)
    bad = np.arange(500) < 50
    scores = rng.normal(np.where(bad, -2.0, 2.0), 1.0, size=(3, 500))
    selection = select(visits(scores))
    assert (selection.mask() == ~bad).mean() > 0.99
    p_clean = np.array(column(selection, "p_clean"))
    assert ((p_clean >= 0.5) == selection.mask()).all()
    assert ((p_clean > 0) & (p_clean < 1)).any()
    overstated = select(visits(scores), "one_over_b", aggregate="majority")
    assert len(overstated.removed) > 150


@pytest.mark.parametrize("rule", ["one_over_b", "two_means", "mixture"])
@pytest.mark.parametrize("aggregate", ["mean", "majority", "one_coin", "dawid_skene"])
@pytest.mark.parametrize("scores", [[[0.7] * 4], [[0.1] * 4, [0.1] * 4], [[0.3]]])
def test_equal_scores_and_single_samples_are_kept(rule, aggregate, scores):
    selection = select(visits(scores), rule, aggregate=aggregate)
    assert all(column(selection, "keep"))
    np.testing.assert_allclose(column(selection, "p_clean"), 1.0, atol=1e-9)
    if rule != "one_over_b":
        assert "do not form two groups, so nothing speaks against" in column(selection, "reason")[0]


def test_canaries_and_other_scorers_are_left_out():
    table = visits([[1.0, 0.0, 1.1, 0.1]])
    canaries = visits([[-9.0, -9.0]], ids=[4, 5], canary=["uniform", "uniform"])
    other = visits([[0.0, 1.0, 0.0, 1.0]], scorer=["loss"] * 4)
    mixed = pa.concat_tables([table, canaries, other])
    assert select(mixed, "two_means").kept.tolist() == [0, 2]
    assert select(mixed, "two_means", scorer="loss").kept.tolist() == [1, 3]
    with pytest.raises(LogError, match="the table holds only canaries for scorer 'mimic'"):
        select(canaries)


def test_logs_paths_and_tables_give_the_same(tmp_path):
    rng = np.random.default_rng(0)
    ids = np.array([f"img-{i:02}" for i in range(20)])
    with ScoreLog(tmp_path, rows_per_part=8) as log:
        for epoch in range(2):
            for batch in np.split(rng.permutation(20), 5):
                scores = np.where(batch < 5, -1.0, 1.0) + 0.1 * rng.normal(size=4)
                weights = np.exp(scores) / np.exp(scores).sum()
                step = len(log.scan()) // 4
                log.append(ids[batch], scores, weights, -scores, epoch=epoch, step=step)
        of_log = select(log)
    assert of_log.removed.tolist() == ids[:5].tolist()
    for same in (tmp_path, str(tmp_path), ScoreLog.read(tmp_path), log.scan()):
        assert select(same).table.equals(of_log.table)
    first = select(log.scan(filter=pc.field("epoch") == 0))
    assert set(column(first, "visits")) == {1}
    assert set(column(of_log, "visits")) == {2}


def test_repeated_visits_are_refused():
    table = pa.concat_tables([visits([[1.0, 0.0, 1.1]]), visits([[1.0]], step=[7])])
    with pytest.raises(
        LogError,
        match=r"1 times in all: 0 in epoch 0 at steps \[0, 7\]\. .* pass only the rows that count",
    ):
        select(table)


def test_the_same_sample_in_another_epoch_or_of_another_scorer_is_no_repetition():
    other = visits([[0.0, 1.0, 0.1]], scorer=["loss"] * 3)
    select(pa.concat_tables([visits([[1.0, 0.0, 1.1]] * 2), other]))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value):
    table = visits([[1.0, 0.0, 1.1]], score=[1.0, value, 1.0])
    with pytest.raises(
        LogError, match="1 rows have a score that is not finite, the first is sample 1 in"
    ):
        select(table)
    table = visits([[1.0, 0.0, 1.1]], weight=[1.0, value, 1.0])
    with pytest.raises(
        LogError, match="a weight that is not finite, the first is sample 1 in epoch 0"
    ):
        select(table, "one_over_b")
    assert len(select(table, "mixture")) == 3  # which does not look at weights


def test_unknown_choices_name_those_there_are():
    table = visits([[1.0, 0.0, 1.1]])
    with pytest.raises(ConfigError, match=r"no rule 'gmm'; choose one of \['calibrated', 'one_o"):
        select(table, "gmm")
    with pytest.raises(
        ConfigError, match=r"no aggregate 'max'; choose one of \['mean', 'majority'"
    ):
        select(table, aggregate="max")
    with pytest.raises(LogError, match=r"the table has no scorer 'el2n'; it has \['mimic'\]"):
        select(table, scorer="el2n")


def test_what_is_no_log_is_refused(tmp_path):
    with pytest.raises(LogError, match="is not a score log"):
        select(tmp_path)
    ScoreLog(tmp_path / "log").close()
    with pytest.raises(LogError, match=r"log is empty. Train with this log first, then select"):
        select(tmp_path / "log")
    table = visits([[1.0, 0.0, 1.1]])
    with pytest.raises(LogError, match=r"the table lacks the columns \['canary'\]"):
        select(table.drop_columns("canary"))
    with pytest.raises(LogError, match=r"the table has null values in \['score'\]"):
        select(visits([[1.0, 0.0]], score=pa.array([1.0, None])))
    for wrong in ({"epoch": ["first"] * 2}, {"sample_id": [0.5, 1.5]}, {"canary": [False] * 2}):
        with pytest.raises(LogError, match="has columns of other types than a score log"):
            select(visits([[1.0, 0.0]], **wrong))
    coded = visits([[1.0, 0.0, 1.1]], ids=["b", "a", "c"])
    coded = coded.set_column(0, "sample_id", coded["sample_id"].dictionary_encode())
    assert select(coded, "two_means").kept.tolist() == ["b", "c"]
    too_large = visits([[1.0, 0.0]], sample_id=pa.array([1, 2**63], pa.uint64()))
    with pytest.raises(LogError, match="other types than a score log: .* not in range"):
        select(too_large)


def test_visits_are_told_apart_by_step_where_the_epoch_is_not_known(tmp_path):
    batches = [(["b", "a"], 0), (["c"], 1), (["a", "c"], 2), (["b"], 3), (["a"], 4)]
    scores = {"a": 1.0, "b": -1.0, "c": 1.1}
    with ScoreLog(tmp_path) as log:
        for ids, step in batches:
            values = [scores[i] for i in ids]
            log.append(ids, values, [0.5] * len(ids), [0.0] * len(ids), epoch=None, step=step)
        assert log.scan()["epoch"].null_count == 7
        for aggregate in ("mean", "majority"):
            selection = select(log, "two_means", aggregate=aggregate)
            assert selection.table["visits"].to_pylist() == [3, 2, 2]
        assert select(log, "two_means").kept.tolist() == ["a", "c"]
        again = log.scan().slice(0, 2)
        twice = pa.concat_tables([log.scan(), again])
        with pytest.raises(LogError, match=r"visited more than once.*steps \[0, 0\]"):
            select(twice)


def with_canaries(n=600, epochs=3, seed=0):
    """Every fifth sample is bad, and canaries score as these do."""
    rng = np.random.default_rng(seed)
    bad = np.arange(n) % 5 == 0
    real = visits(rng.normal(np.where(bad, -1.5, 1.5), 1.0, size=(epochs, n)))
    marked = visits(rng.normal(-1.5, 1.0, size=(epochs, n // 3)))
    marked = marked.set_column(7, "canary", pa.array(["swapped"] * len(marked)))
    log = pa.concat_tables([real, marked])
    return log.append_column("loss", pa.array(-log["score"].to_numpy())), bad


@pytest.mark.parametrize("aggregate", ["mean", "majority"])
def test_canaries_decide_where_the_log_has_them(aggregate):
    log, bad = with_canaries()
    selection = select(log, aggregate=aggregate)
    assert selection.table.equals(select(log, "calibrated", aggregate=aggregate).table)
    assert len(selection) == len(bad)
    assert (selection.mask() == ~bad).mean() > 0.95
    assert set(column(selection, "visits")) == {3}
    if aggregate == "mean":
        assert "is below the canaries' threshold" in column(selection, "reason")[0]
        p_clean = np.array(column(selection, "p_clean"))
        assert (1 - p_clean).mean() == pytest.approx(0.2, abs=0.04)


def test_without_canaries_the_mixture_decides_and_the_reasons_say_so():
    log, _ = with_canaries()
    real = log.filter(pc.is_null(log["canary"]))
    selection = select(real)
    assert selection.table.equals(select(real, "mixture").table)
    scores, keep = np.array(column(selection, "score")), np.array(column(selection, "keep"))
    boundary = f"{scores[keep].min():.4g}"
    assert set(column(selection, "reason")) == {
        f"kept: the mean score is not below the mixture's boundary {boundary}",
        f"removed: the mean score is below the mixture's boundary {boundary}",
    }
    with pytest.raises(
        ConfigError,
        match="rule='calibrated' learns from canaries, but the table has none of scorer 'mimic'. "
        "Score canaries while training, as gradmimic run does, or choose rule='mixture'",
    ):
        select(real, "calibrated")


def test_a_visit_without_canaries_can_not_be_calibrated_by_itself():
    log, bad = with_canaries()
    last = pc.and_(pc.is_valid(log["canary"]), pc.equal(log["epoch"], 2))
    log = log.filter(pc.invert(last))
    assert "canaries' threshold" in column(select(log), "reason")[0]  # the mean over the visits can
    assert (select(log).mask() == ~bad).mean() > 0.95
    with pytest.raises(ConfigError, match="has none of scorer 'mimic' in epoch 2. Score canaries"):
        select(log, "calibrated", aggregate="majority")
    assert len(select(log, aggregate="majority")) == len(bad)  # by the mixture
    with pytest.raises(LogError, match="the table lacks the column loss.*or choose rule='mixture'"):
        select(log.drop_columns("loss"))


def test_canaries_that_score_no_lower_speak_against_nobody():
    log, _ = with_canaries()
    score = np.where(log["canary"].is_valid().to_numpy(), 9.0, log["score"].to_numpy())
    selection = select(log.set_column(4, "score", pa.array(score)))
    assert all(column(selection, "keep"))
    [reason] = set(column(selection, "reason"))
    assert reason == (
        "kept: the mean scores are no higher than the canaries', so nothing speaks against this "
        "sample"
    )


def test_several_scorers_vote_together():
    scores = np.array([[1.0, 0.0, 1.1, 0.1, 1.2], [0.9, 0.1, N, 0.0, 1.0]])
    other = np.array([[1.0, 1.1, 0.0, 0.1, 1.2]])
    table = pa.concat_tables([visits(scores), visits(other, scorer=["loss"] * 5)])
    selection = select(table, "two_means", aggregate="majority", scorer=["mimic", "loss"])
    assert column(selection, "p_clean") == [1.0, pytest.approx(1 / 3), 0.5, 0.0, 1.0]
    assert column(selection, "reason")[1:3] == [
        "removed: 1 of 3 votes were to keep, scores by the two-means boundary",
        "kept: 1 of 2 votes were to keep, scores by the two-means boundary, a tie",
    ]
    assert column(selection, "score")[:2] == [pytest.approx(0.95), pytest.approx(0.05)]
    with pytest.raises(ConfigError, match="aggregate='mean' judges one scorer's scores, but there"):
        select(table, scorer=["mimic", "loss"])
    with pytest.raises(ConfigError, match="expected a scorer's name or several, got none"):
        select(table, aggregate="majority", scorer=[])
    only_loss = pa.concat_tables([table, visits([[0.5]], ids=[9], scorer=["loss"], epoch=[1])])
    more = select(only_loss, "two_means", aggregate="majority", scorer=["mimic", "loss"])
    assert column(more, "score")[5] is None  # never scored by the first one


def test_a_selection_from_elsewhere_is_one_more_voter(tmp_path):
    table = visits([[1.0, 0.0, 1.1, 0.1], [1.0, 0.0, 0.1, 0.0]])
    clip = Selection.from_scores([1, 2, 7], [0.9, -0.9, 0.5]).above(0.0)  # keeps 1, removes 2
    selection = select(table, "two_means", aggregate="majority", voters={"clip": clip})
    assert column(selection, "p_clean") == [1.0, pytest.approx(1 / 3), pytest.approx(1 / 3), 0.0]
    assert column(selection, "visits") == [2, 2, 2, 2]
    assert (
        column(selection, "reason")[1]
        == "removed: 1 of 3 votes were to keep, scores by the two-means boundary"
    )
    clip.to_parquet(tmp_path / "clip.parquet")
    read = Selection.from_parquet(tmp_path / "clip.parquet")
    for aggregate in ("majority", "one_coin"):
        several = {"clip": clip, "again": read}
        votes = np.array([[1, 1, -1, -1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, -1, -1]])
        found = select(table, "two_means", aggregate=aggregate, voters=several)
        ayes, cast = (votes == 1).astype(int), (votes >= 0).astype(int)
        expected = (
            label_model.mean(ayes, cast - ayes) if aggregate == "majority"
            else label_model.one_coin(ayes, cast - ayes, np.ones(4)).p_keep
        )  # fmt: skip
        np.testing.assert_allclose(column(found, "p_clean"), expected, atol=1e-12)
    with pytest.raises(
        ConfigError, match="voter 'clip' has string sample ids, but the table has int"
    ):
        other = Selection.from_scores(["a", "b"], [0.1, 0.2])
        select(table, aggregate="majority", voters={"clip": other})
    with pytest.raises(
        ConfigError, match="there are 1 scorers and 1 other voters. Choose 'majority'"
    ):
        select(table, voters={"clip": clip})


def test_label_models_weigh_voters_and_say_so():
    rng = np.random.default_rng(0)
    bad = rng.random(400) < 0.4
    sharp = [np.where(bad, -1.0, 1.0) + rng.normal(size=400) * 0.3 for _ in range(2)]
    blunt = [rng.normal(size=400) for _ in range(3)]  # knows nothing
    table = visits(np.array(sharp + blunt))
    counted = select(table, "two_means", aggregate="majority")
    weighed = select(table, "two_means", aggregate="dawid_skene")
    assert (weighed.mask() == ~bad).mean() > 0.98 > (counted.mask() == ~bad).mean()
    reasons = set(column(weighed, "reason"))
    assert (
        "kept: 2 of 5 visits voted to keep by the two-means boundary, weighed by accuracy"
        in reasons
    )
    assert (
        "removed: 3 of 5 visits voted to keep by the two-means boundary, weighed by accuracy"
        in reasons
    )


def test_out_writes_a_sorted_file_that_is_read_when_needed(tmp_path):
    log = logged(n=500, ids="hex")
    out = tmp_path / 'it\'s; a "selection".parquet'
    selection = select(log, out=out)
    assert selection.table.equals(select(log).table)
    assert list(tmp_path.iterdir()) == [out]
    assert Selection.from_parquet(out).summary() == selection.summary()


def test_the_query_engine_loads_when_it_is_needed():
    code = (
        "import json, sys; from gradmimic import select; from gradmimic.curate import *\n"
        "print(json.dumps(sorted({'ibis', 'duckdb', 'pandas', 'pyspark'} & set(sys.modules))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(done.stdout) == []
