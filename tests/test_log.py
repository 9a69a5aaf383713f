import errno
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from gradmimic.atomic import atomic_write
from gradmimic.errors import LogError, UsageError
from gradmimic.log import ScoreLog


def append(log, ids, step=0, epoch=0, **more):
    """Append a batch whose score is its position."""
    b = len(ids)
    scores = more.pop("scores", np.arange(b, dtype=np.float32))
    log.append(ids, scores, np.full(b, 1 / b), np.ones(b), epoch=epoch, step=step, **more)


def test_rows_come_back_with_their_columns(tmp_path):
    with ScoreLog(tmp_path / "a" / "log", rank=2) as log:
        log.append(
            torch.tensor([7, 3]),
            torch.tensor([0.5, -1.5], dtype=torch.float64),
            [0.75, 0.25],
            np.array([1.0, 2.0], dtype=np.float16),
            epoch=1,
            step=9,
            scorer="loss",
            canary=[None, "uniform/10"],
        )
        table = log.scan()
    assert {field.name: str(field.type) for field in table.schema} == {
        "sample_id": "int64",
        "epoch": "int32",
        "step": "int64",
        "scorer": "string",
        "score": "float",
        "weight": "float",
        "loss": "float",
        "batch_size": "int32",
        "canary": "string",
        "rank": "int32",
    }
    first, second = table.to_pylist()
    assert first == {
        "sample_id": 7,
        "epoch": 1,
        "step": 9,
        "scorer": "loss",
        "score": 0.5,
        "weight": 0.75,
        "loss": 1.0,
        "batch_size": 2,
        "canary": None,
        "rank": 2,
    }
    assert (second["sample_id"], second["score"], second["canary"]) == (3, -1.5, "uniform/10")


def test_scorers_interleave_and_columns_filter(tmp_path):
    with ScoreLog(tmp_path) as log:
        append(log, ["a", "b"], scorer="mimic")
        append(log, ["a", "b"], scorer="loss", scores=[5.0, 6.0])
        found = log.scan(["score"], (pc.field("scorer") == "loss") & (pc.field("sample_id") == "b"))
    assert found.to_pydict() == {"score": [6.0]}
    with pytest.raises(LogError, match=r"no columns \['scores'\]; it has \['sample_id', "):
        ScoreLog.read(tmp_path).scan(["scores"])


def test_callers_may_reuse_their_buffers(tmp_path):
    ids, scores, canary = (
        np.array([1, 2]),
        np.array([1.0, 2.0], dtype=np.float32),
        [None, None],
    )
    with ScoreLog(tmp_path) as log:
        append(log, ids, scores=scores, canary=canary)
        ids[:], scores[:], canary[:] = 9, 9, ["uniform/2"] * 2
        table = log.scan(["sample_id", "score", "canary"])
    assert table.to_pydict() == {"sample_id": [1, 2], "score": [1.0, 2.0], "canary": [None] * 2}


def test_parts_hold_at_most_rows_per_part(tmp_path):
    with ScoreLog(tmp_path, rows_per_part=5) as log:
        for step in range(5):
            append(log, [2 * step, 2 * step + 1], step)
        append(log, range_ids := list(range(100, 109)), 5)
    rows = [pq.read_metadata(part).num_rows for part in sorted(tmp_path.glob("*.parquet"))]
    assert rows == [4, 4, 2, 9]
    ids = ScoreLog.read(tmp_path).scan()["sample_id"].to_pylist()
    assert ids == [*range(10), *range_ids]


def test_resuming_continues_numbers_and_norms(tmp_path):
    with ScoreLog(tmp_path, config={"lr": 0.1}, seed=3) as log:
        append(log, [0], 0, direction_norm=2.0)
    created = log.run["created"]
    (tmp_path / ".part-00000-000001.parquet.tmp").write_bytes(b"half")
    (tmp_path / ".part-00001-000000.parquet.tmp").write_bytes(b"another rank's")
    with ScoreLog(tmp_path) as log:
        append(log, [1], 1, direction_norm=torch.tensor(1.5))
    assert log.scan()["sample_id"].to_pylist() == [0, 1]
    assert sorted(part.name for part in tmp_path.glob("*")) == [
        ".part-00001-000000.parquet.tmp",
        "part-00000-000000.parquet",
        "part-00000-000001.parquet",
        "run.json",
    ]
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["direction_norm"] == {"0": 2.0, "1": 1.5}
    assert stored["versions"]["pyarrow"] == pa.__version__
    assert log.run["direction_norm"] == {0: 2.0, 1: 1.5}
    assert (stored["created"], stored["seed"], stored["config"]) == (created, 3, {"lr": 0.1})


