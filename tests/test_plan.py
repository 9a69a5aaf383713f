"""The plan against the obvious way: loops over the visits of each sample."""

import threading
from collections import defaultdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage2_logs import ODD, logged

from gradmimic.curate import label_model, select
from gradmimic.curate.histogram import Histogram, grid_of
from gradmimic.curate.vote_patterns import patterns_of, tally
from gradmimic.curate.votes import RULES
from gradmimic.errors import DataError, LogError
from gradmimic.log import ScoreLog


def slowly(log, rule, relative=False):
    """Every sample's mean, and its votes by epoch: the rules see the values, not bins."""
    columns = log.to_pydict()
    value = np.array(columns["score"])
    if relative:
        value = np.float32(np.array(columns["weight"]) * np.array(columns["batch_size"])) * 1.0
    of_sample, of_epoch = defaultdict(list), defaultdict(list)
    for row, (sample, epoch) in enumerate(zip(columns["sample_id"], columns["epoch"], strict=True)):
        of_sample[sample].append(row)
        of_epoch[epoch].append(row)
    vote = np.zeros(len(value))
    for rows in of_epoch.values():
        vote[rows] = RULES[rule](value[rows]).keep
    ids = sorted(of_sample)
    means = np.array([value[of_sample[sample]].mean() for sample in ids])
    epochs = sorted(of_epoch)
    votes = np.full((len(ids), len(epochs)), -1, np.int8)
    for number, sample in enumerate(ids):
        for row in of_sample[sample]:
            votes[number, epochs.index(columns["epoch"][row])] = vote[row]
    return ids, RULES[rule](means), votes


def rounded(log):
    """Scores two decimals apart, so that no two of them share a bin."""
    at = log.column_names.index("score")
    return log.set_column(at, "score", pa.array(np.round(log["score"].to_numpy().astype(float), 2)))


@pytest.mark.parametrize("rule", ["one_over_b", "two_means", "mixture"])
@pytest.mark.parametrize("ids", ["hex", "int", "odd"])
def test_means_and_votes_are_those_of_the_obvious_way(rule, ids):
    log = rounded(logged(ids=ids))
    known, by_mean, votes = slowly(log, rule, relative=rule == "one_over_b")
    found = select(log, rule).table
    assert found["sample_id"].to_pylist() == known
    assert found["keep"].to_pylist() == by_mean.keep.tolist()
    np.testing.assert_allclose(found["p_clean"].to_numpy(), by_mean.p_keep, atol=2e-4)
    found = select(log, rule, aggregate="majority").table
    ayes, nays = tally(votes)
    share = ayes.sum(axis=1) / (ayes + nays).sum(axis=1)
    assert found["p_clean"].to_pylist() == share.tolist()
    assert found["visits"].to_pylist() == (ayes + nays).sum(axis=1).tolist()
    for name in ("one_coin", "dawid_skene"):
        found = select(log, rule, aggregate=name).table
        pattern = patterns_of(votes)
        fitted = getattr(label_model, name)(*tally(pattern.patterns), pattern.counts)
        np.testing.assert_allclose(
            found["p_clean"].to_numpy(), fitted.p_keep[pattern.inverse], atol=1e-9
        )


def test_more_visits_than_fit_one_integer_are_counted():
    log = rounded(logged(n=40, epochs=70))
    _, _, votes = slowly(log, "two_means")
    ayes, nays = (side.sum(axis=1, keepdims=True) for side in tally(votes))
    found = select(log, "two_means", aggregate="majority").table
    assert found["visits"].to_pylist() == (ayes + nays)[:, 0].tolist()
    assert found["p_clean"].to_pylist() == label_model.mean(ayes, nays).tolist()
    found = select(log, "two_means", aggregate="one_coin").table
    fitted = label_model.one_coin(ayes, nays, np.ones(40))  # the visits as one group
    np.testing.assert_allclose(found["p_clean"].to_numpy(), fitted.p_keep, atol=1e-9)
    again = pa.concat_tables([log, log.slice(3, 1)])
    with pytest.raises(LogError, match="more than once in an epoch, 1 times in all"):
        select(again)


