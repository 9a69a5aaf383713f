"""A run on pairs that is killed goes on as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from clip_runs import clip_keys, run_pairs, write_pools, write_tar

from gradmimic import ScoreLog
from gradmimic.errors import ConfigError, DataError
from gradmimic.run.clip import pool, read
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.job import run_clip
from gradmimic.run.config import save_config

pytest.importorskip("PIL", reason="needs the extra 'images'")

MORE = {"epochs": 4, "retrain": True, "reference_start": "other", "weighting": "posterior"}


class StoppedError(Exception):
    """Raised in the middle of a training."""


def stop_at(stage, step):
    """Return a progress that raises at a step of one training."""

    def progress(what, _total):
        done = 0

        def on_step(count=1):
            nonlocal done
            done += count
            if what == stage and done >= step:
                raise StoppedError

        return on_step

    return progress


def written(out):
    """Return everything that a run leaves, but for what names its folder."""
    out = Path(out)
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    del metrics["config"]["out"]
    rows = ScoreLog.read(out / "log").scan()
    rows = rows.sort_by([("epoch", "ascending"), ("step", "ascending"), ("sample_id", "ascending")])
    names = ("reference", "plain", "reweighted", "selected")
    weights = {
        f"{name}.{key}": own
        for name in names
        for key, own in torch.load(out / f"{name}.pt", weights_only=True).items()
    }
    return metrics, rows, weights


def check_alike(one, other):
    assert one[0] == other[0]
    assert one[1].equals(other[1])
    assert all(torch.equal(own, other[2][name]) for name, own in one[2].items())


@pytest.fixture(scope="module")
def pools(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools")
    write_pools(folder)
    return folder


@pytest.fixture(scope="module")
def whole(pools):
    run_pairs(pools, **MORE, out=str(pools / "whole"))
    return written(pools / "whole")


@pytest.mark.parametrize(
    ("stage", "step"),
    [
        ("re-weighted", 20),
        *(
            pytest.param(*place, marks=pytest.mark.slow)
            for place in [("reference", 1), ("plain", 9), ("re-weighted", 5), ("selected", 14)]
        ),
    ],
)
def test_a_run_cut_off_anywhere_ends_as_if_it_had_not_been(pools, whole, stage, step, tmp_path):
    config = ClipConfig(**clip_keys(pools, **MORE, out=str(tmp_path / "run")))
    with pytest.raises(StoppedError):
        run_clip(config, stop_at(stage, step))
    assert not (tmp_path / "run" / "metrics.json").exists()
    run_clip(config)
    check_alike(whole, written(tmp_path / "run"))
    assert not (tmp_path / "run" / "state").exists()


def test_what_is_done_is_not_done_again(pools, tmp_path):
    config = ClipConfig(**clip_keys(pools, **MORE, out=str(tmp_path / "run")))
    with pytest.raises(StoppedError):
        run_clip(config, stop_at("re-weighted", 15))
    steps = {}

    def progress(what, _total):
        def on_step(count=1):
            steps.setdefault(what, []).append(count)

        return on_step

    run_clip(config, progress)
    assert "plain" not in steps
    assert "reference" not in steps
    assert steps["re-weighted"] == [12, *[1] * 12]  # two epochs of six steps were saved


def test_a_streamed_training_goes_on_at_the_shards_that_are_left(pools, tmp_path, monkeypatch):
    monkeypatch.setattr(read, "MOST_BYTES", 30 * 3 * 16 * 16 * 4)
    monkeypatch.setattr(pool, "ROUND", 40)  # a round for every shard
    keys = {"noise_rate": ..., "epochs": 1, "retrain": True}
    run_pairs(pools, **keys, out=str(tmp_path / "whole"))
    config = ClipConfig(**clip_keys(pools, **keys, out=str(tmp_path / "run")))
    with pytest.raises(StoppedError):
        run_clip(config, stop_at("re-weighted", 5))
    state = torch.load(tmp_path / "run" / "state" / "reweighted.pt", weights_only=True)
    assert (state["at"]["round"], state["at"]["step"]) == (2, 4)
    run_clip(config)
    check_alike(written(tmp_path / "whole"), written(tmp_path / "run"))


@pytest.mark.slow
def test_a_killed_process_loses_one_round(pools, whole, tmp_path):
    config = ClipConfig(**clip_keys(pools, **MORE, out=str(tmp_path / "run")))
    save_config(config, tmp_path / "run.yaml")
    code = "from gradmimic.cli import main; main()"
    command = [sys.executable, "-c", code, "run", str(tmp_path / "run.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    state = tmp_path / "run" / "state" / "reweighted.pt"
    for _ in range(3000):
        if state.exists() or child.poll() is not None:
            break
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert state.exists(), "the run was not killed in the middle of a training"
    subprocess.run(command, env=environment, check=True, capture_output=True)
    check_alike(whole, written(tmp_path / "run"))


def test_another_configuration_does_not_go_on(pools, tmp_path):
    keys = clip_keys(pools, out=str(tmp_path / "run"))
    with pytest.raises(StoppedError):
        run_clip(ClipConfig(**keys), stop_at("plain", 2))
    with pytest.raises(ConfigError, match="already holds a run .* It was cut off, and goes on"):
        run_clip(ClipConfig(**{**keys, "lr": 0.5}))
    run_clip(ClipConfig(**{**keys, "lr": 0.5, "overwrite": True}))
    with pytest.raises(ConfigError, match=r"already holds a run \(config.yaml\). Give another"):
        run_clip(ClipConfig(**{**keys, "lr": 0.5}))


def test_other_data_do_not_go_on(tmp_path):
    write_pools(tmp_path)
    config = ClipConfig(**clip_keys(tmp_path))
    with pytest.raises(StoppedError):
        run_clip(config, stop_at("plain", 2))
    write_tar(tmp_path / "pool" / "00001.tar", [("x", b"", "a")])
    with pytest.raises(DataError, match="the data are not those that the run in .* began with"):
        run_clip(config)
