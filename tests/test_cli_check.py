"""``gradmimic check``: what it says of a run's reference, and to scripts."""

import json
import re
import sys
from dataclasses import fields

import numpy as np
import pytest
import torch
import typer
from blobs import CLASSES, blob_keys, write_blobs, write_pictures

from gradmimic.cli import app, main
from gradmimic.cli.check import _UNUSED
from gradmimic.errors import ConfigError
from gradmimic.outputs import Outputs
from gradmimic.run.check import check_run
from gradmimic.run.config import RunConfig
from gradmimic.run.models import build_model
from gradmimic.run.train import Rows, train

OWN = {"test": ..., "test_labels": ..., "out": ..., "report": ...}


@pytest.fixture
def folder(tmp_path):
    write_blobs(tmp_path)
    return tmp_path


def keys(folder, **changes):
    return blob_keys(folder, **{**OWN, **changes})


def check(monkeypatch, capsys, keys, *more):
    """Run the command; return its exit status, and what it printed."""
    flags = [part for k, v in keys.items() for part in ("--" + k.replace("_", "-"), str(v))]
    monkeypatch.setattr(sys, "argv", ["gradmimic", "check", *flags, *map(str, more)])
    with pytest.raises(SystemExit) as caught:
        main()
    return caught.value.code or 0, capsys.readouterr()


def trained_on(x, y, model="linear", seed=0):
    made = build_model(model, x, CLASSES, hidden=16, seed=seed)
    rows = Rows(torch.tensor(x), torch.tensor(y))
    train(made, rows, epochs=40, batch_size=16, lr=0.01, weight_decay=0, seed=seed)
    return made


def outputs_of(folder, order=None):
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    values = trained_on(x, y)(torch.tensor(x))
    path = folder / "outputs.parquet"
    Outputs(range(len(x)), values if order is None else values[order]).write(path)
    return {"reference": str(path), "trusted": ...}


def test_a_usable_reference_is_status_0_and_a_table(folder, monkeypatch, capsys):
    status, printed = check(monkeypatch, capsys, keys(folder), "--steps", "50")
    assert status == 0
    text = " ".join(printed.out.split())
    assert "After 50 plain steps, 180 samples: none outputs reference usable usable" in text
    found = check_run(RunConfig(**keys(folder)), steps=50).check
    area = found.alignments["none"].area
    cell = f"{area.value:.3f} ({area.low:.3f} – {area.high:.3f})"
    assert f"AUROC over uniform canaries {cell}" in text
    assert f"Usable: {found.reason}" in text
    assert "rotation" not in text
    assert "reference" in printed.err  # progress
    assert "warm-up" in printed.err
    assert sorted(path.name for path in folder.iterdir()) == [
        "test_x.npy", "test_y.npy", "x.npy", "y.npy",
    ]  # fmt: skip


def test_json_is_all_there_is(folder, monkeypatch, capsys):
    status, printed = check(monkeypatch, capsys, keys(folder), "--json")
    assert (status, printed.err) == (0, "")
    values = json.loads(printed.out)
    expected = check_run(RunConfig(**keys(folder))).as_dict()
    assert values == json.loads(json.dumps(expected))
    assert (values["usable"], values["best"], values["steps"]) == (True, "none", 12)
    assert values["alignments"]["none"]["canaries"] == {"uniform/3": 180, "confusable/3": 180}


def test_a_runs_file_will_do(folder, monkeypatch, capsys):
    config = RunConfig(**blob_keys(folder, rule="two_means"))
    from gradmimic.run.config import save_config

    save_config(config, folder / "run.yaml")
    status, printed = check(monkeypatch, capsys, {}, folder / "run.yaml", "--json", "--seed", "3")
    assert status == 0
    assert json.loads(printed.out)["samples"] == 180
    assert not (folder / "run").exists()


def test_a_useless_reference_is_status_3(folder, monkeypatch, capsys):
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    torch.save(trained_on(x, (y + 1) % CLASSES).state_dict(), folder / "other.pt")
    given = keys(folder, reference=str(folder / "other.pt"), trusted=...)
    status, printed = check(monkeypatch, capsys, given)
    assert status == 3
    text = " ".join(printed.out.split())
    assert "reference useless useless" in text
    assert "Useless: with align='none', AUROC of samples over uniform canaries is 0." in text
    assert "inverted: bad samples score higher than good ones" in text
    assert "classes in another order" in text
    assert (printed.out.count("Useless"), printed.err.count("Error")) == (1, 0)
    status, printed = check(monkeypatch, capsys, given, "--json")
    assert (status, json.loads(printed.out)["best"]) == (3, None)


