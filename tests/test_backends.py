"""DuckDB and Spark run the same expressions: every row, number and reason is the same."""

import subprocess
import sys
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stage2_logs import logged, names

from gradmimic.curate import Selection, select
from gradmimic.errors import ConfigError, DataError, MissingExtraError
from gradmimic.log import ScoreLog


@pytest.fixture(scope="module")
def spark():
    """One quiet session for all tests here."""
    sql = pytest.importorskip("pyspark.sql")
    builder = sql.SparkSession.builder.master("local[2]").appName("tests")
    for name, value in {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "OFF",
        "spark.sql.shuffle.partitions": "3",  # more than one: results must not depend on it
    }.items():
        builder = builder.config(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = builder.getOrCreate()
    yield session
    session.stop()


def same(spark, log, *arguments, **options):
    here = select(log, *arguments, **options)
    there = select(log, *arguments, backend=spark, **options)
    assert there.table.equals(here.table), (here.table.to_pylist()[:3], there.table.to_pylist()[:3])
    return here


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["calibrated", "mixture", "two_means", "one_over_b"])
@pytest.mark.parametrize("aggregate", ["mean", "majority", "dawid_skene"])
def test_every_row_is_the_same(spark, rule, aggregate):
    found = same(spark, logged(canaries=True), rule, aggregate=aggregate)
    assert 0 < len(found.removed) < len(found)
    assert len(set(found.table["reason"].to_pylist())) > 1


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["hex", "int", "odd"])
def test_all_kinds_of_ids_come_through(spark, ids):
    found = same(spark, logged(ids=ids), aggregate="one_coin")
    assert found.table["sample_id"].to_pylist() == sorted(
        set(logged(ids=ids)["sample_id"].to_pylist())
    )


@pytest.mark.slow
def test_several_scorers_voters_and_unknown_epochs(spark):
    log = logged(scorers=['it\'s \\ a "scorer"; --', "loss"])
    names = sorted(set(log["scorer"].to_pylist()))
    same(spark, log, aggregate="dawid_skene", scorer=names)
    some = select(log, "two_means", scorer=names[0], aggregate="majority")
    same(spark, log, aggregate="one_coin", scorer=names, voters={"other": some})
    same(spark, log, aggregate="one_coin", scorer=names[1], voters={"other": some})
    unknown = log.set_column(1, "epoch", pa.nulls(len(log), pa.int32()))
    same(spark, unknown, aggregate="majority", scorer=names[1])


@pytest.mark.slow
@pytest.mark.parametrize("ids", ["hex", "odd"])
def test_conditions_and_rankings_over_metadata(spark, tmp_path, ids):
    log = logged(ids=ids, scorers=["mimic", "clip"], canaries=True)
    known = [*names(ids, 300)[5:], names(ids, 300)[9], "f" * 32]
    chance = np.random.default_rng(0)
    table = {
        "uid": known,
        "text": [None, *("it's " * k for k in chance.integers(0, 4, len(known) - 1))],
        "width": chance.integers(100, 400, len(known)),
        "clip_l14": chance.integers(0, 20, len(known)) / 20,
        "face_bboxes": [[[0.1]] * k for k in chance.integers(0, 3, len(known))],
    }
    pq.write_table(pa.table(table), tmp_path / "metadata.parquet")
    where = (
        "length(text) > 5 and text like '%it''s%' and width between 120 and 390 "
        "and length(face_bboxes) < 2 and least(width / 3, 100) % 7 >= 0 and clip > -2"
    )
    options = {"metadata": tmp_path, "where": where, "drop_bottom": {"mimic": 0.1, "clip": 0.1}}
    found = same(spark, log, "calibrated", top={"clip_l14": 0.7}, **options)
    assert 0 < len(found.kept) < 150
    assert len(found.reasons()) > 6
    same(spark, log, aggregate="majority", top={"clip": 0.5}, metadata=tmp_path, where="width > 0")


@pytest.mark.slow
def test_combined_scorers(spark):
    log = logged(scorers=["mimic", "clip"], canaries=True, epochs=1)
    options = {"scorer": ["mimic", "clip"], "aggregate": "stacked"}
    here, there = select(log, **options), select(log, **options, backend=spark)
    assert here.notes == there.notes
    assert here.table["keep"].equals(there.table["keep"])
    scores = (found.table["score"].to_numpy() for found in (here, there))
    np.testing.assert_allclose(*scores, rtol=1e-12)  # the engines' logarithms may differ


