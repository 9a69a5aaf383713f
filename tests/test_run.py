"""Whole runs on tiny data: what is written, and that it is right."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from blobs import CLASSES, TRUSTED, blob_keys, read_outputs, run_blobs, write_blobs, write_pictures
from test_report import check_safe, data_in

from gradmimic import ScoreLog
from gradmimic.data import symmetric
from gradmimic.errors import ConfigError, DataError, ReferenceMismatchError
from gradmimic.outputs import Outputs
from gradmimic.run.config import RunConfig, load_config
from gradmimic.run.job import OUTPUTS, run_job
from gradmimic.run.models import build_model
from gradmimic.run.outcome import notes_on

sklearn_metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra 'demo'")
pytest.importorskip("vl_convert", reason="needs the extra 'report'")

SEPARATE = {"trusted": ..., "noise": ..., "noise_rate": ...}


@pytest.fixture
def folder(tmp_path):
    write_blobs(tmp_path)
    return tmp_path


def weights(out):
    return torch.load(Path(out), weights_only=True)


# What is written


def test_the_numbers_follow_from_what_is_written(folder):
    config = RunConfig(**blob_keys(folder, report=True))
    steps = {}

    def progress(what, total):
        steps[what] = [0, total]

        def step():
            steps[what][0] += 1

        return step

    outcome = run_job(config, progress)
    out = Path(config.out)
    assert sorted(path.name for path in out.iterdir()) == sorted(OUTPUTS)
    assert load_config(out / "config.yaml", {}) == config
    assert steps == {name: [36, 36] for name in ("plain", "re-weighted")} | {"reference": [36, 36]}

    metrics, table = read_outputs(out)
    clean = np.load(folder / "y.npy")[TRUSTED:]
    given = symmetric(clean, 0.3, CLASSES, seed=0)
    wrong = given != clean
    removed = ~table["keep"].to_numpy()
    score = table["score"].to_numpy()
    assert table["sample_id"].to_pylist() == list(range(TRUSTED, 240))
    assert metrics["samples"] == metrics["kept"] + metrics["removed"] == 180
    assert (metrics["trusted"], metrics["skipped"]) == (60, [])
    assert metrics["removed"] == removed.sum()
    assert metrics["noise_rate"] == wrong.mean() == 0.3
    assert metrics["auroc"] == pytest.approx(sklearn_metrics.roc_auc_score(~wrong, score))
    assert metrics["auroc"] > 0.95
    scores = sklearn_metrics.precision_recall_fscore_support(wrong, removed, average="binary")
    assert list(metrics["detection"].values()) == pytest.approx(scores[:3])
    assert metrics["detection"]["f1"] > 0.7

    log, real = ScoreLog.read(out / "log"), pc.field("canary").is_null()
    for epoch, value in metrics["auroc_per_epoch"].items():
        rows = log.scan(filter=real & (pc.field("epoch") == int(epoch))).sort_by("sample_id")
        assert value == pytest.approx(sklearn_metrics.roc_auc_score(~wrong, rows["score"]))
    assert list(metrics["auroc_per_epoch"]) == ["0", "1", "2"]

    x, y = np.load(folder / "test_x.npy"), np.load(folder / "test_y.npy")
    for name in ("plain", "reweighted", "reference"):
        state = {key: value.numpy() for key, value in weights(out / f"{name}.pt").items()}
        scaled = (x - state["scale.mean"]) / state["scale.spread"]
        accuracy = ((scaled @ state["head.weight"].T + state["head.bias"]).argmax(1) == y).mean()
        if name == "reference":
            assert metrics["reference_accuracy"] == pytest.approx(accuracy)
        else:
            assert metrics[name]["accuracy"][-1] == pytest.approx(accuracy)
            assert len(metrics[name]["loss"]) == 3
    plain, reweighted = (metrics[name]["accuracy"][-1] for name in ("plain", "reweighted"))
    assert metrics["gain"] == pytest.approx(reweighted - plain)
    assert reweighted >= plain > 0.8
    assert metrics["config"] == json.loads(json.dumps(config.as_dict()))

    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"AUROC {metrics['auroc']:.3f}" in " ".join(check_safe(page).text.split())
    assert f"({100 * metrics['gain']:+.1f} points; 95 % interval" in page
    scores = data_in(page, "thresholds-scores")
    assert scores["removed"][scores["start"]] == metrics["removed"]
    wrong = scores["tallies"][1]
    assert wrong["total"] == round(metrics["noise_rate"] * metrics["samples"])
    spots = data_in(page, "spec-visits")["datasets"]["rows"]
    assert [row["auroc"] for row in spots] == [
        area["value"] for area in metrics["quality"]["auroc_by_visit"]
    ]
    rates = {row["class"]: row for row in data_in(page, "spec-classes")["datasets"]["rows"]}
    by_class = metrics["quality"]["by_class"]
    assert {name: row["value"] for name, row in rates.items()} == {
        name: pytest.approx(1 - own["value"]) for name, own in by_class.items()
    }
    pairs = data_in(page, "spec-confusion")["datasets"]["rows"]
    assert 0 < sum(row["samples"] for row in pairs) <= metrics["removed"]
    assert all(path.exists() for path in outcome.files.values())
    assert [row.value for row in outcome.metrics if "F1" in row.name] == [
        metrics["detection"]["f1"]
    ]


def test_a_run_repeats_exactly(folder):
    metrics, table = run_blobs(folder)
    again, same = run_blobs(folder, out=str(folder / "again"))
    other, _ = run_blobs(folder, out=str(folder / "other"), seed=1)
    assert same.equals(table)
    for found in (metrics, again, other):
        found.pop("config")
    assert again == metrics
    assert other != metrics


def test_the_truth_changes_nothing_but_metrics(folder):
    y = np.load(folder / "y.npy")
    np.save(folder / "truth.npy", y)
    np.save(folder / "lies.npy", np.random.default_rng(1).permutation(y))
    plain = {"noise": ..., "noise_rate": ...}
    found = {
        name: run_blobs(folder, true_labels=labels, out=str(folder / name), **plain)
        for name, labels in (("none", ...), ("truth", "truth.npy"), ("lies", "lies.npy"))
    }
    without, table = found["none"]
    assert without["auroc"] is without["detection"] is without["noise_rate"] is None
    for name in ("truth", "lies"):
        metrics, same = found[name]
        assert same.equals(table)
        assert metrics["plain"] == without["plain"]
        assert metrics["reweighted"] == without["reweighted"]
        for file in ("reference.pt", "plain.pt", "reweighted.pt"):
            one, two = weights(folder / "none" / file), weights(folder / name / file)
            assert all(torch.equal(one[key], two[key]) for key in one)
    assert found["truth"][0]["noise_rate"] == 0
    assert found["truth"][0]["auroc"] is None
    assert found["lies"][0]["noise_rate"] > 0.5


def test_infinite_temperature_is_plain_training(folder):
    run_blobs(folder, temperature=float("inf"))
    plain, reweighted = (weights(folder / "run" / f"{name}.pt") for name in ("plain", "reweighted"))
    for name in plain:
        torch.testing.assert_close(reweighted[name], plain[name], rtol=1e-5, atol=1e-6)
    text = (folder / "run" / "metrics.json").read_text()
    json.loads(text, parse_constant=pytest.fail)  # JSON has no Infinity


def test_finite_temperature_is_not(folder):
    run_blobs(folder, temperature=0.2)
    plain, reweighted = (weights(folder / "run" / f"{name}.pt") for name in ("plain", "reweighted"))
    assert not torch.allclose(reweighted["head.weight"], plain["head.weight"], rtol=1e-2)


def test_without_a_test_set_the_curves_are_losses(folder):
    metrics, _ = run_blobs(folder, test=..., test_labels=..., report=True)
    assert metrics["plain"]["accuracy"] == metrics["reweighted"]["accuracy"] == []
    assert metrics["gain"] is metrics["reference_accuracy"] is None
    losses = metrics["plain"]["loss"]
    assert losses[0] > losses[-1] > 0
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    assert "Training loss by epoch" in page
    assert "Test accuracy" not in page


def test_string_ids(folder):
    names = [f"{'zebra' if row % 2 else 'ape'}-{row}" for row in range(240)]
    (folder / "ids.txt").write_text("\n".join(names), encoding="utf-8")
    metrics, table = run_blobs(folder, canaries="off")  # which samples serve follows from the ids
    more = {"canaries": "off", "out": str(folder / "named"), "report": True}
    named, same = run_blobs(folder, ids="ids.txt", **more)
    assert same["sample_id"].to_pylist() == sorted(names[TRUSTED:])
    by_name = dict(zip(same["sample_id"].to_pylist(), same["score"].to_pylist(), strict=True))
    assert [by_name[names[row]] for row in table["sample_id"].to_pylist()] == table[
        "score"
    ].to_pylist()
    for key in ("auroc", "auroc_per_epoch", "detection"):
        assert named[key] == metrics[key]


# Kinds of input


def as_npz(folder, x, y):
    np.savez(folder / "all.npz", features=x, label=y)
    return {"data": str(folder / "all.npz"), "labels": "label"}


def as_lists(folder, x, y):
    pq.write_table(pa.table({"v": list(x), "label": y}), folder / "lists.parquet")
    return {"data": str(folder / "lists.parquet"), "labels": ...}


def as_columns(folder, x, y):
    columns = {f"f{place}": x[:, place] for place in range(x.shape[1])}
    pq.write_table(pa.table({**columns, "label": y}), folder / "columns.parquet")
    return {"data": str(folder / "columns.parquet"), "labels": "label"}


@pytest.mark.slow
@pytest.mark.parametrize("write", [as_npz, as_lists, as_columns])
def test_features_of_every_kind_give_the_same_run(folder, write):
    _, table = run_blobs(folder)
    changes = write(folder, np.load(folder / "x.npy"), np.load(folder / "y.npy"))
    _, same = run_blobs(folder, **changes, out=str(folder / "other"))
    assert same.equals(table)


@pytest.mark.parametrize(
    ("changes", "scored"),
    [
        ({"model": "mlp", "hidden": 8}, ["head.bias", "head.weight"]),
        ({"model": "mlp", "hidden": 8, "trunk": "trained"}, None),
        ({"model": "mlp", "hidden": 8, "trunk": "trained", "params": "trunk.*"}, None),
        ({"rule": "one_over_b", "aggregate": "majority", "reweight": "scored"}, None),
    ],
)
def test_models_and_rules(folder, changes, scored):
    metrics, table = run_blobs(folder, **changes)
    assert metrics["auroc"] > 0.9
    # the first steps of a transported reference are not scored
    assert set(table["visits"].to_pylist()) in ({3}, {2, 3})
    reference, plain, reweighted = (
        weights(folder / "run" / f"{name}.pt") for name in ("reference", "plain", "reweighted")
    )
    for state in (plain, reweighted):
        moved = sorted(name for name in state if not torch.equal(state[name], reference[name]))
        assert moved == (scored or [name for name in sorted(state) if "scale" not in name])


@pytest.mark.parametrize("trunk", ["frozen", "trained"])
def test_pictures_in_class_folders(tmp_path, trunk):
    pictures = tmp_path / "pictures"
    write_pictures(pictures)
    (pictures / "red" / "broken.png").write_bytes(b"\x89PNG of no kind")
    other = tmp_path / "other"
    write_pictures(other)
    (other / "blue" / "cut.png").write_bytes(b"")
    trusted = tuple(
        f"{name}/{row:03}.png" for row in range(8) for name in [("red", "blue")[row % 2]]
    )
    keys = {"data": str(pictures), "image_size": 6, "hidden": 4, "trunk": trunk, "epochs": 3}
    config = RunConfig(
        **keys, trusted=trusted, batch_size=4, lr=0.01, noise="pair", noise_rate=0.25,
        test=str(other), out=str(tmp_path / "run"), temperature=0.2,
    )  # fmt: skip
    outcome = run_job(config)
    metrics, table = read_outputs(config.out)
    assert (metrics["samples"], metrics["trusted"]) == (16, 8)
    skipped = [(Path(row["source"]).name, row["sample_id"]) for row in metrics["skipped"]]
    assert skipped == [("pictures", "red/broken.png"), ("other", "blue/cut.png")]
    assert all(row["reason"] for row in metrics["skipped"])
    assert metrics["noise_rate"] == 0.25
    assert metrics["reference_accuracy"] == 1
    assert metrics["auroc"] > 0.9
    assert "red/broken.png" not in table["sample_id"].to_pylist()
    assert any("2 samples could not be read" in note for note in outcome.notes)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    pictures = data_in(page, "gallery-data")["pictures"]
    assert sum(own.startswith("data:image/png;base64,") for own in pictures.values()) == 16


def test_texts_are_shown_and_nothing_from_data_is_taken_for_html(folder):
    evil = "<script>alert('{{ 1 }}')</script>"
    y = np.load(folder / "y.npy")
    texts = [f"{evil} row {row}." for row in range(240)]
    pq.write_table(pa.table({"text": texts}), folder / "texts.parquet")
    for name, labels in (("y.txt", y), ("test_y.txt", np.load(folder / "test_y.npy"))):
        (folder / name).write_text("".join(f"{evil}{label}\n" for label in labels))
    out = folder / "<script>out"
    _, table = run_blobs(
        folder,
        labels="y.txt",
        test_labels="test_y.txt",
        show="texts.parquet:text",
        out=str(out),
        report=True,
    )
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert check_safe(page).text.count(evil) > 50
    gallery = data_in(page, "gallery-data")
    lowest = table.sort_by("score")["sample_id"].to_pylist()
    assert gallery["ids"] == [str(row) for row in lowest]
    assert list(gallery["texts"].values()).count(f"{evil} row {lowest[0]}.") == 1


# The reference


def test_all_trainings_start_from_the_same_weights(folder):
    keys = {"model": "mlp", "hidden": 8, "trunk": "trained", "seed": 3}
    run_blobs(folder, **keys, lr=1e-9)  # so small that nothing moves
    inputs = np.load(folder / "x.npy")
    start = build_model("mlp", inputs, CLASSES, hidden=8, seed=3).state_dict()
    for name in ("reference", "plain", "reweighted"):
        state = weights(folder / "run" / f"{name}.pt")
        for key in ("trunk.0.weight", "head.weight"):
            torch.testing.assert_close(state[key], start[key], rtol=0, atol=1e-6)


def test_a_reference_from_a_file_is_as_good_as_the_run_that_trained_it(folder):
    y = np.load(folder / "y.npy")
    np.save(folder / "given.npy", symmetric(y, 0.3, CLASSES, seed=0))
    keys = {"labels": "given.npy", "true_labels": "y.npy", "report": True, **SEPARATE}
    trusted = {"trusted": str(folder / "test_x.npy"), "trusted_labels": "test_y.npy"}
    for model in ("linear", "mlp"):
        first, table = run_blobs(folder, **{**keys, **trusted}, model=model, overwrite=True)
        file = str(folder / "run" / "reference.pt")
        out = str(folder / f"from file {model}")
        second, same = run_blobs(folder, **{**keys, "reference": file, "out": out}, model=model)
        assert same.equals(table)
        assert second["auroc"] == first["auroc"] > 0.95
        assert second["reference_accuracy"] == first["reference_accuracy"]
        pages = [Path(run, "report.html").read_text() for run in (folder / "run", out)]
        suggested = [data_in(page, "gallery-data")["suggested"] for page in pages]
        assert suggested[0] == suggested[1]
        assert len(suggested[0]) == len(table)


def forest_outputs(folder, rows=slice(None)):
    """Class probabilities of nearest centres: a reference that shares nothing with the model."""
    x, y = (np.load(folder / f"test_{name}.npy") for name in "xy")
    centers = np.stack([x[y == label].mean(0) for label in range(CLASSES)])
    distances = ((np.load(folder / "x.npy")[:, None] - centers) ** 2).sum(-1)
    shares = np.exp(-distances) / np.exp(-distances).sum(1, keepdims=True)
    ids = np.arange(len(shares))[rows]
    Outputs(ids, shares[rows], kind="probabilities").write(folder / "outputs.parquet")
    return str(folder / "outputs.parquet")


@pytest.mark.parametrize(
    "changes",
    [{}, {"model": "mlp", "hidden": 16, "trunk": "trained"}],
    ids=["probe", "trained trunk"],
)
def test_outputs_from_anywhere_are_a_reference(folder, changes):
    metrics, _ = run_blobs(folder, trusted=..., reference=forest_outputs(folder), **changes)
    assert (metrics["align"], metrics["overtaken"]) == ("outputs", None)
    assert metrics["reference_accuracy"] is None
    assert metrics["auroc"] > 0.9
    assert not (folder / "run" / "reference.pt").exists()


def test_samples_that_the_outputs_lack_are_kept_and_counted(folder):
    file = forest_outputs(folder, slice(0, 200))
    config = RunConfig(**blob_keys(folder, trusted=..., reference=file))
    outcome = run_job(config)
    assert outcome.values["unscored"] == 40
    assert outcome.values["kept"] + outcome.values["removed"] == 200
    assert any("40 samples were never scored" in note for note in outcome.notes)


@pytest.mark.parametrize("kind", ["self", "self-early", "self-average"])
def test_a_run_needs_nothing_but_labels(folder, kind):
    metrics, _ = run_blobs(folder, trusted=..., reference=kind, noise_rate=0.2)
    assert metrics["auroc"] > 0.8
    assert metrics["trusted"] == 0


def test_canaries_choose_the_alignment_of_a_run(folder):
    metrics, _ = run_blobs(folder, align="auto", epochs=6, canary_rate=1.0, model="mlp", hidden=8)
    assert metrics["align"] in ("none", "transport")
    log = ScoreLog.read(folder / "run" / "log")
    assert [event["event"] for event in log.events][:1] == ["aligned"]
    assert metrics["auroc"] > 0.9


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"align": "none"}, ConfigError, "is a table of outputs; leave align out"),
        ({"epochs": 1, "align": "transport"}, ConfigError, "the first steps are not scored"),
        ({"params": "all", "trunk": "trained"}, ConfigError, "moves the head, but params='all'"),
        ({"ids": "ids.txt"}, DataError, "have integer ids such as 0"),
    ],
)
def test_outputs_that_cannot_be_used(folder, changes, error, message):
    (folder / "ids.txt").write_text("\n".join(f"s{row}" for row in range(240)))
    keys = {"trusted": ..., "reference": forest_outputs(folder), **changes}
    with pytest.raises(error, match=message):
        run_blobs(folder, **keys)


def test_outputs_of_other_classes_or_samples(folder):
    file = str(folder / "outputs.parquet")
    Outputs(range(240), np.eye(5)[np.arange(240) % 5]).write(file)
    with pytest.raises(ReferenceMismatchError, match="have 5 columns, but the labels have 3"):
        run_blobs(folder, trusted=..., reference=file)
    Outputs(range(1000, 1240), np.eye(CLASSES)[np.arange(240) % CLASSES]).write(file)
    with pytest.raises(
        ReferenceMismatchError,
        match="none of the 240 samples: their ids are such as 1000, those of the data such as 0",
    ):
        run_blobs(folder, trusted=..., reference=file, overwrite=True)


def test_a_linear_probe_is_taken_as_trained_on_unscaled_inputs(folder):
    probe = {"head.weight": torch.eye(3, 4), "head.bias": torch.zeros(3)}
    torch.save(probe, folder / "probe.pt")
    metrics, _ = run_blobs(folder, trusted=..., reference=str(folder / "probe.pt"))
    x, y = np.load(folder / "test_x.npy"), np.load(folder / "test_y.npy")
    assert metrics["reference_accuracy"] == pytest.approx((x[:, :3].argmax(1) == y).mean())
    assert metrics["auroc"] > 0.9
    plain = weights(folder / "run" / "plain.pt")
    assert not plain["scale.mean"].any()
    assert plain["scale.spread"] == 1


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": torch.eye(3, 4)}, r"Unexpected key\(s\) in state_dict: \"weight\""),
        ({"head.weight": torch.eye(3, 4)}, r"Missing key\(s\) in state_dict: \"head.bias\""),
        ({"head.weight": torch.eye(5, 4), "head.bias": torch.zeros(5)}, "size mismatch for head"),
    ],
)
def test_a_reference_that_does_not_fit(folder, state, message):
    torch.save(state, folder / "odd.pt")
    with pytest.raises(ReferenceMismatchError, match=message) as caught:
        run_blobs(folder, trusted=..., reference=str(folder / "odd.pt"))
    assert str(caught.value).startswith(f"The reference {folder / 'odd.pt'} does not fit this run")
    assert "Expected the weights of another run's reference.pt" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_useless_reference_is_called_that(folder):
    y = np.load(folder / "y.npy")
    np.save(folder / "shifted.npy", (y + 1) % CLASSES)
    config = RunConfig(**blob_keys(folder, trusted_labels="shifted.npy"))
    outcome = run_job(config)
    assert outcome.values["auroc"] < 0.6
    (note,) = [note for note in outcome.notes if "AUROC" in note]
    assert "do not trust the selection, and suspect the reference" in note


def test_notes_say_what_to_know():
    values = {
        "skipped": [],
        "auroc": 0.9,
        "reference_accuracy": 0.7,
        "reweighted": {"accuracy": [0.6, 0.8, 0.9]},
        "removed": 0,
    }
    overtaken, nothing = notes_on(values)
    assert "overtook its reference on the test set (at epoch 1)" in overtaken
    assert "every sample is kept" in nothing
    (behind,) = notes_on({**values, "reference_accuracy": 0.95, "removed": 3})
    assert "at least as accurate" in behind


# Canaries


def test_canaries_never_change_the_training_and_calibrate_the_selection(folder):
    metrics, table = run_blobs(folder)
    off, _ = run_blobs(folder, canaries="off", out=str(folder / "off"))
    for name in ("plain", "reweighted"):
        assert metrics[name] == off[name]
        with_canaries, without = (
            weights(folder / run / f"{name}.pt")["head.weight"] for run in ("run", "off")
        )
        assert torch.equal(with_canaries, without)
    assert off["quality"] is None
    rate = metrics["quality"]["noise_rate"]
    assert rate["low"] <= metrics["noise_rate"] <= rate["high"]
    assert set(metrics["quality"]["by_class"]) == {str(label) for label in range(CLASSES)}
    assert "the canaries' threshold" in table["reason"][0].as_py()
    labels = pq.read_table(folder / "run" / "labels.parquet")
    assert labels["sample_id"].to_pylist() == table["sample_id"].to_pylist()


def test_trained_canaries_do_change_it(folder):
    metrics, _ = run_blobs(folder)
    trained, _ = run_blobs(folder, canaries="trained", out=str(folder / "trained"))
    assert trained["reweighted"]["loss"] != metrics["reweighted"]["loss"]
    assert trained["plain"] == metrics["plain"]
    assert trained["quality"]["calibrated"]
