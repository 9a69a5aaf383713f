"""Other scorers of ``gradmimic score``: from the passes that score mimic."""

import numpy as np
import pytest
import torch
from test_cli_score import GIVEN, config, write_training
from torch.nn import functional as F
from typer.testing import CliRunner

from gradmimic import Outputs, ScoreLog, mimic_scores
from gradmimic.cli import app
from gradmimic.errors import ConfigError
from gradmimic.run.other_scorers import OFFLINE
from gradmimic.run.restore import restore
from gradmimic.run.score import score_data
from gradmimic.scorers import SCORERS, HeadPass


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_training(tmp_path)
    return tmp_path


def rows(out, scorer, epoch, canary=False):
    table = ScoreLog.read(f"{out}/log").scan().to_pandas()
    chosen = (table.scorer == scorer) & (table.epoch == epoch) & (table.canary.notna() == canary)
    return table[chosen].sort_values("sample_id")


def test_others_come_from_the_same_passes_and_are_right(folder):
    score_data(config(out="alone"))
    summary = score_data(config(out="all", scorers=",".join(OFFLINE)))
    assert {*summary.apart} == {"mimic", *OFFLINE}
    assert summary.apart["reference_loss"].value > 0.7
    x, y = torch.tensor(np.load("x.npy")), torch.tensor(np.load("noisy.npy"))
    model, better = (
        restore(f, x.numpy(), "checkpoint") for f in ("epochs/epoch-9.pt", "better.pt")
    )
    h = model.encode(x)
    seen = HeadPass.of(h, model(x), y, model.head.weight, model.head.bias)
    reference = F.cross_entropy(better(x), y, reduction="none")
    losses = lambda m, batch: F.cross_entropy(m(batch[0]), batch[1], reduction="none")
    cosine = mimic_scores(model.head, better.head, (h, y), losses, variant="cosine")
    expected = {
        **{name: SCORERS[name]()(seen) for name in ("loss", "el2n", "grand", "margin", "gwa")},
        "reference_loss": -reference,
        "rho": seen.losses - reference,
        "mimic_cosine": cosine,
    }
    for name, own in expected.items():
        np.testing.assert_allclose(rows("all", name, 0).score, own.detach(), atol=2e-3, rtol=2e-3)
    for epoch in (0, 1):
        for canary in (False, True):
            alone, same = (rows(out, "mimic", epoch, canary) for out in ("alone", "all"))
            np.testing.assert_array_equal(alone.score, same.score)
        assert len(rows("all", "grad_match", epoch)) == len(x)


def test_a_table_of_outputs_says_what_the_reference_does(folder):
    x, y = np.load("x.npy"), np.load("noisy.npy")
    logits = 3 * np.eye(3)[np.arange(200) % 3]
    Outputs(range(200), logits).write(folder / "said.parquet")
    score_data(config(out="table", reference="said.parquet", scorers="reference_loss,loss"))
    found = rows("table", "reference_loss", 1)
    expected = F.cross_entropy(torch.tensor(logits), torch.tensor(y[:200]), reduction="none")
    np.testing.assert_allclose(found.score, -expected, atol=1e-5)
    assert found.sample_id.tolist() == list(range(200))
    assert len(x) > 200


def test_a_stopped_run_goes_on_with_the_same_scores(folder):
    score_data(config(out="whole", scorers="rho,margin"))

    class StoppedError(Exception):
        pass

    done = []

    def progress(_what, _samples):
        def on_batch(samples):
            done.append(samples)
            if len(done) > 6:
                raise StoppedError

        return on_batch

    with pytest.raises(StoppedError):
        score_data(config(out="halves", scorers="rho,margin"), progress)
    score_data(config(out="halves", scorers="rho,margin"))
    for name in ("mimic", "rho", "margin"):
        whole, halves = (rows(out, name, 1).score for out in ("whole", "halves"))
        np.testing.assert_allclose(halves, whole, atol=1e-6)
    rows_before = len(ScoreLog.read("halves/log").scan())
    score_data(config(out="halves", scorers="rho,margin"))  # nothing is left to do
    assert len(ScoreLog.read("halves/log").scan()) == rows_before
    with pytest.raises(ConfigError, match="scorers"):
        score_data(config(out="halves", scorers="rho"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"scorers": "agra"}, "There is no scorer 'agra' here; expected loss"),
        ({"scorers": "mimic_cosine", "align": "outputs"}, "Expected a file of weights, align none"),
        ({"scorers": "mimic_cosine", "params": "all"}, "and params head; or leave it out"),
    ],
)
def test_scorers_that_cannot_be_are_refused(keys, message):
    with pytest.raises(ConfigError, match=message):
        config(**keys)


def test_weights_on_other_layers_are_refused(folder):
    write_other = folder / "other"
    write_other.mkdir()
    write_training(write_other, n=120)
    state = torch.load(write_other / "better.pt")
    state["trunk.0.weight"] += 1
    torch.save(state, "better.pt")
    with pytest.raises(ConfigError, match="has other layers below the head than the checkpoints"):
        score_data(config(scorers="mimic_cosine"))


def test_the_command_line_prints_how_well_each_tells_canaries(folder):
    keys = {**GIVEN, "out": "cli", "scorers": "loss, gwa"}
    pairs = [f"--{name.replace('_', '-')}={value}" for name, value in keys.items()]
    result = CliRunner().invoke(app, ["score", "epochs", *pairs])
    assert result.exit_code == 0, result.output
    assert "gwa (" in result.output
    assert "loss (" in result.output