@pytest.mark.slow
def test_more_voters_than_fit_an_integer(spark):
    log = logged(n=60, epochs=70)
    same(spark, log, aggregate="majority")
    same(spark, log, aggregate="dawid_skene")
    same(spark, log, "one_over_b")


@pytest.mark.slow
def test_spark_writes_one_sorted_file_and_leaves_nothing_behind(spark, tmp_path):
    before = spark.conf.get("spark.sql.session.timeZone")
    folder = tmp_path / "a log, it's; {1,2} [x] *"
    with ScoreLog(folder) as log:
        for epoch, rows in enumerate(np.array_split(np.arange(40), 4)):
            scores = np.where(rows % 4 == 0, -1.0, 1.0) + rows / 1000
            log.append(
                [f"s{i:02}" for i in rows], scores, scores * 0, scores * 0, epoch=0, step=epoch
            )
    out = folder / "selection.parquet"
    there = select(folder, out=out, backend=spark)
    assert there.table.equals(select(folder).table)
    assert pq.ParquetFile(out).metadata.num_rows == 40
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*(part.name for part in log.parts), "run.json", "selection.parquet"]
    )
    assert spark.catalog.listTables() == []
    assert spark.conf.get("spark.sql.session.timeZone") == before


@pytest.mark.slow
def test_a_masters_url_starts_a_session_and_stops_it(tmp_path):
    pytest.importorskip("pyspark")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); from stage2_logs import logged\n"
        "from gradmimic.curate import select\n"
        "found = select(logged(), backend='local[1]')\n"
        "assert found.table.equals(select(logged()).table)\n"
        "from pyspark.sql import SparkSession\n"
        "assert SparkSession.getActiveSession() is None\n"
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code, here], check=True, timeout=120, capture_output=True)


def test_what_is_no_backend_is_refused(tmp_path, monkeypatch):
    log = logged(n=20)
    with pytest.raises(
        ConfigError, match="there is no backend 'duck'. Leave it out for DuckDB, or"
    ):
        select(log, backend="duck")
    with pytest.raises(ConfigError, match="a Spark master's URL or a SparkSession, got a int"):
        select(log, backend=3)
    with pytest.raises(
        ConfigError, match="memory_limit and temp_folder are DuckDB's, but backend="
    ):
        select(log, backend="local[1]", memory_limit="1GB")
    with pytest.raises(ConfigError, match=r"does not take memory_limit='much': .* such as '2GB'"):
        select(log, memory_limit="much")
    with pytest.raises(DataError, match="cannot make a temporary folder in .*nowhere: .* exists"):
        select(log, temp_folder=tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gradmimic\[spark\]'"):
        select(log, backend="local[1]")


def test_a_full_disk_leaves_nothing_under_the_final_name(tmp_path):
    # In a process of its own, since its files may not grow beyond some bytes.
    code = (
        "import resource, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from stage2_logs import logged\n"
        "from gradmimic.curate import select; from gradmimic.errors import DataError\n"
        "import gradmimic.curate.plan, gradmimic.curate.backends, ibis; ibis.duckdb.connect()\n"
        "log = logged(n=20_000)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    select(log, out=Path(sys.argv[2]) / 'selection.parquet')\n"
        "except DataError as error:\n    print(error)\n"
    )
    here = str(__import__("pathlib").Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code, here, str(tmp_path)],
        check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert f"cannot write {tmp_path}/selection.parquet: " in done.stdout
    assert "Nothing was left under that name: make room or choose another folder" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_selection_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    out = tmp_path / "selection.parquet"
    first = select(logged(n=30), out=out)
    assert isinstance(first, Selection)
    before = out.read_bytes()
    from gradmimic.curate import backends

    def unsorted(self, expression, path):
        from ibis import desc

        backends_write(self, expression.order_by(desc("sample_id")), path)

    backends_write = backends.DuckDB.write
    monkeypatch.setattr(backends.DuckDB, "write", unsorted)
    with pytest.raises(DataError, match="cannot write .* must be sorted by sample_id"):
        select(logged(n=40), out=out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["selection.parquet"]


def test_out_of_core_gives_the_same(tmp_path):
    log = logged(n=60_000, ids="hex")
    small = select(log, aggregate="majority", memory_limit="70MB", temp_folder=tmp_path)
    assert small.table.equals(select(log, aggregate="majority").table)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        DataError, match="ran out of memory or of room to swap.* Raise memory_limit"
    ):
        select(log, memory_limit="3MB", temp_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
