"""``gradmimic score --task clip`` in several processes, killed at any moment and started again."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
pytest.importorskip("webdataset", reason="needs the extra 'webdataset'")

from test_cli_score import command, finish, kill_midway, start  # noqa: F401
from test_clip_score import config, flags, folder, made, rows_of  # noqa: F401
from test_clip_score_dirt import make_dirty
from web import picture, sample, shard
from web_pools import train_small, write_pool

import gradmimic.run.place
from gradmimic import ScoreLog
from gradmimic.errors import UsageError
from gradmimic.run.clip.score import score_pairs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")


@pytest.fixture
def pool(folder, monkeypatch):  # noqa: F811
    """Many small dirty shards, samples in two shards, and a reference that has to be turned."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here, so that numbers are equal to the bit
    write_pool(folder / "many", 24, 10, seed=3)
    for number in (5, 11, 17):  # the same ids in other shards
        (folder / f"many/{number:05}.tar").write_bytes((folder / "many/00002.tar").read_bytes())
    whole = (folder / "many/00007.tar").read_bytes()
    (folder / "many/00007.tar").write_bytes(whole[: len(whole) // 2])
    shard(folder / "many/00013.tar", sample("0", "alone", "alone", picture()))
    train_small(folder / "other.pt", folder / "many", 2, seed=9)
    return {"data": "many/{00000..00024}.tar", "reference": "other.pt", "batch_size": 4}


def assert_the_same(first, second):
    one, other = rows_of(first), rows_of(second)
    for name in one.column_names:
        assert one[name].equals(other[name]), name
    census = [Path(out, "census.json").read_text() for out in (first, second)]
    assert census[0] == census[1]


@pytest.mark.slow
def test_two_killed_processes_are_finished_by_one(folder, pool, command):  # noqa: F811
    arguments = flags("steps/step-4.pt", **pool)
    kill_midway(start(2, arguments), folder / "scores/log", 5)
    there = rows_of("scores").num_rows
    status, printed = command(*arguments)
    assert status == 0, printed.err
    assert "transport" in printed.out  # learned the same way by whoever
    score_pairs(config(["steps/step-4.pt"], out="whole", **pool))
    assert 0 < there < rows_of("whole").num_rows
    assert_the_same("scores", "whole")
    assert not list((folder / "scores/log").glob(".*"))
    assert not list((folder / "scores/shards").glob(".*"))


def test_processes_wait_for_each_other(folder, pool, monkeypatch):  # noqa: F811
    """Each in its turn here; what one waits for in vain it says."""
    monkeypatch.setattr(gradmimic.run.place, "PATIENCE", 0.1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    given = config(["steps/step-4.pt"], **pool)
    with pytest.raises(UsageError, match="waits for process 0, which has not opened"):
        score_pairs(given)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="process 0 is done, but of 2 processes some are not"):
        score_pairs(given)
    (folder / "runs/scores/duplicates.npy").rename(folder / "kept.npy")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UsageError, match="process 0, which has not written .*duplicates.npy"):
        score_pairs(given)
    (folder / "kept.npy").rename(folder / "runs/scores/duplicates.npy")
    assert score_pairs(given) is None
    monkeypatch.setenv("RANK", "0")
    assert score_pairs(given).scored == 0
    ranks = ScoreLog.read("runs/scores/log").scan(["rank", "step"]).to_pylist()
    assert all(row["rank"] == row["step"] % 2 for row in ranks)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    score_pairs(config(["steps/step-4.pt"], out="whole", **pool))
    assert_the_same("runs/scores", "whole")


@pytest.mark.slow
@pytest.mark.parametrize("last", [1, 2, 3])
def test_killed_at_random_points_it_ends_as_if_undisturbed(folder, pool, last):  # noqa: F811
    pool["align"] = ["transport", "rotation", "none"][last - 1]
    arguments = flags("steps", workers=last - 1, **pool)
    chance, log = random.Random(last), folder / "scores/log"  # noqa: S311
    sizes = []
    for _ in range(3):
        kill_midway(start(2, arguments), log, chance.randrange(0, 8))
        time.sleep(chance.uniform(0, 0.05))
        sizes.append(rows_of("scores").num_rows if list(log.glob("part-*")) else 0)
    assert sizes == sorted(sizes)
    printed = finish(start(last, arguments))
    assert "what became of them" in printed[0]
    assert all(out == "" for out in printed[1:])
    score_pairs(config(out="whole", **pool))
    assert_the_same("scores", "whole")
    assert not list(log.glob(".*"))


@pytest.mark.slow
def test_torchrun_starts_it(folder):  # noqa: F811
    pytest.importorskip("torch.distributed.run")
    make_dirty(folder / "pool")
    data = "pool/{00000..00008}.tar"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gradmimic",
         *flags("steps", data=data)],
        check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    score_pairs(config(data=data, out="whole"))
    assert_the_same("scores", "whole")