def test_norms_of_written_parts_survive_a_run_json_that_lags(tmp_path):
    with ScoreLog(tmp_path, rows_per_part=1) as log:
        append(log, [0], 0, direction_norm=2.0)
        append(log, [1], 1, direction_norm=1.0)
        assert json.loads((tmp_path / "run.json").read_text())["direction_norm"] == {}
        assert ScoreLog.read(tmp_path).run["direction_norm"] == {0: 2.0}


def test_ranks_share_a_folder(tmp_path):
    with ScoreLog(tmp_path, rank=1) as one, ScoreLog(tmp_path, rank=0) as zero:
        append(one, [1])
        append(zero, [0])
    table = ScoreLog.read(tmp_path).scan(["sample_id", "rank"])
    assert table.to_pydict() == {"sample_id": [0, 1], "rank": [0, 1]}


def test_two_writers_of_one_rank_cannot_overwrite_each_other(tmp_path):
    first, second = ScoreLog(tmp_path), ScoreLog(tmp_path)
    append(first, [1])
    append(second, [2])
    second.close()
    with pytest.raises(LogError, match=r"000000\.parquet was written by somebody else.*own rank="):
        first.close()
    (tmp_path / "part-00000-000000.parquet").unlink()
    first.close()
    assert first.scan()["sample_id"].to_pylist() == [1]


def test_reading_makes_and_changes_nothing(tmp_path):
    with pytest.raises(
        LogError, match=r"expected a score log's folder at .*none, but there is none"
    ):
        ScoreLog.read(tmp_path / "none")
    with pytest.raises(LogError, match=r"is not a score log: it holds neither run\.json nor"):
        ScoreLog.read(tmp_path)
    assert list(tmp_path.iterdir()) == []
    folder = tmp_path / "epoch=3" / ".hidden"  # Arrow's data sets would skip it, or add a column
    ScoreLog(folder).close()
    before = (folder / "run.json").stat()
    table = ScoreLog.read(folder).scan()
    assert table.num_rows == 0
    assert "canary" in table.column_names
    assert (folder / "run.json").stat() == before
    with ScoreLog(folder) as log:
        append(log, [1])
    assert ScoreLog.read(folder).scan()["epoch"].to_pylist() == [0]


def test_an_exception_passing_through_loses_nothing(tmp_path):
    def stop():
        with ScoreLog(tmp_path) as log:
            append(log, [1])
            raise KeyError

    with pytest.raises(KeyError):
        stop()
    assert ScoreLog.read(tmp_path).scan().num_rows == 1


def test_a_closed_log_takes_no_rows(tmp_path):
    log = ScoreLog(tmp_path)
    log.close()
    log.close()
    with pytest.raises(UsageError, match=r"is closed. Open it again: ScoreLog\(path\)"):
        append(log, [2])


