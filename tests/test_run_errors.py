"""Runs that cannot be: what is said, when, and what is left alone."""

import sys

import numpy as np
import pytest
from blobs import blob_keys, run_blobs, write_blobs

from gradmimic.errors import (
    ConfigError,
    DataError,
    LossError,
    MissingExtraError,
    ParameterError,
)
from gradmimic.run.config import RunConfig
from gradmimic.run.job import run_job


@pytest.fixture
def folder(tmp_path):
    write_blobs(tmp_path)
    return tmp_path


def test_an_earlier_run_is_only_replaced_on_request(folder):
    metrics, _ = run_blobs(folder)
    out = folder / "run"
    (out / "mine.txt").write_text("stays")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"run already holds a run \(config.yaml\). Give another"):
        run_blobs(folder, seed=1)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    replaced, table = run_blobs(folder, seed=1, overwrite=True, epochs=2)
    assert replaced["auroc"] != metrics["auroc"]
    assert set(table["visits"].to_pylist()) == {2}  # nothing of the earlier log is left
    assert (out / "mine.txt").read_text() == "stays"


def test_the_reference_of_the_run_that_would_be_replaced_is_kept(folder):
    run_blobs(folder)
    own = folder / "run" / "reference.pt"
    with pytest.raises(
        ConfigError, match=r"reference.pt is part of the run that would be replaced"
    ):
        run_blobs(folder, trusted=..., reference=str(own), overwrite=True)
    assert own.exists()


def test_bad_input_leaves_an_earlier_run_alone(folder):
    run_blobs(folder)
    before = sorted(folder.rglob("*"))
    for changes, error in (
        ({"noise_rate": 2.0}, ConfigError),
        ({"labels": "none.npy"}, ValueError),
    ):
        with pytest.raises(error):
            run_blobs(folder, overwrite=True, **changes)
    assert sorted(folder.rglob("*")) == before


def test_an_output_folder_that_cannot_be(folder):
    (folder / "file").write_text("")
    with pytest.raises(ConfigError, match=r"Cannot write to the output folder .*file/run"):
        run_blobs(folder, out=str(folder / "file" / "run"))


def test_without_a_report_its_libraries_are_not_needed(folder, monkeypatch):
    for library in ("altair", "vl_convert", "jinja2"):
        monkeypatch.setitem(sys.modules, library, None)
    run_blobs(folder, report=False)
    assert not (folder / "run" / "report.html").exists()


@pytest.mark.parametrize("library", ["altair", "vl_convert", "jinja2"])
def test_a_missing_library_is_missed_before_anything_else(folder, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=rf"{library}.*pip install 'gradmimic\[report\]'"):
        run_blobs(folder, report=True, data="does not even exist")
    assert not (folder / "run").exists()


@pytest.mark.parametrize("lr", [1e30, float("inf")])
def test_losses_that_are_not_finite(folder, lr):
    with pytest.raises(LossError, match="losses are NaN or infinite.* lower the learning rate"):
        run_blobs(folder, lr=lr)
    run_blobs(folder, out=str(folder / "after"))  # nothing of the broken pass is left behind


def test_parameters_that_do_not_exist_are_missed_before_training(folder):
    def progress(what, _steps):
        pytest.fail(f"{what} was trained")

    config = RunConfig(**blob_keys(folder, trunk="trained", params="trunk.9.*"))
    with pytest.raises(ParameterError, match="matches no parameter"):
        run_job(config, progress)


def test_models_that_do_not_take_the_data(folder):
    with pytest.raises(ConfigError, match=r"model='cnn' does not take inputs of shape \[4\]"):
        run_blobs(folder, model="cnn")


def test_one_class_is_refused_before_any_training(folder):
    np.save(folder / "one.npy", np.zeros(240, dtype=np.int64))
    with pytest.raises(DataError, match=r"all 240 labels of .* are 0, so none can be wrong"):
        run_blobs(folder, labels="one.npy")
    assert not (folder / "run").exists()
