"""What a cell comes to is what one computes by hand; references get worse as they are meant to."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from blobs import make_blobs
from torch.nn import functional as F

from gradmimic import estimate_quality, select
from gradmimic.data import symmetric
from gradmimic.errors import ConfigError, DataError
from gradmimic.reproduce import ablations, curves, efficiency, quality
from gradmimic.reproduce.altered import altered, jittered
from gradmimic.reproduce.cases import Cases, Settings
from gradmimic.reproduce.noise import Noise, corrupt, parse_noise
from gradmimic.reproduce.training import APART
from gradmimic.run.train import Rows, accuracy, train

N = 200


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    return opened(tmp_path_factory.mktemp("blobs"))


def opened(folder, noise=("0.4",), **more):
    for part, n, seed in (("train", N, 0), ("test", 90, 1)):
        x, y = make_blobs(n, seed)
        np.save(folder / f"features_{part}.npy", x)
        np.save(folder / f"labels_{part}.npy", y)
    own = {"epochs": 3, "lr": 0.02, "seeds": 1, **more}
    settings = Settings(["blobs"], {"blobs": str(folder)}, "features", "probe", noise, **own)
    return Cases(settings, folder / "cache")


def state(model):
    return torch.cat([weight.flatten() for weight in model.state_dict().values()])


# --- noise -------------------------------------------------------------------------------------


def test_confusable_noise_takes_what_is_likeliest_but_the_truth():
    chance = np.random.default_rng(0)
    clean, likely = chance.integers(0, 5, 300), chance.random((300, 5)).astype(np.float32)
    given = corrupt(clean, Noise("confusable", 0.3), 5, 7, likely)
    moved = given != clean
    assert moved.sum() == 90
    assert np.array_equal(moved, symmetric(clean, 0.3, 5, 7) != clean)
    for i in np.flatnonzero(moved):
        others = [k for k in range(5) if k != clean[i]]
        assert given[i] == max(others, key=lambda k: likely[i, k])
    with pytest.raises(DataError, match=r"what a probe says, \[300, 5\]"):
        corrupt(clean, Noise("confusable", 0.3), 5, 7, None)


@pytest.mark.parametrize("text", ["", "0.4x", "-0.1", "2", "column:", "triple:0.4", "pair:"])
def test_other_texts_name_no_noise(text):
    with pytest.raises(ConfigError, match="expected noise as 0.4, pair:0.4 or confusable:0.4"):
        parse_noise(text)


def test_a_case_has_exactly_the_wrong_labels_that_its_cell_names(tmp_path):
    own = opened(tmp_path, noise=["0", "0.4", "pair:0.2", "confusable:0.3"])
    found = [own.open(cell) for cell in own.cells("x")]
    assert [int(case.wrong.sum()) for case in found] == [0, 80, 40, 60]
    clean = found[0].labels
    assert torch.equal(found[2].labels[found[2].wrong], (clean[found[2].wrong] + 1) % 3)
    own_probe = found[3].recipe._replace(seed=2 * APART)
    probe = found[3].problem.start(own_probe.seed)
    train(probe, found[3].problem.train, **own_probe._asdict())
    with torch.no_grad():
        said = probe(found[3].problem.train.inputs)
    said[range(N), clean] = -torch.inf
    wrong = torch.from_numpy(found[3].wrong)
    assert torch.equal(found[3].labels[wrong], said.argmax(1)[wrong])


# --- quality -----------------------------------------------------------------------------------


def test_pearson_is_that_of_numpy():
    chance = np.random.default_rng(0)
    for n in (2, 5, 40):
        a, b = chance.normal(size=(2, n))
        assert quality.pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    assert quality.pearson([1.0, 1.0], [0.0, 1.0]) is None


def test_quality_is_estimated_from_the_log_of_the_training(cases):
    cell = quality.cells(cases)[0]
    values = quality.compute(cases, cell)
    with cases.open(cell).logged() as (log, _):
        found = estimate_quality(log).quality
        vote = select(log, "one_over_b", aggregate="majority")
    assert values["true"] == pytest.approx(0.6)
    assert (values["estimate"], values["low"], values["high"]) == (
        found.value, found.low, found.high
    )  # fmt: skip
    assert values["vote"] == len(vote.kept) / N


def test_the_report_of_quality_tells_its_correlation_and_draws_its_rows():
    cell = {"set": "blobs", "seed": 0}
    true, said = [1.0, 0.8, 0.6], [0.9, 0.85, 0.5]
    rows = [
        (
            {**cell, "noise": f"{1 - t:.1f}"},
            {"true": t, "estimate": e, "low": e - 0.1, "high": e + 0.06, "vote": 0.6},
        )
        for t, e in zip(true, said, strict=True)
    ]
    found = quality.report(rows)
    r = np.corrcoef(said, 1 - np.array(true))[0, 1]
    assert f"by canaries: Pearson of the estimate with the noise {r:.4f}" in found.told[0]
    assert "mean absolute error 0.0833" in found.told[0]
    assert "by the 1/b vote: Pearson of the estimate with the noise is not defined" in found.told[1]
    assert "holds the truth in 1 of 3 trainings" in found.told[2]
    points = found.charts["estimates"].to_dict()["data"]["values"]
    assert [(p["x"], p["y"]) for p in points[:3]] == list(zip(true, said, strict=True))


# --- efficiency --------------------------------------------------------------------------------


def test_a_part_is_the_best_of_its_scorer(cases):
    cells = {cell["by"]: cell for cell in efficiency.cells(cases)}
    values = efficiency.compute(cases, cells["mimic"])
    case, scores = cases.open(cells["mimic"]), cases.means(cells["mimic"]).of("mimic")
    for share, wrong, got in zip(
        efficiency.SHARES, values["wrong"], values["accuracy"], strict=True
    ):
        k = round(share * N)
        rows = torch.from_numpy(np.sort(np.argsort(-scores, kind="stable")[:k]))
        assert wrong == pytest.approx(case.wrong[rows].mean())
        model = case.problem.start(0)
        part = Rows(case.problem.train.inputs[rows], case.labels[rows])
        train(model, part, **case.recipe._asdict())
        assert got == accuracy(model, case.problem.test)
    assert values["wrong"][-1] < 0.1 < 0.3 < efficiency.compute(cases, cells["random"])["wrong"][-1]
    assert efficiency.compute(cases, cells["all"])["wrong"] == [pytest.approx(0.4)]


# --- curves ------------------------------------------------------------------------------------


def test_curves_are_measured_at_the_same_steps_and_end_where_the_trainings_end(cases):
    cell = curves.cells(cases)[0]
    values, case = curves.compute(cases, cell), cases.open(cell)
    plain = case.fit("plain").model
    assert values["steps"][-1] == 3 * -(-N // 32)
    for method in curves.METHODS:
        assert {len(own) for own in values[method].values()} == {len(values["steps"])}
    with torch.no_grad():
        train_said = plain(case.problem.train.inputs)
        test_said = plain(case.problem.test.inputs)
    losses = F.cross_entropy(train_said, case.labels, reduction="none").double().numpy()
    expected = {
        "training loss": losses.mean(),
        "right labels": losses[~case.wrong].mean(),
        "test loss": float(F.cross_entropy(test_said, case.problem.test.labels)),
        "test accuracy": accuracy(plain, case.problem.test),
    }
    ends = {reading: curve[-1] for reading, curve in values["plain"].items()}
    assert ends == pytest.approx(expected, rel=1e-5)


def test_steps_to_a_target_are_the_first_that_reach_it():
    assert curves.reached([0.1, 0.5, 0.4, 0.6], 0.5, [1, 2, 3, 4], falling=False) == 2
    assert curves.reached([3.0, 2.0], 1.0, [1, 2], falling=True) is None
    curve = {reading: [4.0, 2.0, 1.0] for reading in curves.READINGS}
    slow = {reading: [5.0, 4.0, 3.0] for reading in curves.READINGS}
    slow["test accuracy"] = [0.0, 1.0, 2.0]
    cell = {"set": "blobs", "noise": "0.4", "seed": 0}
    found = curves.report([(cell, {"steps": [10, 20, 40], "plain": slow, "mimic": curve})])
    (row,) = found.tables[0].rows.values()
    assert [mean.value for mean in row] == pytest.approx([0.5, 0.5, 0.5, 0.75])


# --- ablations ---------------------------------------------------------------------------------


def test_references_are_altered_as_named(cases):
    case = cases.open(ablations.cells(cases)[0])
    usual = altered(case, "usual")
    assert torch.equal(state(altered(case, "jitter", 0.0)), state(usual))
    assert torch.equal(state(altered(case, "rows", 1.0)), state(usual))
    assert torch.equal(state(altered(case, "epochs", case.recipe.epochs)), state(usual))
    assert not torch.equal(state(altered(case, "rows", 0.1)), state(usual))
    early = case.recipe._replace(epochs=1)
    model = case.problem.start(early.seed)
    train(model, Rows(case.problem.train.inputs, case.labels), **early._asdict())
    assert torch.equal(state(altered(case, "checkpoint", 1)), state(model))
    with pytest.raises(ConfigError, match="no reference 'better'"):
        altered(case, "better")


def test_noise_on_weights_has_the_size_that_was_asked_for():
    model = torch.nn.Linear(300, 200)
    moved = jittered(model, 0.5, seed=1)
    difference = (moved.weight - model.weight).detach()
    size = model.weight.detach().square().mean().sqrt().item()
    assert float(difference.std()) == pytest.approx(0.5 * size, rel=0.02)


def test_a_reference_from_other_initial_weights_is_no_use(tmp_path):
    own = opened(tmp_path, epochs=5, lr=0.003)
    cells = {(c["group"], c["variant"]): c for c in ablations.cells(own)}
    found = {
        key: ablations.compute(own, cells["start", key])
        for key in ("own start, all scored", "other start, all scored")
    }
    assert found["own start, all scored"]["auroc"] > 0.9
    assert found["other start, all scored"]["auroc"] < 0.75


def test_the_report_of_ablations_takes_gains_over_plain_training_of_the_same_model():
    cell = {"set": "blobs", "noise": "0.4", "seed": 0, "group": "temperature"}
    rows = [
        ({**cell, "variant": "plain"}, {"accuracy": 0.5, "auroc": None}),
        ({**cell, "variant": "τ = 1"}, {"accuracy": 0.75, "auroc": 0.9}),
        ({**cell, "variant": "τ = 2"}, {"accuracy": 0.45, "auroc": 0.8}),
    ]
    found = ablations.report(rows)
    accuracy_, gain, area = found.tables[0].rows["τ = 1",]
    assert (accuracy_.value, gain.value, area.value) == pytest.approx((75.0, 25.0, 90.0))
    assert found.tables[0].rows["plain",][1:] == (None, None)
    points = found.charts["temperature"].to_dict()["data"]["values"]
    assert [(p["x"], p["name"]) for p in points] == [
        (pytest.approx(25.0), "τ = 1"), (pytest.approx(-5.0), "τ = 2")
    ]  # fmt: skip
    assert "most is gained by τ = 1, +25.00 points, the least by τ = 2, -5.00" in found.told[0]


def test_pictures_have_no_mlp(cases):
    problem = cases.open(ablations.cells(cases)[0]).problem
    pictures = problem.train.inputs.reshape(-1, 1, 2, 2)
    other = replace(problem, train=Rows(pictures, problem.train.labels))
    with pytest.raises(ConfigError, match=r"features \[n, d\], got inputs \[200, 1, 2, 2\]"):
        ablations.with_mlp(other, 4)