def test_a_log_nobody_closed_is_saved_at_the_end_of_the_program(tmp_path):
    code = (
        "import sys; from gradmimic.log import ScoreLog; log = ScoreLog(sys.argv[1]); "
        "log.append([1], [1.0], [1.0], [1.0], epoch=0, step=0); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert ScoreLog.read(tmp_path).scan().num_rows == 1


BAD = {
    "short": (
        ([1, 2], [0.5], [0.5, 0.5], [1, 1], {}),
        r"expected scores of shape \(2,\), one number per sample id, got shape \(1,\)",
    ),
    "reduced": (([1, 2], [1, 2], [0.5, 0.5], 1.0, {}), r"losses of shape .* got shape \(\)"),
    "nan": (
        (["a", "b"], [0.5, np.nan], [0.5, 0.5], [1, 1], {}),
        r"the score of sample 'b' is nan.*\(scorer 'mimic', epoch 2, step 5\)",
    ),
    "inf": (([1, 2], [np.inf, 1], [0.5, 0.5], [1, 1], {}), "the score of sample 1 is inf"),
    "twice": (([4, 4], [1, 2], [0.5, 0.5], [1, 1], {}), r"more than once in one batch: \[4\]"),
    "none": ((None, [1], [1], [1], {}), "came as NoneType of shape"),
    "none inside": (([1, None], [1, 2], [0.5, 0.5], [1, 1], {}), "position 1 is None"),
    "floats": (([1.0], [1], [1], [1], {}), r"position 0 is 1.0 \(float\)"),
    "bools": (([True], [1], [1], [1], {}), r"position 0 is True \(bool\)"),
    "mixture": (([1, "a"], [1, 2], [0.5, 0.5], [1, 1], {}), "mix integers and strings"),
    "too large": (([2**63], [1], [1], [1], {}), "9223372036854775808 does not fit int64"),
    "no text": ((["\ud800"], [1], [1], [1], {}), "cannot be written as UTF-8"),
    "grad": (([1], torch.ones(1, requires_grad=True), [1], [1], {}), "CPU without grad"),
    "bfloat16": (([1], torch.ones(1, dtype=torch.bfloat16), [1], [1], {}), "on the CPU"),
    "positions": (
        ([1, 2], [1, 2], [1, 1], [1, 1], {"canary": [0, 1]}),
        r"canary to be 2 kinds.*got \[0, 1\]",
    ),
    "epoch": (([1], [1], [1], [1], {"epoch": 0.5}), "expected epoch to be an integer .* got 0.5"),
    "step": (([1], [1], [1], [1], {"step": -1}), "expected step to be an integer from 0"),
    "norm": (([1], [1], [1], [1], {"direction_norm": np.nan}), "direction_norm is nan at step 5"),
    "scorer": (([1], [1], [1], [1], {"scorer": ""}), "expected scorer to be a name, got ''"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_batch_is_refused_and_adds_nothing(tmp_path, name):
    (ids, scores, weights, losses, more), message = BAD[name]
    with ScoreLog(tmp_path) as log:
        append(log, [10, 11])
        with pytest.raises(LogError, match=message):
            log.append(ids, scores, weights, losses, **{"epoch": 2, "step": 5, **more})
        append(log, [12], 6)
    assert log.scan()["sample_id"].to_pylist() == [10, 11, 12]
    assert log.run["direction_norm"] == {}


def test_the_kind_of_ids_cannot_change(tmp_path):
    with ScoreLog(tmp_path) as log:
        append(log, [1])
        with pytest.raises(
            LogError, match=r"holds int64 sample ids, but string ids came \(epoch 0"
        ):
            append(log, ["a"], 1)
    with (
        ScoreLog(tmp_path) as log,
        pytest.raises(LogError, match="Use one kind of id throughout"),
    ):
        append(log, ["a"], 1)
    with ScoreLog(tmp_path / "text", rank=1) as text:
        append(text, np.array(["a", "b"]))
    (tmp_path / "text" / "part-00001-000000.parquet").rename(tmp_path / "part-00001-000000.parquet")
    with pytest.raises(
        LogError, match=r"part-00000-000000\.parquet has int64, part-00001.* string"
    ):
        ScoreLog.read(tmp_path).scan()


def test_an_empty_batch_is_no_batch(tmp_path):
    with ScoreLog(tmp_path) as log:
        log.append([], [], [], [], epoch=0, step=0)
        append(log, ["a"])
    assert log.scan().num_rows == 1


def test_damaged_parts_are_named(tmp_path):
    with ScoreLog(tmp_path) as log:
        append(log, list(range(1000)))
    part = tmp_path / "part-00000-000000.parquet"
    whole = part.read_bytes()
    part.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LogError, match=r"part-00000-000000\.parquet is damaged and cannot be read"):
        log.scan()
    flipped = bytearray(whole)
    flipped[1000] ^= 0xFF  # inside the first data page
    part.write_bytes(flipped)
    with pytest.raises(LogError, match=r"part-00000-000000\.parquet is damaged.*Restore it"):
        log.scan()


def test_parts_of_another_format_are_named(tmp_path):
    with ScoreLog(tmp_path) as log:
        append(log, [1])
    part = tmp_path / "part-00000-000000.parquet"
    table = pq.read_table(part)
    pq.write_table(table.drop_columns(["loss", "rank"]), part)
    with pytest.raises(LogError, match=r"parquet lacks the columns \['loss', 'rank'\]"):
        log.scan()
    pq.write_table(table.set_column(4, "score", table["score"].cast("double")), part)
    with pytest.raises(LogError, match=r"other types than a score log in the columns \['score'\]"):
        log.scan()
    pq.write_table(table.replace_schema_metadata({"gradmimic.log.version": "9"}), part)
    with pytest.raises(LogError, match=r"000000\.parquet is of log format version 9, but .* 2\."):
        log.scan()
    pq.write_table(table.replace_schema_metadata(None), part)
    with pytest.raises(LogError, match="is of log format version none"):
        ScoreLog(tmp_path)


def test_a_foreign_run_json_is_not_overwritten(tmp_path):
    (tmp_path / "run.json").write_text('{"name": "mine"}')
    with pytest.raises(LogError, match=r"run\.json is not the run\.json of a score log \(KeyError"):
        ScoreLog(tmp_path)
    (tmp_path / "run.json").write_text('{"format_version": 9}')
    with pytest.raises(LogError, match=r"run\.json is of log format version 9"):
        ScoreLog(tmp_path)
    assert (tmp_path / "run.json").read_text() == '{"format_version": 9}'


def test_constructor_refuses_what_cannot_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"cannot write a score log to .*file"):
        ScoreLog(tmp_path / "file")
    with pytest.raises(LogError, match="config and seed must be JSON-like"):
        ScoreLog(tmp_path / "log", config={"model": object()})
    assert list((tmp_path / "log").iterdir()) == []
    with pytest.raises(LogError, match="expected rows_per_part >= 1 and rank >= 0, got 0 and 0"):
        ScoreLog(tmp_path, rows_per_part=0)


def test_a_full_disk_keeps_the_rows_and_leaves_no_part(tmp_path, monkeypatch):
    log = ScoreLog(tmp_path, rows_per_part=2)
    append(log, [1, 2], direction_norm=1.0)
    with monkeypatch.context() as disk:

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        disk.setattr(os, "fsync", full)
        with pytest.raises(
            LogError, match=r"cannot write .*part-00000-000000\.parquet: .*No space"
        ):
            log.flush()
        with pytest.raises(LogError, match="2 rows stay in memory: make room, then call flush"):
            append(log, [3], 1)  # would flush first, so adds nothing
        assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    log.close()
    assert log.scan()["sample_id"].to_pylist() == [1, 2]
    assert log.run["direction_norm"] == {0: 1.0}


def test_a_write_cut_off_half_way_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    log = ScoreLog(tmp_path)
    append(log, list(range(10_000)))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
    try:
        with pytest.raises(LogError, match="10000 rows stay in memory"):
            log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]
    log.close()
    assert ScoreLog.read(tmp_path).scan().num_rows == 10_000


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_is_written_alone_has_one_writer(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", raising(OSError(errno.EOPNOTSUPP, "no links here")))
    file = tmp_path / "part"
    with atomic_write(file, alone=True) as first:
        first.write(b"first")
        with pytest.raises(FileExistsError), atomic_write(file, alone=True) as second:
            second.write(b"second")
    with pytest.raises(FileExistsError), atomic_write(file, alone=True) as third:
        third.write(b"third")
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]


