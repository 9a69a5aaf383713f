"""``gradmimic score``: a data set through the checkpoints of a training."""

import errno
import json
import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from blobs import CLASSES, make_blobs, run_blobs, write_blobs, write_pictures
from test_score import rows_of

import gradmimic.run.place
from gradmimic import Outputs, ScoreLog
from gradmimic.cli import main
from gradmimic.errors import ConfigError, UsageError
from gradmimic.run.checkpoints import Remembered, find_checkpoints
from gradmimic.run.models import build_model
from gradmimic.run.place import find_place
from gradmimic.run.score import ScoreConfig, score_data
from gradmimic.run.train import Rows, train

WRONG = 60  # of 240 labels


def write_training(folder, kind="mlp", n=240):
    """Write data with wrong labels, three checkpoints on a frozen trunk, and a better head."""
    x, y = make_blobs(n, 0)
    np.save(folder / "x.npy", x)
    wrong = np.random.default_rng(3).permutation(n)[: n * WRONG // 240]
    noisy = y.copy()
    noisy[wrong] = (y[wrong] + 1) % CLASSES
    np.save(folder / "noisy.npy", noisy)
    model = build_model(kind, x, CLASSES, hidden=8, seed=0)
    model.trunk.requires_grad_(False)
    (folder / "epochs").mkdir()
    for name, labels, lr in (
        ("epoch-9", noisy, 1e-3),
        ("epoch-10", noisy, 1e-3),
        ("better", y, 0.02),
    ):
        rows = Rows(torch.tensor(x), torch.tensor(labels))
        train(
            model, rows, epochs=1 if lr < 0.01 else 5, batch_size=16, lr=lr, weight_decay=0, seed=0
        )
        torch.save(
            model.state_dict(), folder / ("" if name == "better" else "epochs") / f"{name}.pt"
        )
    return wrong


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    write_training(tmp_path)
    return tmp_path


GIVEN = {"data": "x.npy", "labels": "noisy.npy", "reference": "better.pt", "batch_size": 16}


def config(checkpoints=("epochs",), **changes):
    return ScoreConfig(checkpoints=checkpoints, **{**GIVEN, **changes})


def flags(*checkpoints, **changes):
    keys = {**GIVEN, "out": "scores", **changes}
    pairs = [("--" + name.replace("_", "-"), str(value)) for name, value in keys.items() if value]
    return ["score", *checkpoints, *(part for pair in pairs for part in pair)]


@pytest.fixture
def command(monkeypatch, capsys):
    """Call the command line; return its exit status, and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradmimic", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return caught.value.code or 0, printed

    def refused(message, *arguments):
        status, printed = call(*arguments)
        assert (status, printed.out) == (1, "")
        assert re.search(message, printed.err), printed.err

    call.refused = refused
    return call


def test_a_training_is_scored_selected_and_judged(folder, command):
    status, printed = command(*flags("epochs/epoch-*.pt"))
    assert status == 0, printed.err
    text = " ".join(printed.out.split())
    assert re.search(r"^samples 240 checkpoints 2 visits 480 canaries 960 samples/s [\d,]+ ", text)
    assert text.endswith("log: scores/log")
    assert "samples/s" in printed.err  # progress
    log = ScoreLog.read("scores/log")
    assert log.run["config"]["given"]["checkpoints"] == ["epochs/epoch-9.pt", "epochs/epoch-10.pt"]
    assert set(log.scan(["epoch"])["epoch"].to_pylist()) == {0, 1}
    assert sorted(path.name for path in (folder / "scores").iterdir()) == ["labels.parquet", "log"]

    assert command("select", "scores", "--out", "selection.parquet")[0] == 0
    kept = pq.read_table("selection.parquet").sort_by("sample_id")
    assert "canaries' threshold" in kept["reason"][0].as_py()
    wrong = np.load("noisy.npy") != make_blobs(240, 0)[1]
    found = ~np.array(kept["keep"].to_pylist())
    assert (found == wrong).mean() > 0.85
    status, printed = command("quality", "scores", "--out", "quality.json")
    assert status == 0
    assert "class" in printed.out  # from labels.parquet
    (quality,) = json.loads((folder / "quality.json").read_text()).values()
    assert abs(quality["quality"]["value"] - 0.75) < 0.15


def test_what_is_done_is_not_done_again(folder, command, monkeypatch):
    command(*flags("epochs"))
    before = {path: path.stat().st_mtime_ns for path in folder.glob("scores/log/part-*")}
    for rank in range(2):  # what a killed run of two processes may leave
        (folder / f"scores/log/.part-{rank:05}-000007.parquet.tmp").touch()
    (folder / "scores/log/.done-1-of-2").touch()
    status, printed = command(*flags(folder / "epochs/epoch-9.pt", "epochs/epoch-10.pt"))
    assert status == 0
    text = " ".join(printed.out.split())
    assert "visits 480 canaries 960 there before 240 log:" in text
    assert {path: path.stat().st_mtime_ns for path in folder.glob("scores/log/part-*")} == before
    assert not list(folder.glob("scores/log/.*"))


def test_the_same_trunk_is_run_once_a_batch(folder, monkeypatch):
    runs, forward = [], Remembered.forward

    def counted(self, x):
        runs.append(self._last is None or self._last[0] is not x)
        return forward(self, x)

    monkeypatch.setattr(Remembered, "forward", counted)
    assert score_data(config(out="shared")).visits == 480
    assert (sum(runs), len(runs)) == (15, 30)
    runs.clear()
    monkeypatch.setattr("gradmimic.run.score.with_shared_trunks", lambda models: {**models})
    better = torch.load("better.pt", weights_only=True)
    torch.save({name: better[name] for name in better if "head" in name}, "head.pt")
    score_data(config(out="whole"))
    assert rows_of("shared/log").equals(rows_of("whole/log"))
    assert runs == []


@pytest.mark.parametrize("kind", ["linear", "mlp", "cnn"])
def test_every_built_in_model_is_read_off_its_weights(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "cnn":
        pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
        write_pictures(tmp_path / "x", n=30)
        (tmp_path / "x/red/000.png").write_bytes(b"no picture")
        keys = {"data": "x", "image_size": 8}
        x, classes = np.zeros((2, 3, 8, 8), np.uint8) + np.arange(2)[:, None, None, None], 2
    else:
        x, y = make_blobs(30, 0)
        np.save("x.npy", x)
        np.save("y.npy", y)
        keys, classes = {"data": "x.npy", "labels": "y.npy"}, CLASSES
    for seed in range(2):
        model = build_model(kind, x, classes, hidden=4, seed=seed)
        torch.save(model.state_dict(), f"{seed}.pt")
    done = score_data(ScoreConfig(checkpoints=["0.pt"], reference="1.pt", batch_size=8, **keys))
    assert done.visits == 30 - (kind == "cnn")
    if kind == "cnn":
        ((reason, count),) = done.skipped.items()
        assert (count, "cannot" in reason or "picture" in reason or "identify" in reason) == (
            1,
            True,
        )
    align = ScoreLog.read("runs/scores/log").run["config"]["score"]["align"]
    assert align == ("none" if kind == "linear" else "outputs")  # these have other trunks


def test_a_table_of_outputs_and_what_it_lacks(folder, command):
    _, y = make_blobs(240, 0)
    said = 3 * torch.eye(CLASSES)[torch.tensor(y[:200])]
    Outputs(range(200), said).write(folder / "said.parquet")
    status, printed = command(*flags("epochs", reference="said.parquet"))
    assert status == 0, printed.err
    text = " ".join(printed.out.split())
    assert "visits 400" in text
    assert "skipped 40 not in the table of outputs" in text
    scored = ScoreLog.read("scores/log").scan()
    assert set(scored["sample_id"].to_pylist()) == {*range(200)}
    wrong = np.load("noisy.npy") != y
    rows = scored.filter(scored["canary"].is_null()).to_pylist()
    means = [np.mean([r["score"] for r in rows if wrong[r["sample_id"]] == bad]) for bad in (0, 1)]
    assert means[0] > means[1]
    command.refused(
        "align='none' compares weights", *flags("epochs", reference="said.parquet", align="none")
    )


def test_all_parameters_and_other_ways(folder):
    for place, changes in enumerate(
        ({"params": "all"}, {"params": "trunk.*", "reference": "other.pt"}, {"align": "shift"})
    ):
        if "reference" in changes:
            state = torch.load("better.pt", weights_only=True)
            torch.save({name: value + 0.1 for name, value in state.items()}, "other.pt")
        done = score_data(config(out=f"s{place}", canaries="off", **changes))
        assert (done.visits, done.canaries) == (480, 0)
    note = score_data(config(out="note", reference="other.pt", align="none")).notes[0]
    assert "layers below the head are not those of the checkpoints" in note


def test_flags_decide(folder):
    score_data(config(out="a", temperature=float("inf"), canary_rate=0.2, seed=3))
    rows = ScoreLog.read("a/log").scan()
    real = rows.filter(rows["canary"].is_null())
    np.testing.assert_allclose(real["weight"].to_pylist(), 1 / 16)
    assert 20 < rows.num_rows - real.num_rows < 300
    score_data(config(out="a", temperature=float("inf"), canary_rate=0.2, seed=3))  # infinity fits
    for changes, match in (
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"canary_rate": 2.0}, r"canary_rate must be in \(0, 1\], got 2.0"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"params": "all", "align": "outputs"}, "asks for more than the head"),
    ):
        with pytest.raises(ConfigError, match=match):
            config(**changes)


def test_other_work_is_refused_and_replaced_where_asked(folder, command):
    assert command(*flags("epochs"))[0] == 0
    rows = rows_of("scores/log")
    command.refused(
        "scores of another run: batch_size 16 instead of 8", *flags("epochs", batch_size=8)
    )
    command.refused("another run: other checkpoints", *flags("epochs/epoch-9.pt"))
    command.refused(
        "another run: other reference",
        *flags("epochs", reference="epochs/epoch-9.pt", align="none"),
    )
    labels = np.load("noisy.npy")
    labels[7] = (labels[7] + 1) % CLASSES
    np.save("changed.npy", labels)
    command.refused("another run: other data", *flags("epochs", labels="changed.npy"))
    x = np.load("x.npy")
    x[100, 1] += 0.5
    np.save("changed_x.npy", x)
    command.refused(
        "other data.*Give another --out, or --overwrite", *flags("epochs", data="changed_x.npy")
    )
    assert rows_of("scores/log").equals(rows)
    assert command(*flags("epochs", batch_size=8), "--overwrite")[0] == 0
    assert set(ScoreLog.read("scores/log").scan()["batch_size"].to_pylist()) <= {*range(33)}
    assert not rows_of("scores/log").equals(rows)


def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    write_blobs(tmp_path)
    run_blobs(tmp_path, epochs=1)
    given = {"data": "x.npy", "labels": "y.npy", "reference": "run/reference.pt"}
    command.refused("run holds a training run", *flags("run/plain.pt", out="run", **given))
    command.refused(
        "run holds a training run", *flags("run/plain.pt", out="run", **given), "--overwrite"
    )
    (tmp_path / "run/log").rename(tmp_path / "log")
    command.refused(
        "log is a score log, but not of gradmimic score", *flags("run/plain.pt", out=".", **given)
    )
    status, printed = command(*flags("run/plain.pt", "run/reweighted.pt", **given))
    assert status == 0, printed.err  # what a run trained can be scored
    (tmp_path / "scores/log/run.json").write_text("{}")
    command.refused(
        "is not the run.json of a score log.*--overwrite", *flags("run/plain.pt", **given)
    )
    (tmp_path / "file").touch()
    command.refused(
        "Cannot write to the output folder file", *flags("run/plain.pt", out="file", **given)
    )


def test_checkpoints_are_found_in_their_order(folder):
    names = [path.name for path in find_checkpoints(["epochs/*.pt", "epochs/epoch-9.pt"])]
    assert names == ["epoch-9.pt", "epoch-10.pt"]
    names = [path.name for path in find_checkpoints(["epochs/epoch-10.pt", "epochs"])]
    assert names == ["epoch-10.pt", "epoch-9.pt"]
    with pytest.raises(ConfigError, match="There is no checkpoint"):
        find_checkpoints([])


def test_what_cannot_be_scored_is_told(folder, command, monkeypatch):
    command.refused(
        r"nothing\*.pt matches no checkpoint .*Expected files of weights", *flags("nothing*.pt")
    )
    (folder / "empty").mkdir()
    command.refused("the folder empty holds no checkpoint", *flags("empty"))
    whole = (folder / "better.pt").read_bytes()
    (folder / "half.pt").write_bytes(whole[: len(whole) // 2])
    command.refused("half.pt is damaged or truncated", *flags("epochs", "half.pt"))
    command.refused("half.pt is damaged or truncated", *flags("epochs", reference="half.pt"))
    other = build_model("mlp", np.zeros((2, 9)), CLASSES, hidden=8, seed=0)
    torch.save(other.state_dict(), "other.pt")
    command.refused(
        r"The checkpoint other\.pt is not a mlp for inputs of shape \[4\].*Check that it was",
        *flags("epochs", "other.pt"),
    )
    torch.save({"weight": torch.zeros(2)}, "odd.pt")
    command.refused(
        r"checkpoint odd\.pt holds no head\.weight.*scoring\.score\(models", *flags("odd.pt")
    )
    torch.save(build_model("mlp", np.zeros((2, 4)), 5, hidden=8, seed=0).state_dict(), "5.pt")
    command.refused(
        r"checkpoint 5\.pt gives 5 outputs, but the labels have 3 classes", *flags("5.pt")
    )
    command.refused(r"reference 5\.pt gives 5 outputs", *flags("epochs", reference="5.pt"))
    command.refused(
        r"better\.pt, epoch 2 of the log: The direction is zero", *flags("epochs", "better.pt")
    )
    command.refused("brings no labels of its own", *flags("epochs", labels=None))
    np.save("ones.npy", np.ones(240, int))
    command.refused("all 240 labels of x.npy are 1", *flags("epochs", labels="ones.npy"))
    command.refused("There is no reference: give --reference", "score", "epochs", "--data", "x.npy")


def test_a_loss_that_is_no_number_names_sample_and_checkpoint(folder, command):
    x = np.load("x.npy")
    x[37] = 1e36
    np.save("x.npy", x)
    state = torch.load("epochs/epoch-9.pt", weights_only=True)
    torch.save({**state, "head.weight": 1e6 * state["head.weight"]}, "epochs/epoch-9.pt")
    command.refused(
        r"The loss of sample 37 is (nan|inf) at epochs/epoch-9\.pt, in batch 2\..*kept",
        *flags("epochs"),
    )
    assert set(ScoreLog.read("scores/log").scan()["sample_id"].to_pylist()) == {*range(32)}


def test_a_full_disk_is_told_and_the_rest_done_later(folder, command, monkeypatch):
    score_data(config(out="whole"))
    sync, calls = os.fsync, [0]

    def full(file):
        calls[0] += 1
        if calls[0] > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sync(file)

    monkeypatch.setattr("gradmimic.units.SECONDS", 0.0)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        command.refused(
            r"cannot write to scores: .*No space left on device.*kept: make room, and start the "
            "same command again",
            *flags("epochs"),
        )
    assert 0 < rows_of("scores/log").num_rows < 480
    assert command(*flags("epochs"))[0] == 0
    assert rows_of("scores/log").equals(rows_of("whole/log"))


def test_the_environment_says_which_process_this_is(monkeypatch, folder):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert find_place() == (1, 2, 1)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert find_place() == (1, 2, 0)
    with pytest.raises(ConfigError, match="overwrite is given to 2 processes"):
        score_data(config(overwrite=True))
    monkeypatch.setattr(gradmimic.run.place, "PATIENCE", 0.1)
    with pytest.raises(
        UsageError, match="process 1 of 2 waits for process 0, which has not opened"
    ):
        score_data(config())
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UsageError, match="process 0 is done, but of 2 processes some are not"):
        score_data(config())
    monkeypatch.setenv("RANK", "1")
    assert score_data(config()) is None
    monkeypatch.setenv("RANK", "0")
    done = score_data(config())
    assert (done.visits, done.scored) == (480, 0)
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK")
    score_data(config(out="one"))
    assert rows_of("runs/scores/log").equals(rows_of("one/log"))
    for name, value in (("RANK", "2"), ("RANK", "-1"), ("RANK", "x"), ("WORLD_SIZE", "0")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=rf"{name}={value}.*0 ≤ RANK < WORLD_SIZE"):
            find_place()
        monkeypatch.delenv(name)


# A process as torchrun would start it, which writes a part for every batch.
CHILD = """
import sys
import gradmimic.units
from gradmimic.cli import main
gradmimic.units.SECONDS = 0.0
main()
"""


def start(processes, arguments):
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", CHILD, *arguments],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(processes), "COLUMNS": "200"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def kill_midway(children, log, new_parts):
    """Send SIGKILL to all once some of the work is done, whatever they are at just then."""

    def parts():
        return len(list(log.glob("part-*.parquet")))

    enough, since = parts() + new_parts, time.monotonic()
    while parts() < enough and any(child.poll() is None for child in children):
        assert time.monotonic() - since < 120
        time.sleep(0.001)
    for child in children:
        child.kill()
    for child in children:
        child.communicate()


def finish(children):
    printed = [child.communicate(timeout=240) for child in children]
    assert [child.returncode for child in children] == [0] * len(children), printed
    return [out for out, _ in printed]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_two_killed_processes_are_finished_by_one(folder, command):
    """The quick case: one round of killing; the slow one below has many."""
    kill_midway(start(2, flags("epochs", batch_size=2)), folder / "scores/log", 9)
    there = rows_of("scores/log").num_rows
    assert 0 < there < 3 * 480
    status, printed = command(*flags("epochs", batch_size=2))
    assert status == 0, printed.err
    score_data(config(out="whole", batch_size=2))
    assert rows_of("scores/log").equals(rows_of("whole/log"))
    assert not list((folder / "scores/log").glob(".*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("last", [1, 2, 3])
def test_killed_at_random_points_it_ends_as_if_undisturbed(tmp_path, monkeypatch, last):
    monkeypatch.chdir(tmp_path)
    write_training(tmp_path, n=1500)
    arguments = flags("epochs", batch_size=4)
    chance, log = random.Random(last), tmp_path / "scores/log"  # noqa: S311
    sizes = []
    for _ in range(4):
        kill_midway(start(2, arguments), log, chance.randrange(0, 60))
        time.sleep(chance.uniform(0, 0.05))
        sizes.append(rows_of(log).num_rows if list(log.glob("part-*")) else 0)
        kinds = {entry.name.split("-")[0] for entry in log.iterdir()}
        assert kinds <= {"part", "run.json", ".part", ".run.json.tmp", ".done"}
    assert sizes == sorted(sizes)
    printed = finish(start(last, arguments))
    assert "visits" in printed[0]
    assert all(out == "" for out in printed[1:])
    score_data(config(out="whole", batch_size=4))
    assert rows_of(log).equals(rows_of("whole/log"))
    ranks = set(ScoreLog.read(log).scan(["rank"])["rank"].to_pylist())
    assert ranks >= {*range(last)}
    assert not list(log.glob(".*"))


@pytest.mark.slow
def test_torchrun_starts_it(folder):
    pytest.importorskip("torch.distributed.run")
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "gradmimic",
         *flags("epochs")],
        check=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    score_data(config(out="whole"))
    assert rows_of("scores/log").equals(rows_of("whole/log"))


def test_help_names_the_keys(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    status, printed = command("score", "--help")
    assert status == 0
    for text in (
        "Weights of one training",
        "--reference",
        "--canary-rate",
        "torchrun",
        "--overwrite",
    ):
        assert text in printed.out
