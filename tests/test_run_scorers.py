"""Other scorers in a run: logged beside mimic's, compared, and without any part in the training."""

import numpy as np
import pytest
import torch
from blobs import CLASSES, TRUSTED, blob_keys, run_blobs, write_blobs
from typer.testing import CliRunner

from gradmimic import Outputs, ScoreLog
from gradmimic.cli import app
from gradmimic.data import symmetric
from gradmimic.errors import ConfigError
from gradmimic.run.config import RunConfig, load_config
from gradmimic.run.other_scorers import IN_TRAINING
from gradmimic.scorers import SCORERS

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra 'demo'")


@pytest.fixture
def folder(tmp_path):
    write_blobs(tmp_path)
    return tmp_path


def test_the_names_of_the_configuration_are_those_of_the_scorers():
    assert {*IN_TRAINING} == {*SCORERS} - {"mimic"}


FEW = ("reference_loss", "margin", "influence", "mimic_adam")


@pytest.mark.parametrize("others", [FEW, pytest.param(IN_TRAINING, marks=pytest.mark.slow)])
def test_others_are_logged_and_compared_and_change_nothing(folder, others):
    alone, table = run_blobs(folder)
    found, same = run_blobs(folder, out=str(folder / "all"), scorers=list(others))
    assert same.equals(table)
    weights = [torch.load(folder / out / "reweighted.pt") for out in ("run", "all")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    compared = found.pop("scorers")
    for metrics in (alone, found):
        metrics.pop("config")
    assert found == alone

    clean = np.load(folder / "y.npy")[TRUSTED:]
    wrong = symmetric(clean, 0.3, CLASSES, seed=0) != clean
    rows = ScoreLog.read(folder / "all" / "log").scan().to_pandas()
    visits = rows[rows.canary.isna()].groupby("scorer").size()
    assert visits.to_dict() == dict.fromkeys(sorted(["mimic", *others]), 3 * 180)
    assert list(compared) == ["mimic", *others]
    for name, own in compared.items():
        means = rows[rows.canary.isna() & (rows.scorer == name)].groupby("sample_id").score.mean()
        assert own["labels"] == pytest.approx(sklearn_metrics.roc_auc_score(~wrong, means))
        assert {*own["canaries"]} == {f"uniform/{CLASSES}", f"confusable/{CLASSES}"}
    best = {name for name, own in compared.items() if own["labels"] > 0.95}
    assert best >= {"mimic", "reference_loss", "influence"}
    # a scorer's canaries foretell how it finds wrong labels
    for name in best:
        area = compared[name]["canaries"][f"uniform/{CLASSES}"]["value"]
        assert area == pytest.approx(compared[name]["labels"], abs=0.25)


def test_the_command_line_takes_names_and_select_combines_them(folder, monkeypatch):
    monkeypatch.chdir(folder)
    keys = blob_keys(folder, scorers="loss, reference_loss")
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in keys.items() if key != "report"]
    run = CliRunner().invoke(app, ["run", *flags, "--no-report"])
    assert run.exit_code == 0, run.output
    assert "AUROC of reference_loss" in run.output
    chosen = [f"--scorer={name}" for name in ("mimic", "loss", "reference_loss")]
    log = str(folder / "run")
    selected = CliRunner().invoke(app, ["select", log, *chosen, "--aggregate=stacked"])
    assert selected.exit_code == 0, selected.output
    assert "reference_loss" in selected.output


def test_trained_canaries_and_a_table_of_outputs(folder):
    ids = np.arange(TRUSTED, 230)  # ten samples are not in the table
    logits = 4 * np.eye(CLASSES)[np.load(folder / "y.npy")[ids]]
    Outputs(ids, logits).write(folder / "said.parquet")
    keys = {"trusted": ..., "reference": str(folder / "said.parquet"), "canaries": "trained"}
    metrics, _ = run_blobs(folder, scorers="margin,rho", **keys)
    assert metrics["scorers"]["margin"]["labels"] > 0.5
    rows = ScoreLog.read(folder / "run" / "log").scan().to_pandas()
    trained = rows[(rows.scorer == "margin") & rows.canary.notna()]
    assert (trained.weight > 0).all()
    assert rows[rows.scorer == "rho"].sample_id.max() < 230 <= rows.sample_id.max()


@pytest.mark.parametrize("align", ["outputs", pytest.param("auto", marks=pytest.mark.slow)])
def test_a_trained_trunk_has_scores_of_its_last_layer(folder, align):
    keys = {"model": "mlp", "hidden": 8, "trunk": "trained", "align": align}
    metrics, _ = run_blobs(folder, scorers="margin,influence,reference_loss", **keys)
    assert metrics["scorers"]["reference_loss"]["labels"] > 0.9
    rows = ScoreLog.read(folder / "run" / "log").scan().to_pandas()
    steps = {name: {*own.step} for name, own in rows[rows.canary.isna()].groupby("scorer")}
    assert steps["margin"] == steps["influence"] == {*range(36)}
    assert steps["mimic"] <= steps["margin"]  # an alignment on trial logs no mimic score


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scorers": "lost"}, "There is no scorer 'lost' here; expected loss, reference_loss"),
        ({"scorers": "mimic"}, "There is no scorer 'mimic'"),
        ({"scorers": ["loss", "loss"]}, "'loss' comes twice"),
        ({"scorers": "influence", "trusted": None, "reference": "self"}, "needs trusted samples"),
        ({"scorers": "mimic_adam", "align": "outputs"}, "but align is outputs and params head"),
        (
            {"scorers": "mimic_cosine", "trunk": "trained", "params": "all"},
            "but align is none and params all",
        ),
    ],
)
def test_scorers_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, {"data": "x.npy", "trusted": "0:10"} | keys)


def test_names_in_a_file_and_on_the_command_line_are_the_same():
    text = RunConfig(data="x", trusted="0:1", scorers="loss, gwa,")
    assert text.others == RunConfig(data="x", trusted="0:1", scorers=("loss", "gwa")).others
    assert RunConfig(data="x", trusted="0:1").others == ()
