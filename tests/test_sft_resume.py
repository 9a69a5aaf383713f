"""A run on instructions that was cut off goes on where it was, and mixes nothing in."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sft_runs import (
    keys_of_a_run,  # noqa: F401  a fixture
    logged,
    models_once,  # noqa: F401  a fixture
    rows,
    run,
    write_lines,
)

import gradmimic.units
from gradmimic.errors import ConfigError, LogError
from gradmimic.run.sft import job


def test_a_run_that_was_cut_off_goes_on_where_it_was(keys, tmp_path, monkeypatch):
    run(keys, batch_size=4, out=str(tmp_path / "whole"))
    monkeypatch.setattr(gradmimic.units, "SECONDS", 0.0)  # a part for every batch
    batch, seen = job.SftUnits.batch, []

    def until_third(units, number):
        seen.append(number)
        if len(seen) == 4:
            raise KeyboardInterrupt
        return batch(units, number)

    monkeypatch.setattr(job.SftUnits, "batch", until_third)
    with pytest.raises(KeyboardInterrupt):
        run(keys, batch_size=4)
    done = len(logged(keys["out"]))
    assert 0 < done < 24
    assert not (Path(keys["out"]) / "kept.jsonl").exists()
    monkeypatch.setattr(job.SftUnits, "batch", batch)
    outcome = run(keys, batch_size=4)
    assert outcome.values["scored"] == 24 - done
    for name in ("kept.jsonl", "removed.jsonl"):
        one, other = (Path(out) / name for out in (keys["out"], tmp_path / "whole"))
        assert one.read_bytes() == other.read_bytes()
    for scorer in ("mimic", "reference_loss"):
        assert logged(keys["out"], scorer) == logged(tmp_path / "whole", scorer)
    tokens = [
        pq.read_table(Path(out) / "token_scores.parquet").sort_by("sample_id")
        for out in (keys["out"], tmp_path / "whole")
    ]
    assert tokens[0] == tokens[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_run_loses_no_more_than_it_was_at(keys, tmp_path):
    write_lines(Path(keys["data"]), rows(400))
    flags = ["run", "--task", "sft", "--no-report", "--batch-size", "2", "--canary-rate", "0.1"]
    for name in ("data", "model", "reference", "out"):
        flags += [f"--{name}", keys[name]]
    code = "import gradmimic.units as u; u.SECONDS = 0; from gradmimic.cli import main; main()"
    parts = Path(keys["out"]) / "log"
    for least in (3, 20):
        child = subprocess.Popen([sys.executable, "-c", code, *flags], stderr=subprocess.DEVNULL)
        while len(list(parts.glob("part-*.parquet"))) < least and child.poll() is None:
            time.sleep(0.01)
        child.kill()
        child.wait()
    done = len(logged(keys["out"]))
    assert 20 <= done < 400
    whole = {"batch_size": 2, "canary_rate": 0.1}
    assert run(keys, **whole).values["scored"] == 400 - done
    run(keys, **whole, out=str(tmp_path / "whole"))
    assert logged(keys["out"]) == logged(tmp_path / "whole")
    tokens = [
        pq.read_table(Path(out) / "token_scores.parquet").sort_by("sample_id")
        for out in (keys["out"], tmp_path / "whole")
    ]
    assert tokens[0] == tokens[1]


def test_another_rule_decides_anew_without_scoring(keys):
    run(keys, rule="mixture")
    outcome = run(keys, rule="two_means")
    assert outcome.values["scored"] == 0
    assert (Path(keys["out"]) / "token_scores.parquet").exists()
    assert "rule: two_means" in (Path(keys["out"]) / "config.yaml").read_text()


def test_scores_of_other_work_are_not_mixed_in(keys):
    run(keys)
    with pytest.raises(ConfigError, match="scores of another run: params head instead of all"):
        run(keys, params="all")
    write_lines(Path(keys["data"]), rows(20))
    with pytest.raises(ConfigError, match="scores of another run: other data"):
        run(keys)
    assert run(keys, overwrite=True).values["samples"] == 20


def test_a_folder_with_something_else_is_left_alone(keys):
    out = Path(keys["out"])
    out.mkdir()
    (out / "metrics.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"already holds another run \(metrics\.json\)"):
        run(keys)
    inside = out / "kept.jsonl"
    inside.write_bytes(Path(keys["data"]).read_bytes())
    with pytest.raises(ConfigError, match="is part of the run that would be replaced"):
        run(keys, data=str(inside), overwrite=True)
    assert inside.exists()


@pytest.mark.parametrize("where", ["kept.jsonl", "part-", ".arrows"])
def test_a_full_disk_loses_nothing_that_was_scored(keys, monkeypatch, where):
    def full(*_args, **_named):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        if where == ".arrows":
            patch.setattr(job.TokenJournal, "add", full)
        else:
            rename = Path.replace
            patch.setattr(
                Path, "replace", lambda own, to: full() if where in str(to) else rename(own, to)
            )
            link = os.link
            patch.setattr(os, "link", lambda a, b: full() if where in str(b) else link(a, b))
        with pytest.raises(LogError, match=r"cannot write .*No space left"):
            run(keys)
    assert not (Path(keys["out"]) / "kept.jsonl").exists()
    run(keys)
    assert len(logged(keys["out"])) == 24
    assert (Path(keys["out"]) / "removed.jsonl").exists()


def test_two_processes_share_the_work(keys, tmp_path, monkeypatch):
    run(keys, batch_size=4, out=str(tmp_path / "one"))
    folder = Path(keys["out"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    # the first opens the log and would wait; the second finds it there, and leaves its mark
    with monkeypatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setattr(job, "finish", lambda _out, _place: False)
        assert run(keys, batch_size=4) is None
    assert 0 < len(logged(folder)) < 24
    monkeypatch.setenv("RANK", "1")
    assert run(keys, batch_size=4) is None
    monkeypatch.setenv("RANK", "0")
    assert run(keys, batch_size=4) is not None
    assert logged(folder) == logged(tmp_path / "one")
    one, other = ((out / "kept.jsonl").read_bytes() for out in (folder, tmp_path / "one"))
    assert one == other


def test_a_batch_that_does_not_fit_says_what_to_do(keys, monkeypatch):
    import torch

    def full(*_args, **_named):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(job, "score_units", full)
    with pytest.raises(ConfigError, match=r"out of memory\. .*smaller --batch-size"):
        run(keys)
