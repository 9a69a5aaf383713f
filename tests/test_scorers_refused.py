"""What scorers of a batch refuse: by which words, and before anything is trained."""

import math

import pytest
import torch
from test_scorers_batch import Calls, D, K, N, one
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, Outputs, ScoreLog
from gradmimic.errors import (
    DataError,
    DirectionError,
    LogError,
    LossError,
    ParameterError,
    UsageError,
)
from gradmimic.scorers import BatchScorer, Loss, Scorer


@pytest.fixture
def data():
    return torch.randn(N, D), torch.randint(K, (N,))


MODEL = nn.Linear(D, K)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BatchScorer(MODEL, ["gradn"]), "There is no scorer 'gradn'; expected loss, ref"),
        (lambda: BatchScorer(MODEL, "loss"), "Expected a list of scorers, got the text 'loss'"),
        (lambda: BatchScorer(MODEL, ["loss", Loss()]), "'loss' comes twice"),
        (lambda: BatchScorer(MODEL, [], weigh_by="margin"), "weigh_by='margin' makes no weights"),
        (lambda: BatchScorer(MODEL, [], weigh_by="loss"), r"weigh_by=Loss\(keep=0.6\)"),
        (lambda: BatchScorer(MODEL, ["rho"]), "'rho' needs outputs=, what a reference says"),
        (lambda: BatchScorer(MODEL, ["mimic"]), "'mimic' needs reference=, a better model's weig"),
        (lambda: BatchScorer(MODEL, ["influence"]), r"'influence' needs trusted=, \(inputs, label"),
        (
            lambda: BatchScorer(MODEL, ["mimic_adam"], reference=MODEL),
            "'mimic_adam' needs optimizer=, the Adam or AdamW",
        ),
        (lambda: BatchScorer(nn.Flatten(), ["loss"]), "has no parameters"),
    ],
)
def test_what_cannot_be_made_is_refused(make, message):
    with pytest.raises(ParameterError, match=message):
        make()


def test_a_head_that_is_not_linear_is_refused(data):
    model = nn.Sequential(nn.Linear(D, 6), nn.Unflatten(1, (6, 1)), nn.Conv1d(6, K, 1))
    with pytest.raises(ParameterError, match="is '2', a Conv1d; these scorers need an nn.Linear"):
        one(BatchScorer(model, ["loss"]), model, *data)


def test_features_per_token_are_refused(data):
    model = nn.Linear(D, K)
    with pytest.raises(ParameterError, match=r"takes inputs \[2, 30, 5\]; these scorers need one"):
        one(BatchScorer(model, ["loss"]), model, data[0].view(2, 30, D), data[1])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 4, 1]), "expected labels from 0 to 3, got 0 to 4"),
        (torch.tensor([0, -1, 1]), "expected labels from 0 to 3, got -1 to 1"),
        (torch.tensor([0.0, 1.0, 2.0]), r"labels \[b\] int64, got \[3, 4\] and \[3\] float32"),
        (torch.tensor([0, 1]), r"got \[3, 4\] and \[2\] int64"),
    ],
)
def test_labels_that_do_not_fit_are_refused(data, labels, message):
    model = nn.Linear(D, K)
    with pytest.raises(DataError, match=message):
        one(BatchScorer(model, ["loss"]), model, data[0][:3], labels)


def test_losses_and_scores_that_are_not_numbers_are_refused(data):
    model, (x, y) = nn.Linear(D, K), data
    x = x.clone()
    x[3] = math.nan
    with pytest.raises(LossError, match="the first is nan at position 3"):
        one(BatchScorer(model, ["loss"], weigh_by="grad_match"), model, x, y)

    class Broken(Scorer):
        name = "broken"

        def __call__(self, seen):
            return seen.losses / 0

    with pytest.raises(LossError, match="scores of 'broken' are NaN or infinite"):
        one(BatchScorer(model, [Broken()]), model, *data)
    with pytest.raises(LossError, match=r"shape \[b\], got shape \[\]"):
        one(BatchScorer(model, ["loss"], loss=F.cross_entropy), model, *data)


def test_calls_in_another_order_are_refused(data):
    model, (x, y) = nn.Linear(D, K), data
    scores = BatchScorer(model, ["loss"])
    with pytest.raises(UsageError, match="no forward pass to score. Expected `with scores:`"):
        scores.weigh(model(x), y)
    with scores:
        first = model(x)
    with scores:
        model(x + 1)
    with pytest.raises(UsageError, match=r"logits \[60, 4\] are not what the last layer gave"):
        scores.weigh(first, y)
    with scores:
        z = model(x)
    with pytest.raises(UsageError, match="nothing after the last layer"):
        scores.weigh(z.log_softmax(1), y)
    with pytest.raises(UsageError, match="no forward pass"):  # one weigh for each block
        scores.weigh(z, y)


def test_a_failed_pass_leaves_no_hooks_and_nothing_to_weigh(data):
    model, (x, y) = Calls(), data
    scores = BatchScorer(model, ["loss"])
    with pytest.raises(RuntimeError), scores:
        model(x[:, :2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    one(scores, model, x, y)


def test_ids_are_needed_for_a_log_and_for_outputs(data, tmp_path):
    model, (x, y) = nn.Linear(D, K), data
    with ScoreLog(tmp_path) as log, pytest.raises(UsageError, match="needs each sample's id"):
        one(BatchScorer(model, ["loss"], log=log), model, x, y)
    said = Outputs(range(N), torch.randn(N, K))
    with pytest.raises(UsageError, match="looked up by sample id: weigh"):
        one(BatchScorer(model, ["rho"], outputs=said), model, x, y)
    with (
        ScoreLog(tmp_path / "b") as log,
        pytest.raises(LogError, match="more than once in one batch"),
    ):
        one(BatchScorer(model, ["loss"], log=log), model, x, y, [0] * N)


def test_context_that_does_not_fit_is_refused(data):
    model, (x, y) = nn.Linear(D, K), data
    ids = range(N)
    with pytest.raises(DataError, match="Expected outputs of 4 logits .* got 3 logits of memory"):
        one(BatchScorer(model, ["rho"], outputs=Outputs(ids, torch.zeros(N, 3))), model, x, y, ids)
    with pytest.raises(DataError, match="expected trusted labels from 0 to 3, got 9 to 9"):
        trusted = (x[:1], torch.tensor([9]))
        one(BatchScorer(model, ["influence"], trusted=trusted), model, x, y)
    with pytest.raises(DirectionError, match="The direction is zero"):
        one(BatchScorer(model, ["mimic"], reference=model), model, x, y)
    better = nn.Linear(D, K)
    for optimizer, what in (
        (torch.optim.SGD(model.parameters(), 0.1), "is a SGD that keeps no second moments"),
        (torch.optim.Adam(better.parameters()), "is a Adam that does not train the last layer"),
    ):
        scores = BatchScorer(model, ["mimic_adam"], reference=better, optimizer=optimizer)
        with pytest.raises(ParameterError, match=what):
            one(scores, model, x, y)


def test_canaries_of_pairs_are_refused(data):
    model, (x, y) = nn.Linear(D, K), data
    pairs = Canaries(1.0).pairs(torch.randn(N, N), range(N))
    with pytest.raises(UsageError, match="Expected canaries with other labels"):
        one(BatchScorer(model, ["loss"]), model, x, y, canaries=pairs)