def test_votes_are_counted_by_scorer_where_patterns_are_too_many(monkeypatch):
    log = rounded(logged(n=200, epochs=12, scorers=["a", "b"]))
    one_by_one = select(log, aggregate="one_coin", scorer=["a", "b"])
    monkeypatch.setattr("gradmimic.curate.decide._MOST_CELLS", 100)
    together = select(log, aggregate="one_coin", scorer=["a", "b"])
    assert (together.mask(together.table["sample_id"].to_pylist())
            == one_by_one.mask(together.table["sample_id"].to_pylist())).mean() > 0.98  # fmt: skip


@pytest.mark.parametrize("aggregate", ["mean", "majority", "dawid_skene"])
def test_the_same_log_gives_the_same_to_the_last_bit(aggregate):
    log = logged(n=3000, canaries=True)
    shuffled = log.take(np.random.default_rng(3).permutation(len(log)))
    first = select(log, aggregate=aggregate)
    for again in (log, shuffled):
        assert select(again, aggregate=aggregate).table.equals(first.table)


def test_ids_that_are_not_all_hexadecimal_are_no_less_told_apart():
    lower = "00" * 15 + "ab"
    # The first thousand are looked at, then come others that would be the same 128 bits.
    log = logged(n=1500, epochs=1, ids="hex")
    more = [lower, lower.upper(), f"{{{lower}}}", lower[:-1], "g" * 32, "ünï" * 10 + "xx", ""]
    columns = {name: log[name].to_pylist() for name in log.column_names}
    for position, name in enumerate(more):
        for column, values in columns.items():
            values.append(name if column == "sample_id" else values[position])
    table = pa.table(columns, schema=log.schema)
    found = select(table, "two_means")
    assert found.table["sample_id"].to_pylist() == sorted(columns["sample_id"])
    hexed = select(log, "two_means")
    assert hexed.table["sample_id"].to_pylist() == sorted(log["sample_id"].to_pylist())


def test_ids_and_scorers_are_never_read_as_sql(tmp_path):
    for scorer in ["'; DROP TABLE visits; --", 'a "b" \\', "ü"]:
        log = logged(n=50, scorers=[scorer])
        found = select(log, scorer=scorer)
        assert set(ODD) < set(found.table["sample_id"].to_pylist())
        out = tmp_path / f"{scorer}.parquet".replace("/", "")
        assert select(log, scorer=scorer, out=out).table.equals(found.table)
        assert out.exists()
    named = logged(n=50).append_column('x"; --', pa.array(range(len(logged(n=50)))))
    assert select(named).table.equals(select(logged(n=50)).table)


def write(folder, table):
    with ScoreLog(folder, rows_per_part=100) as log:
        for epoch in sorted(set(table["epoch"].to_pylist())):
            rows = table.filter(pa.compute.equal(table["epoch"], epoch))
            log.append(
                rows["sample_id"].to_pylist(), rows["score"].to_numpy(), rows["weight"].to_numpy(),
                rows["loss"].to_numpy(), epoch=epoch, step=epoch,
            )  # fmt: skip
    return log


def test_a_log_that_is_still_being_written_is_read_up_to_its_last_part(tmp_path):
    table = logged(n=90, epochs=3)
    log = write(tmp_path / "log", table)
    first = select(tmp_path / "log", aggregate="majority")
    (log.path / ".part-00000-000009.parquet.tmp").write_bytes(b"PAR1 half of a par")
    assert select(log.path, aggregate="majority").table.equals(first.table)
    with ScoreLog(log.path) as more:
        more.append(["new"], [0.5], [1.0], [0.5], epoch=3, step=3)
        assert len(select(log.path, aggregate="majority")) == 90  # in memory, not yet in a part
        assert len(select(more, aggregate="majority")) == 91  # which a writer first flushes


def test_parts_that_appear_meanwhile_do_not_matter(tmp_path):
    log = write(tmp_path / "log", logged(n=90, epochs=3))
    stop, found = threading.Event(), []

    def grow():
        with ScoreLog(log.path, rank=1, rows_per_part=1) as other:
            step = 10
            while not stop.is_set():
                other.append([f"later {step}"], [0.5], [1.0], [0.5], epoch=0, step=step)
                step += 1

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        found = [len(select(log.path)) for _ in range(3)]
    finally:
        stop.set()
        writer.join()
    assert found == sorted(found)
    assert found[0] >= 90