def raising(error):
    def call(*_args):
        raise error

    return call


def logged(path, steps=6, rows_per_part=4, rank=0):
    log = ScoreLog(path, rows_per_part=rows_per_part, rank=rank)
    for step in range(steps):
        ids = [10 * step, 10 * step + 1]
        log.append(ids, [0.5, -0.5], [0.6, 0.4], [0.1, 0.2], epoch=0, step=step, direction_norm=1.5)
    return log


@pytest.mark.parametrize("step", [0, 1, 3, 4, 6])
def test_a_log_is_cut_back_to_any_step_and_goes_on_from_there(tmp_path, step):
    whole = logged(tmp_path / "whole").scan()
    log = logged(tmp_path / "cut")  # its parts hold two steps each
    log.cut(step)
    assert log.scan().equals(whole.slice(0, 2 * step))
    assert sorted(log.run["direction_norm"]) == list(range(step))
    for again in range(step, 6):
        ids = [10 * again, 10 * again + 1]
        log.append(ids, [0.5, -0.5], [0.6, 0.4], [0.1, 0.2], epoch=0, step=again)
    log.close()
    assert ScoreLog.read(log.path).scan().equals(whole)


def test_a_cut_keeps_the_events_that_there_were(tmp_path):
    log = logged(tmp_path)
    for name, step in (("a", 2), ("b", 3), ("c", 3)):
        log.mark(name, step)
    log.cut(3, events=2)
    assert [event["event"] for event in log.run["events"]] == ["a", "b"]
    log.cut(3)
    assert [event["event"] for event in log.run["events"]] == ["a"]
    log.close()


def test_each_rank_cuts_its_own_rows_and_rank_0_those_of_ranks_that_are_gone(tmp_path):
    logs = [logged(tmp_path, rank=rank) for rank in range(3)]
    logs[0].cut(1, ranks=2)
    steps = {rank: log_steps(logs[0], rank) for rank in range(3)}
    assert steps == {0: [0], 1: [0, 1, 2, 3], 2: [0]}  # rank 1's last steps are not written yet
    logs[1].cut(2)
    assert log_steps(logs[0], 1) == [0, 1]
    for log in logs:
        log.close()


def log_steps(log, rank):
    return sorted(set(log.scan(["step"], pc.field("rank") == rank)["step"].to_pylist()))


def test_a_log_that_was_cut_back_to_nothing_takes_other_ids(tmp_path):
    log = logged(tmp_path)
    log.cut(0)
    log.append(["a"], [0.5], [1.0], [0.1], epoch=0, step=0)
    assert log.scan(["sample_id"])["sample_id"].to_pylist() == ["a"]
    log.close()
