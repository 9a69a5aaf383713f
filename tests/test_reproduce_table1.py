"""``gradmimic reproduce table1``: its figures, what it keeps, and what it refuses."""

import csv
import json
import re
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hub_copies import write_copy, write_features, write_vit
from typer.testing import CliRunner

from gradmimic.cli import app
from gradmimic.data.noise import symmetric
from gradmimic.errors import ConfigError, DataError, GradMimicError
from gradmimic.reproduce import cases, references
from gradmimic.reproduce.problems import open_problem
from gradmimic.reproduce.training import fit, train_reference
from gradmimic.run.self_reference import Recipe


@pytest.fixture
def folder(tmp_path):
    write_features(tmp_path / "mine")
    return tmp_path


def flags(folder, *more):
    """Return the command's arguments: three methods, two levels, two seeds."""
    return [
        "reproduce", "table1", "--set", "mine", "--data", f"mine={folder / 'mine'}",
        "--backbone", "features", "--method", "plain", "--method", "rho", "--method", "mimic",
        "--noise", "0.4", "--noise", "0.6", "--seeds", "2", "--epochs", "2", "--lr", "0.01",
        "--out", str(folder / "out"), *more,
    ]  # fmt: skip


def call(folder, *more):
    result = CliRunner().invoke(app, flags(folder, *more), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def read_csv(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def cells(folder):
    """Return what is kept, by method, noise, seed, τ and learning rate."""
    kept = [json.loads(file.read_text()) for file in (folder / "out" / "cells").iterdir()]
    names = ("method", "noise", "seed", "temperature", "lr")
    return {tuple(own["cell"].get(name) for name in names): own["values"] for own in kept}


@pytest.fixture
def trained(monkeypatch):
    """Count trainings: of methods, and of references."""
    counts = {"methods": [], "references": 0}

    def counted(problem, labels, method, recipe, **more):
        counts["methods"].append(method)
        return fit(problem, labels, method, recipe, **more)

    def reference(*arguments):
        counts["references"] += 1
        return train_reference(*arguments)

    monkeypatch.setattr(cases, "fit", counted)
    monkeypatch.setattr(references, "train_reference", reference)
    return counts


def test_figures_are_means_of_the_trainings(folder):
    call(folder)
    problem = open_problem("mine", folder / "mine", "features", "probe", folder)
    expected, told = {}, []
    for seed in (0, 1):
        recipe = Recipe(2, 32, 0.01, 1e-5, seed)
        reference = train_reference(problem, recipe)
        with torch.no_grad():
            right = reference(problem.test.inputs).argmax(1) == problem.test.labels
        told.append(right.double().mean().item())
        for noise in (0.4, 0.6):
            clean = problem.train.labels.numpy()
            labels = torch.from_numpy(symmetric(clean, noise, 3, seed))
            assert int((labels.numpy() != clean).sum()) == int(noise * 60)
            for method in ("plain", "rho", "mimic"):
                found = fit(problem, labels, method, recipe, reference=reference)
                expected.setdefault((str(noise), method), []).append(found.curve.accuracy[-1])
    rows = read_csv(folder / "out" / "table1.csv")
    assert len(rows) == 2 * 4
    for row in rows:
        values = expected.get((row["column"], row["method"]), told)
        assert float(row["mean"]) == pytest.approx(statistics.fmean(values), abs=1e-7)
        assert float(row["deviation"]) == pytest.approx(np.std(values, ddof=1), abs=1e-7)
        assert (row["seeds"], row["set"], row["tuning"]) == ("2", "mine", "probe")
    text = (folder / "out" / "table1.md").read_text()
    mean, deviation = (
        100 * f(expected["0.4", "mimic"]) for f in (statistics.fmean, statistics.stdev)
    )
    assert f"{mean:.2f} ± {deviation:.2f}" in text
    lead = statistics.fmean(
        statistics.fmean(expected[noise, "mimic"]) - statistics.fmean(expected[noise, "plain"])
        for noise in ("0.4", "0.6")
    )
    assert "mimic is not behind plain in" in text
    assert f"its lead is {100 * lead:+.2f} points on average" in text
    written = json.loads((folder / "out" / "table1.json").read_text())
    assert {"versions", "cores"} <= {*written["machine"]}
    assert written["tables"][0]["title"] == (
        "Accuracy in %, features, lr 0.01, τ 1.0, epochs 2; by the share of wrong labels"
    )
    assert (folder / "out" / "table1-accuracy.svg").read_text().startswith("<svg")


def test_nothing_is_computed_twice(folder, trained):
    first = call(folder)
    assert sorted(trained["methods"]) == ["mimic"] * 4 + ["plain"] * 4 + ["rho"] * 4
    assert trained["references"] == 2  # one a seed, for all levels of noise
    before = cells(folder)
    assert call(folder).split("Markdown")[0] == first.split("Markdown")[0]
    assert len(trained["methods"]) == 12
    assert trained["references"] == 2
    assert cells(folder) == before


def test_a_changed_setting_adds_the_cells_that_read_it(folder, trained):
    call(folder)
    trained["methods"].clear()
    call(folder, "--temperature", "0.5")
    assert trained["methods"] == ["mimic"] * 4
    call(folder, "--seeds", "3")
    assert sorted(trained["methods"][4:]) == ["mimic"] * 2 + ["plain"] * 2 + ["rho"] * 2
    call(folder, "--lr", "0.02")
    assert len(trained["methods"]) == 4 + 6 + 12
    assert {key[4] for key in cells(folder)} == {0.01, 0.02}
    write_features(folder / "mine", seed=1)  # other contents under the same name
    call(folder)
    assert len(trained["methods"]) == 4 + 6 + 12 + 12


def test_a_table_that_was_stopped_goes_on(folder, trained, monkeypatch):
    counted = cases.fit

    def stopped(*arguments, **more):
        if len(trained["methods"]) == 5:
            raise KeyboardInterrupt
        return counted(*arguments, **more)

    monkeypatch.setattr(cases, "fit", stopped)
    CliRunner().invoke(app, flags(folder))
    assert len(cells(folder)) == 5
    assert not (folder / "out" / "table1.md").exists()
    (folder / "out" / "cells" / "half.json").write_text('{"cell"')  # what a full disk may leave
    monkeypatch.setattr(cases, "fit", counted)
    went_on = call(folder)
    assert len(trained["methods"]) == 12
    assert trained["references"] == 2
    (folder / "out").rename(folder / "stopped")
    assert call(folder).split("Markdown")[0] == went_on.split("Markdown")[0]


@pytest.mark.slow
def test_a_table_that_was_killed_goes_on(folder):
    command = [sys.executable, "-m", "gradmimic", *flags(folder)]
    kept = folder / "out" / "cells"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (kept.is_dir() and any(kept.glob("*.json"))):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = cells(folder)
    assert before
    call(folder)
    after = cells(folder)
    assert len(after) == 12
    assert all(after[name] == values for name, values in before.items())


def test_pictures_probed_and_tuned_in_full(tmp_path):
    copy, vit = write_copy(tmp_path / "copy", "cifar10"), write_vit(tmp_path / "vit")
    result = CliRunner().invoke(
        app,
        [
            "reproduce", "table1", "--set", "cifar10", "--data", f"cifar10={copy}",
            "--backbone", str(vit), "--noise", "0.5", "--seeds", "1", "--epochs", "1",
            "--method", "plain", "--method", "agra", "--out", str(tmp_path / "out"),
        ],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0
    rows = read_csv(tmp_path / "out" / "table1.csv")
    assert [(row["tuning"], row["method"]) for row in rows] == [
        ("probe", "plain"), ("probe", "agra"), ("full", "plain"), ("full", "agra"),
    ]  # fmt: skip
    assert len(list((tmp_path / "out" / "features").iterdir())) == 2


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (
            ["--method", "mimick"],
            ConfigError,
            r"no method 'mimick'; expected plain, .*mimic",
        ),
        (["--tuning", "half"], ConfigError, r"no tuning 'half'; expected probe, full"),
        (["--set", "dtdd"], ConfigError, r"There is no set 'dtdd'; the sets are dtd"),
        (["--data", "mine"], ConfigError, r"Expected --data NAME=FOLDER, .*; got 'mine'"),
        (["--data", "mine=none"], DataError, r"no folder none \(from .*\) for the set mine"),
        (["--noise", "1.4"], ConfigError, r"expected noise as 0.4, .* got '1.4'"),
        (["--seeds", "0"], ConfigError, r"expected seeds above 0, got 0"),
        (["--lr", "-1"], ConfigError, r"expected lr above 0, got -1"),
        (["--tuning", "full"], ConfigError, r"features have no weights to train"),
    ],
)
def test_what_cannot_be(folder, more, error, message):
    result = CliRunner().invoke(app, flags(folder, *more))
    assert isinstance(result.exception, error)
    assert isinstance(result.exception, GradMimicError)
    assert re.search(message, str(result.exception))
    assert not (folder / "out" / "cells").exists()


def test_features_that_do_not_fit_their_labels(folder):
    np.save(folder / "mine" / "features_train.npy", np.ones((59, 4)))
    result = CliRunner().invoke(app, flags(folder))
    assert isinstance(result.exception, DataError)
    assert "features_train.npy has 59 rows" in str(result.exception)