def test_a_table_of_outputs(folder, monkeypatch, capsys):
    status, printed = check(monkeypatch, capsys, keys(folder, **outputs_of(folder)))
    assert status == 0
    assert "Usable: with align='outputs', AUROC" in printed.out
    assert "none does not fit: align='none' compares weights" in printed.out
    order = torch.randperm(240, generator=torch.Generator().manual_seed(0))
    given = keys(folder, **outputs_of(folder, order), noise_rate=0.3)
    status, printed = check(monkeypatch, capsys, given)
    assert status == 3
    assert "Useless: with align='outputs', AUROC" in printed.out


def test_samples_without_outputs_are_told(folder, monkeypatch, capsys):
    given = keys(folder, **outputs_of(folder))
    half = Outputs.read(folder / "outputs.parquet").of(range(210))[0]
    Outputs(range(210), half).write(folder / "outputs.parquet")
    status, printed = check(monkeypatch, capsys, given)
    assert status == 0
    assert "15 plain steps, 210 samples:" in printed.out
    assert "30 more samples have no outputs in the table." in printed.out


def test_few_samples_are_status_4(tmp_path, monkeypatch, capsys):
    write_blobs(tmp_path, n=150)
    status, printed = check(monkeypatch, capsys, keys(tmp_path))
    assert status == 4
    assert "Unknown: nothing can be told by 90 uniform canaries" in " ".join(printed.out.split())


def test_an_error_is_status_1_and_a_wrong_flag_2(folder, monkeypatch, capsys):
    status, printed = check(monkeypatch, capsys, keys(folder, data="none.npy"), "--json")
    assert (status, printed.out) == (1, "")
    assert "Error: no file or folder none.npy" in printed.err
    torch.save({"head.weight": torch.zeros(5, 4), "head.bias": torch.zeros(5)}, folder / "5.pt")
    given = keys(folder, reference=str(folder / "5.pt"), trusted=...)
    status, printed = check(monkeypatch, capsys, given)
    assert status == 1
    assert "does not fit this run's model" in printed.err
    assert check(monkeypatch, capsys, keys(folder), "--steps", "-1")[0] == 2
    assert check(monkeypatch, capsys, keys(folder), "--rule", "mixture")[0] == 2


def test_a_configuration_that_asks_for_the_wrong_alignment_is_told(folder, monkeypatch, capsys):
    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    other = trained_on(x, y, "mlp", seed=9)
    torch.save(other.state_dict(), folder / "other.pt")
    given = keys(
        folder, reference=str(folder / "other.pt"), trusted=..., model="mlp", hidden=16,
        trunk="trained", align="none", params="head",
    )  # fmt: skip
    status, printed = check(monkeypatch, capsys, given)
    assert status == 0
    text = " ".join(printed.out.split())
    assert "reference useless usable" in text
    assert "Note: This configuration comes to align: none. Give align: outputs." in text
    status, printed = check(monkeypatch, capsys, {**given, "align": "auto", "params": "head"})
    assert (status, "Note" in printed.out) == (0, False)


@pytest.mark.parametrize("reference", ["self", "self-early", "self-average"])
@pytest.mark.parametrize("align", ["none", "transport"])
def test_references_of_the_labels_themselves(folder, reference, align):
    config = RunConfig(**keys(folder, reference=reference, trusted=..., align=align))
    found = check_run(config, steps=5).check
    assert found.usable
    assert ("none" in found.alignments) == (align == "none")


def test_pictures_with_a_trained_trunk(tmp_path):
    pytest.importorskip("PIL", reason="needs the extra 'images'")
    write_pictures(tmp_path / "data", n=160)
    config = RunConfig(
        data=str(tmp_path / "data"), trusted="60:100", hidden=4, image_size=6, trunk="trained",
        noise="symmetric", noise_rate=0.2, lr=0.01,
    )  # fmt: skip
    found = check_run(config, steps=3)
    assert found.check.usable
    assert found.configured == "outputs"


def test_no_steps_will_do_and_fewer_will_not(folder):
    assert check_run(RunConfig(**keys(folder)), steps=0).check.usable
    with pytest.raises(ConfigError, match="steps must be at least 0, got -1"):
        check_run(RunConfig(**keys(folder)), steps=-1)


def test_the_truth_and_the_test_data_are_not_looked_at(folder):
    config = RunConfig(**blob_keys(folder, true_labels="none.npy", test="none.npy"))
    assert check_run(config, steps=5).check.samples == 180


def test_every_flag_is_a_key_of_a_run():
    command = typer.main.get_command(app).commands["check"]
    names = {parameter.name for parameter in command.params} - {"config", "help", "steps", "json"}
    assert names == {key.name for key in fields(RunConfig)} - _UNUSED
    assert {key.name for key in fields(RunConfig)} > _UNUSED


def test_help_tells_the_exit_codes(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    status, printed = check(monkeypatch, capsys, {}, "--help")
    assert status == 0
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", printed.out).split())
    assert "0 the reference is usable, 3 it is useless, 4 nothing can be told" in text
    assert "one pass over the data, at most 300" in text
