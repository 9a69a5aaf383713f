import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic
from gradmimic.errors import ParameterError, UsageError
from gradmimic.posterior import Posterior


def seen(rate, apart=2.0, batches=60, seed=0):
    """A posterior that has seen batches of 32 samples and 6 canaries."""
    chance, posterior = np.random.default_rng(seed), Posterior()
    for _ in range(batches):
        bad = chance.random(32) < rate
        posterior.see(chance.normal(np.where(bad, -apart, 0.0)), chance.normal(-apart, 1, 6))
    return posterior


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.6])
def test_the_share_of_bad_samples_is_found(rate):
    assert seen(rate, apart=3.0).rate == pytest.approx(rate, abs=0.12)


@given(rate=st.floats(0.05, 0.7), seed=st.integers(0, 50))
@settings(max_examples=15, deadline=None)
def test_weights_rise_with_the_score_and_end(rate, seed):
    posterior = seen(rate, seed=seed)
    scores = torch.linspace(-8, 8, 33)
    weights = posterior(scores)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    assert (weights.diff() >= -1e-7).all()
    # all that are surely clean weigh alike, however high they score
    torch.testing.assert_close(weights[-1], weights[-4], rtol=0.02, atol=0)
    assert weights[0] < 0.2 * weights[-1]


def test_it_is_the_posterior_where_scores_are_normal():
    posterior = seen(0.3, apart=3.0, batches=300)
    m = torch.tensor([-2.5, -1.5, -0.5, 1.0])
    good, bad = (torch.exp(-((m - mean) ** 2) / 2) for mean in (0.0, -3.0))
    rate = posterior.rate
    expected = (1 - rate) * good / ((1 - rate) * good + rate * bad)
    weights = posterior(m)
    torch.testing.assert_close(weights / weights[-1], expected / expected[-1], atol=0.12, rtol=0)


def test_where_canaries_score_like_samples_all_weigh_alike():
    chance, posterior = np.random.default_rng(0), Posterior()
    for _ in range(60):
        posterior.see(chance.normal(size=32), chance.normal(0.5, 1, 6))
    torch.testing.assert_close(posterior(torch.tensor([-3.0, 3.0])), torch.tensor([0.5, 0.5]))


def test_before_there_are_canaries_all_weigh_alike():
    posterior = Posterior()
    posterior.see(np.zeros(32), np.zeros(0))
    assert posterior(torch.tensor([-1.0, 5.0])).tolist() == [0.5, 0.5]
    assert posterior(torch.zeros(0)).tolist() == []
    for _ in range(30):  # scores without any spread
        posterior.see(np.zeros(32), np.zeros(6))
    assert posterior(torch.zeros(4)).tolist() == [0.25] * 4


def test_training_by_it():
    torch.manual_seed(0)
    centers = 3 * torch.eye(4)
    y = torch.randint(4, (400,))
    x = centers[y] + torch.randn(400, 4)
    noisy = torch.where(torch.rand(400) < 0.3, (y + 1) % 4, y)
    better = nn.Linear(4, 4)
    with torch.no_grad():
        better.weight.copy_(3 * torch.eye(4))
        better.bias.zero_()
    model = nn.Linear(4, 4)
    mimic, canaries = GradMimic(model, better, weighting="posterior"), Canaries(0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    on_wrong = []
    for step in range(60):
        rows = torch.randperm(400)[:40]
        with mimic:
            logits = model(x[rows])
            losses = F.cross_entropy(logits, noisy[rows], reduction="none")
            drawn = canaries.labels(logits, noisy[rows], rows)
        loss = mimic.weigh(losses, rows, canaries=drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        on_wrong.append(float(mimic.weights[noisy[rows] != y[rows]].sum()))
        assert step > 2 or on_wrong[-1] == pytest.approx(
            float((noisy[rows] != y[rows]).float().mean()), abs=0.2
        )
    assert np.mean(on_wrong[-20:]) < 0.12  # of 0.3


def test_it_needs_canaries():
    model = nn.Linear(2, 2)
    with pytest.raises(ParameterError, match="weighting='odds' is unknown; expected 'softmax' or"):
        GradMimic(model, nn.Linear(2, 2), weighting="odds")
    mimic = GradMimic(model, nn.Linear(2, 2), weighting="posterior")
    with mimic:
        losses = F.cross_entropy(model(torch.ones(3, 2)), torch.zeros(3).long(), reduction="none")
    with pytest.raises(UsageError, match="weighting='posterior' learns from canaries: pass weigh"):
        mimic.weigh(losses)
