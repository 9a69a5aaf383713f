import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from gradmimic.curate import select
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
        "kept: 3 of 3 visits voted to keep",
        "removed: 1 of 3 visits voted to keep",
        "kept: 1 of 2 visits voted to keep, a tie",
        "removed: 0 of 2 visits voted to keep",
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
@pytest.mark.parametrize("aggregate", ["mean", "majority"])
@pytest.mark.parametrize("scores", [[[0.7] * 4], [[0.1] * 4, [0.1] * 4], [[0.3]]])
def test_equal_scores_and_single_samples_are_kept(rule, aggregate, scores):
    selection = select(visits(scores), rule, aggregate=aggregate)
    assert all(column(selection, "keep"))
    assert set(column(selection, "p_clean")) == {1.0}
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
    with pytest.raises(LogError, match="has columns of other types than a score log"):
        select(visits([[1.0, 0.0]], epoch=["first", "first"]))


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
