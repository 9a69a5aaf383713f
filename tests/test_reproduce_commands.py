"""Every command of ``gradmimic reproduce`` computes each cell once, and shows what they came to."""

import csv
import json
import sys

import numpy as np
import pytest
from blobs import make_blobs
from typer.testing import CliRunner

from gradmimic.cli import app
from gradmimic.errors import ConfigError, DataError
from gradmimic.reproduce import ablations, curves, detection, efficiency, quality

MODULES = {
    module.__name__.rpartition(".")[2]: module
    for module in (ablations, curves, detection, efficiency, quality)
}
QUICK = [
    pytest.param(name, marks=pytest.mark.slow) if name == "detection" else name for name in MODULES
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Features of three clouds, with a column of labels that people might have given."""
    folder = tmp_path_factory.mktemp("blobs")
    for part, n, seed in (("train", 160, 0), ("test", 90, 1)):
        x, y = make_blobs(n, seed)
        np.save(folder / f"features_{part}.npy", x)
        np.save(folder / f"labels_{part}.npy", y)
    return folder


def arguments(name, folder, out, **more):
    options = {"set": "blobs", "data": f"blobs={folder}", "backbone": "features", "seeds": 1}
    options |= {"epochs": 2, "lr": 0.01, "out": out, **more}
    flat = [(f"--{key.replace('_', '-')}", str(value)) for key, value in options.items()]
    return ["reproduce", name, *(text for pair in flat for text in pair)]


def call(*given):
    return CliRunner().invoke(app, list(given), catch_exceptions=False)


def small(monkeypatch):
    """Keep what a quick test computes small."""
    monkeypatch.setattr(sys, "argv", ["gradmimic", "reproduce"])
    groups = {"temperature": ("probe", ablations.GROUPS["temperature"][1][:2])}
    monkeypatch.setattr(ablations, "GROUPS", groups)
    monkeypatch.setattr(efficiency, "RANKED", ("mimic", "loss"))


@pytest.mark.parametrize("name", QUICK)
def test_a_command_writes_its_tables_and_goes_on_from_what_it_has(
    name, data, tmp_path, monkeypatch
):
    small(monkeypatch)
    out, noise = tmp_path / "out", "0.4"
    result = call(*arguments(name, data, out, noise=noise))
    assert result.exit_code == 0
    assert "blobs" in result.stdout
    text = (out / f"{name}.md").read_text()
    assert text.startswith("```sh\ngradmimic reproduce\n```")
    content = json.loads((out / f"{name}.json").read_text())
    assert content["machine"]["versions"]["torch"]
    with (out / f"{name}.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    points = [point for table in content["tables"] for point in table["points"]]
    assert len(rows) == len(points) > 0
    assert sorted(out.glob(f"{name}-*.svg"))

    def never(_cases, _cell):
        raise AssertionError("a cell that is kept was computed again")

    monkeypatch.setattr(MODULES[name], "compute", never)
    again = call(*arguments(name, data, out, noise=noise))
    assert again.exit_code == 0
    assert json.loads((out / f"{name}.json").read_text())["tables"] == content["tables"]
    with pytest.raises(AssertionError, match="computed again"):
        call(*arguments(name, data, out, noise=noise, lr=0.02))  # another setting, another cell


def test_a_command_that_was_stopped_keeps_what_it_had(data, tmp_path, monkeypatch):
    small(monkeypatch)
    whole, done = quality.compute, []

    def stopped(cases, cell):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(cell)
        return whole(cases, cell)

    monkeypatch.setattr(quality, "compute", stopped)
    given = arguments("quality", data, tmp_path, seeds=3, noise="0.2")
    assert call(*given).exit_code != 0
    assert len(done) == 2
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2
    seen = []

    def counted(cases, cell):
        seen.append(cell["seed"])
        return whole(cases, cell)

    monkeypatch.setattr(quality, "compute", counted)
    assert call(*given).exit_code == 0
    assert seen == [2]


BAD = {
    "no such noise": ({"noise": "0.4x"}, ConfigError, "expected noise as 0.4, pair:0.4"),
    "a rate above 1": ({"noise": "1.5"}, ConfigError, "with a rate in [0, 1]"),
    "no such column": ({"noise": "column:said"}, DataError, "has no column 'said'"),
    "a set that is not asked for": ({"data": "other=x"}, DataError, "which is no set of this"),
    "no folder": ({"data": "blobs=nowhere"}, DataError, "no folder nowhere"),
    "no name": ({"data": "nowhere"}, ConfigError, "Expected --data NAME=FOLDER"),
    "no seeds": ({"seeds": 0}, ConfigError, "expected seeds above 0, got 0"),
    "no lr": ({"lr": 0}, ConfigError, "expected lr above 0"),
    "nothing to find": ({"noise": "0"}, ConfigError, "so there is nothing to find"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, data, tmp_path):
    more, error, words = BAD[case]
    with pytest.raises(error) as caught:
        call(*arguments("detection", data, tmp_path, **more))
    assert words in str(caught.value)


def test_features_of_another_number_of_rows_are_refused(data, tmp_path):
    for name in ("features_test", "labels_train", "labels_test"):
        np.save(tmp_path / f"{name}.npy", np.load(data / f"{name}.npy"))
    np.save(tmp_path / "features_train.npy", np.load(data / "features_train.npy")[:-1])
    with pytest.raises(DataError, match="159 rows, but"):
        call(*arguments("quality", tmp_path, tmp_path / "out"))