def test_two_runs_in_one_folder_are_refused(tmp_path):
    table = logged(n=90, epochs=3)
    write(tmp_path / "log", table)
    one, two = sorted(table["sample_id"].to_pylist()[:2])
    with ScoreLog(tmp_path / "log", rank=1) as log:
        log.append([one, two], [0.5] * 2, [0.5] * 2, [0.5] * 2, epoch=0, step=77)
    named = "; ".join(f"{name!r} in epoch 0 at steps [0, 77]" for name in (one, two))
    with pytest.raises(LogError) as raised:
        select(tmp_path / "log")
    assert str(raised.value).startswith(
        f"samples were visited more than once in an epoch, 2 times in all: {named}. Two runs in "
        "one folder, "
    )
    assert "give each run a folder of its own, or pass only the rows that c" in str(raised.value)


def test_a_damaged_part_is_named(tmp_path):
    log = write(tmp_path / "log", logged(n=90, epochs=3))
    victim = log.parts[1]
    content = bytearray(victim.read_bytes())
    content[4:400] = b"\x00" * 396
    victim.write_bytes(bytes(content))
    with pytest.raises(
        LogError, match=rf"(?s){victim.name} is damaged .* or remove it to go on without"
    ):
        select(log.path)


def test_ids_of_two_kinds_are_refused(tmp_path):
    for kind in ("int", "odd"):
        write(tmp_path / kind, logged(n=30, epochs=1, ids=kind))
    part = (tmp_path / "int" / "part-00000-000000.parquet").read_bytes()
    (tmp_path / "odd" / "part-00001-000000.parquet").write_bytes(part)
    with pytest.raises(LogError, match="parts disagree on the type of sample_id"):
        select(tmp_path / "odd")


def test_parts_with_nulls_and_broken_numbers_are_refused(tmp_path):
    log = write(tmp_path / "log", logged(n=30, epochs=1))
    part = log.parts[0]
    table = pq.read_table(part)

    def rewrite(column, value):
        values = [*table[column].to_pylist()[1:], value]
        field = table.schema.field(column)
        at = table.column_names.index(column)
        pq.write_table(table.set_column(at, field, pa.array(values, field.type)), part)

    for column in ("sample_id", "score"):
        rewrite(column, None)
        with pytest.raises(
            LogError, match=rf"has null values in \['{column}'\]. A score log has n"
        ):
            select(log.path)
    rewrite("score", float("inf"))
    with pytest.raises(LogError, match="1 rows have a score that is not finite, the first is samp"):
        select(log.path)


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1), st.floats(0.1, 10))
def test_a_grid_tells_apart_what_is_far_enough_apart(values, unit):
    x = np.unique(np.array(values) * unit)
    ones = np.ones(len(x), np.int64)
    grid = grid_of(Histogram(ones, ones, x, x, None))
    assert grid.scale > 0
    bins = np.floor(2048 * np.arcsinh((x - grid.center) / grid.scale))
    assert (np.diff(bins) >= 0).all()
    width = np.hypot(grid.scale, np.abs(x - grid.center).max()) / 1000
    assert (np.diff(bins)[np.diff(x) > width] > 0).all()


def test_no_bin_straddles_the_uniform_share():
    share = np.float32([1 - 3e-6, 1 - 5e-7, 1.0, 1 + 5e-7])
    log = logged(n=4, epochs=1, ids="int").slice(0, 4)
    n = len(log)
    columns = {"weight": pa.array(share[:n]), "batch_size": pa.array([1] * n, pa.int32())}
    for name, column in columns.items():
        log = log.set_column(log.column_names.index(name), name, column)
    found = select(log, "one_over_b").mask(log["sample_id"].to_numpy())
    assert found.tolist() == [False, True, True, True][:n]


def test_an_output_folder_that_does_not_exist(tmp_path):
    with pytest.raises(
        DataError, match=r"cannot write .*nowhere/a.parquet: .* choose another folder"
    ):
        select(logged(n=30), out=tmp_path / "nowhere" / "a.parquet")
