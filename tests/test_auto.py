"""Engine ``auto``: what it picks, how it goes on, and what it says."""

import logging

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, mimic_scores
from gradmimic.canaries import CanaryLosses
from gradmimic.direction import Direction, choose, direction
from gradmimic.engines.auto import AutoEngine
from gradmimic.engines.transposed import transposed_derivative
from gradmimic.errors import LossError, UnsupportedOperationError
from gradmimic.reference import load_reference


def picked(model, reference, params, backward="auto"):
    subset = choose(model, params)
    v = direction(subset, load_reference(reference).match(model, subset))
    return AutoEngine(subset, v, backward).name


@pytest.fixture(autouse=True)
def _heard(caplog):
    caplog.set_level(logging.INFO, logger="gradmimic")


def test_the_head_goes_forward_and_says_nothing(caplog):
    model, reference = zoo.build("mlp", 4)
    assert picked(model, reference, "head") == "forward"
    assert not caplog.records


@pytest.mark.parametrize("kind", [k for k in zoo.MODELS if k != "cnn-batchnorm-train"])
def test_more_than_the_head_is_scored_by_ghost_and_it_says_so_once(kind, caplog):
    model, reference = zoo.build(kind, 3)
    batch, losses = zoo.draw(kind, 6), zoo.losses_of("cross-entropy")
    expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
    scores = mimic_scores(model, reference, batch, losses, params="all")  # by forward: no step
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    assert not caplog.records
    mimic = GradMimic(model, reference, params="all")
    for _ in range(2):
        with mimic:
            values = losses(model, batch)
        mimic.weigh(values)
        torch.testing.assert_close(mimic.scores, expected, rtol=1e-9, atol=1e-9)
    (said,) = [record.getMessage() for record in caplog.records]
    assert "engine='auto' uses 'ghost' for" in said


def test_batch_statistics_go_forward(caplog):
    model, reference = zoo.build("cnn-batchnorm-train", 3)
    batch, losses = zoo.draw("cnn", 6), zoo.losses_of("cross-entropy")
    expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
    mimic = GradMimic(model, reference, params="all")
    with mimic:
        values = losses(model, batch)
    mimic.weigh(values)
    torch.testing.assert_close(mimic.scores, expected, rtol=1e-9, atol=1e-9)
    assert "goes on with 'forward'. 1 normalizes by the statistics" in caplog.text
    assert picked(model.eval(), reference, "all") == "ghost"


def test_a_pass_that_ghost_gives_up_is_finished_and_the_next_one_goes_forward(caplog):
    model, reference = zoo.build("mlp", 4)
    losses, names = zoo.losses_of("contrastive"), []
    mimic = GradMimic(model, reference, params="all")
    for seed in range(3):
        batch = zoo.draw("mlp", 7, seed=seed)
        expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
        with mimic:
            values = losses(model, batch)
            names.append(mimic._pass.name)
        loss = mimic.weigh(values)
        torch.testing.assert_close(mimic.scores, expected, rtol=1e-9, atol=1e-9)
        model.zero_grad()
        loss.backward()
        own = [p.grad.clone() for p in model.parameters()]
        again = (mimic.weights * losses(model, batch)).sum()
        torch.testing.assert_close(
            own, list(torch.autograd.grad(again, list(model.parameters()))), rtol=1e-9, atol=1e-9
        )
    assert names == ["ghost", "forward", "forward"]
    assert caplog.text.count("goes on with 'forward'. Samples interact") == 1


class Bags(nn.Module):
    """Neither ``ghost`` nor ``forward`` can do it."""

    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(7, 3, mode="max"), nn.Linear(3, 4)

    def forward(self, x):
        return self.head(self.bag(x))


def test_what_neither_can_is_left_to_the_reverse_mode(caplog):
    model = Bags().double()
    reference, batch = zoo.nearby(model), (torch.randint(7, (5, 4)), torch.randint(4, (5,)))

    def losses(m, rows):
        return F.cross_entropy(m(rows[0]), rows[1], reduction="none")

    expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
    for _ in range(2):
        scores = mimic_scores(model, reference, batch, losses, params="all")
        torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)
    assert picked(model, reference, "all", backward="never") == "transposed"
    assert caplog.text.count("goes on with 'ghost'") == 1
    assert caplog.text.count("goes on with 'transposed'") == 1


def test_it_does_not_take_a_backward_pass_for_each_sample_of_a_large_batch(monkeypatch):
    monkeypatch.setattr("gradmimic.engines.transposed.MOST", 4)
    model = Bags()
    batch = torch.randint(7, (5, 4)), torch.randint(4, (5,))
    mimic = GradMimic(model, zoo.nearby(model), params="all")
    with mimic:
        losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    with pytest.raises(UnsupportedOperationError, match="each of 5 samples.*engine='forward'"):
        mimic.weigh(losses)


def test_scores_alone_are_tried_again_where_forward_mode_lacks_an_operation():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = nn.BatchNorm1d(3), nn.Linear(3, 4)

        def forward(self, x):
            return torch.cdist(self.layer(self.norm(x)), torch.eye(4, dtype=x.dtype))

    model = Pairs().double()
    reference, batch = zoo.nearby(model), zoo.draw("mlp", 6)
    losses = zoo.losses_of("cross-entropy")
    expected = mimic_scores(model, reference, batch, losses, params="all", engine="oracle")
    scores = mimic_scores(model, reference, batch, losses, params="all")
    torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-9)


def test_canaries_without_rows_do_not_stop_it():
    model, reference = zoo.build("mlp", 4)
    batch = zoo.draw("mlp", 5)
    mimic = GradMimic(model, reference, params="all")
    for _ in range(2):
        with mimic:
            losses = zoo.losses_of("cross-entropy")(model, batch)
            canaries = CanaryLosses(losses[:1] * 2, [0], ["own"])
        mimic.weigh(losses, canaries=canaries).backward()
    assert len(mimic.scores) == 5


def test_errors_of_the_losses_stay_errors():
    model, reference = zoo.build("mlp", 3)
    with pytest.raises(LossError, match="do not depend on the scored parameters"):
        mimic_scores(
            model, reference, zoo.draw("mlp", 3), lambda m, b: m(b.x).detach().sum(1), params="all"
        )


@pytest.mark.parametrize("loss", zoo.LOSSES)
def test_the_transposed_derivative_is_that_of_the_definition(loss):
    model, reference = zoo.build("mlp", 3)
    batch = zoo.draw("mlp", 6)
    subset = choose(model, "all")
    v = direction(subset, load_reference(reference).match(model, subset))
    assert isinstance(v, Direction)
    found = transposed_derivative(zoo.losses_of(loss)(model, batch), dict(subset.parameters), v)
    expected = mimic_scores(
        model, reference, batch, zoo.losses_of(loss), params="all", engine="oracle"
    )
    torch.testing.assert_close(found / -v.norm, expected, rtol=1e-9, atol=1e-9)
