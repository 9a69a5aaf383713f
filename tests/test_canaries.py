"""Canaries are drawn as the formulas say, scored exactly, and never touch the training."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, ScoreLog, mimic_scores
from gradmimic.canaries import Canaries
from gradmimic.errors import DataError, ParameterError


def test_the_same_samples_serve_at_every_visit_whatever_the_batch():
    canaries = Canaries(rate=0.2, seed=3)
    logits, labels = torch.randn(500, 4), torch.randint(4, (500,))
    ids = [f"sample-{i}" for i in range(500)]
    drawn = canaries.labels(logits, labels, ids)
    order = torch.randperm(500).tolist()
    again = canaries.labels(logits[order], labels[order], [ids[i] for i in order])
    assert 0.1 < len(set(drawn.ids)) / 500 < 0.3
    by_id = dict(zip(zip(drawn.ids, drawn.kinds, strict=True), drawn.losses.tolist(), strict=True))
    assert by_id == dict(
        zip(zip(again.ids, again.kinds, strict=True), again.losses.tolist(), strict=True)
    )
    other = Canaries(rate=0.2, seed=4).labels(logits, labels, ids)
    assert set(other.ids) != set(drawn.ids)


def test_uniform_labels_are_uniform_and_confusable_ones_follow_the_prediction():
    n, p = 40_000, torch.tensor([0.5, 0.3, 0.15, 0.05])
    logits = p.log().repeat(n, 1)
    drawn = Canaries(rate=1.0).labels(logits, torch.zeros(n, dtype=torch.long), torch.arange(n))
    # each class has a loss of its own, so the loss tells the label
    label = {round(float(-value.log()), 4): c for c, value in enumerate(p)}
    for kind, expected in (("uniform/4", np.full(3, 1 / 3)), ("confusable/4", p[1:] / p[1:].sum())):
        found = Counter(
            label[round(loss, 4)]
            for loss, own in zip(drawn.losses.tolist(), drawn.kinds, strict=True)
            if own == kind
        )
        assert 0 not in found  # never the given label
        shares = np.array([found[c] / n for c in (1, 2, 3)])
        assert np.abs(shares - np.asarray(expected)).max() < 0.01


def test_swapped_captions_are_scored_by_the_contrastive_loss():
    similarity = torch.randn(6, 6, dtype=torch.float64)
    drawn = Canaries(rate=1.0).pairs(similarity, list("abcdef"))
    every = -(similarity.log_softmax(1) + similarity.log_softmax(0)) / 2
    off_diagonal = every[~torch.eye(6, dtype=torch.bool)]
    assert all(torch.isclose(loss, off_diagonal).any() for loss in drawn.losses)
    assert Canaries(rate=1.0).pairs(torch.zeros(1, 1), ["a"]).ids == []


def train(folder, canaries, steps=20, params="head"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    x, y = torch.randn(64, 5, dtype=torch.float64), torch.randint(3, (64,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses_seen = []
    with ScoreLog(folder) as log:
        mimic = GradMimic(model, reference, params=params, temperature=0.1, log=log)
        for step in range(steps):
            rows = torch.randperm(64)[:16]  # draws from torch's own generator
            with mimic:
                logits = model(x[rows])
                losses = F.cross_entropy(logits, y[rows], reduction="none")
                drawn = canaries and canaries.labels(logits, y[rows], rows)
            loss = mimic.weigh(losses, rows, epoch=step, canaries=drawn)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses_seen.append(loss.item())
        rows = log.scan()
    return model.state_dict(), losses_seen, rows, mimic


@pytest.mark.parametrize("params", ["head", "all"])
def test_training_is_bit_identical_to_one_without_canaries(tmp_path, params):
    plain = train(tmp_path / "plain", None, params=params)
    watched = train(tmp_path / "watched", Canaries(rate=0.5), params=params)
    assert plain[1] == watched[1]
    for name, tensor in plain[0].items():
        assert torch.equal(tensor, watched[0][name]), name
    import pyarrow.compute as pc

    real = watched[2].filter(pc.is_null(watched[2]["canary"]))
    assert real.equals(plain[2])
    drawn = watched[2].filter(pc.is_valid(watched[2]["canary"]))
    assert drawn.num_rows > 100
    assert set(drawn["canary"].to_pylist()) == {"uniform/3", "confusable/3"}
    assert pc.max(drawn["weight"]).as_py() == 0


def test_canaries_score_what_a_sample_with_that_label_would(tmp_path):
    torch.manual_seed(1)
    model, reference = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(3, (9,))
    with ScoreLog(tmp_path) as log:
        mimic = GradMimic(model, reference, log=log)
        with mimic:
            logits = model(x)
            drawn = Canaries(rate=1.0).labels(logits, y, torch.arange(9))
            losses = F.cross_entropy(logits, y, reduction="none")
        wrong = torch.stack(
            [
                (F.cross_entropy(row.repeat(3, 1), torch.arange(3), reduction="none") - loss)
                .abs()
                .argmin()
                for row, loss in zip(torch.cat([logits, logits]), drawn.losses, strict=True)
            ]
        )
        mimic.weigh(losses, torch.arange(9), canaries=drawn)
        logged = log.scan(["score", "canary"]).to_pylist()[9:]
    exact = mimic_scores(
        model,
        reference,
        (torch.cat([x, x]), wrong),
        lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none"),
        engine="oracle",
    )
    assert [row["canary"] for row in logged] == ["uniform/3"] * 9 + ["confusable/3"] * 9
    assert [row["score"] for row in logged] == pytest.approx(exact.tolist(), rel=1e-6)


def test_trained_canaries_share_the_softmax_and_the_loss(tmp_path):
    *_, rows, mimic = train(tmp_path, Canaries(rate=0.5, trained=True), steps=1)
    weights = np.array(rows["weight"].to_pylist())
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    assert rows["batch_size"].to_pylist() == [rows.num_rows] * rows.num_rows
    assert rows.num_rows > 16
    assert len(mimic.scores) == len(mimic.weights) == 16  # of the real samples


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(2, 1), torch.zeros(2, dtype=torch.long), r"K ≥ 2 .* got \[2, 1\]"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.long), r"got \[2, 3\] and \[3\]"),
        (torch.zeros(2, 3), torch.tensor([0, -100]), "labels from 0 to 2, got -100 to 0"),
        (torch.zeros(3, 3), torch.tensor([0, 1, 2]), "as many ids as rows, got 2 and 3"),
    ],
)
def test_what_no_canary_can_be_made_of_is_refused(logits, labels, message):
    with pytest.raises(DataError, match=message):
        Canaries(rate=1.0).labels(logits, labels, [0, 1])


def test_rates_and_matrices_are_checked():
    with pytest.raises(ParameterError, match=r"rate of canaries in \(0, 1\], got 0"):
        Canaries(rate=0)
    with pytest.raises(DataError, match=r"similarities \[b, b\], got \[2, 3\]"):
        Canaries().pairs(torch.zeros(2, 3), [0, 1])


def test_a_million_classes():
    logits = torch.zeros(3, 10**6)
    drawn = Canaries(rate=1.0).labels(logits, torch.tensor([0, 5, 10**6 - 1]), [1, 2, 3])
    assert drawn.kinds == ["uniform/1000000"] * 3 + ["confusable/1000000"] * 3
    assert torch.allclose(drawn.losses, torch.full((6,), float(np.log(1e6))))
