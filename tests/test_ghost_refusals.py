"""What engine ``ghost`` refuses, so that no wrong score leaves it."""

import pytest
import torch
import zoo
from layers import (
    WIDTH,
    around,
    assert_scores,
    losses_of,
)
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradmimic import GradMimic, mimic_scores
from gradmimic.canaries import CanaryLosses
from gradmimic.errors import LossError, ParameterError, UnsupportedOperationError, UsageError


def test_canaries_without_rows_are_refused():
    model, reference = zoo.build("mlp", 4)
    batch = zoo.draw("mlp", 3)
    mimic = GradMimic(model, reference, params="all", engine="ghost")
    with mimic:
        losses = F.cross_entropy(model(batch.x), batch.y, reduction="none")
    with pytest.raises(LossError, match=r"CanaryLosses\(…, rows=…\)"):
        mimic.weigh(losses, canaries=CanaryLosses(losses[:1], [0], ["own"]))


def test_reentrant_checkpointing_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, WIDTH))
    batch = torch.randn(5, 3, requires_grad=True), torch.randint(WIDTH, (5,))

    def losses(m, rows):
        h = checkpoint(m[0], rows[0], use_reentrant=True)
        return F.cross_entropy(m[1](h), rows[1], reduction="none")

    with pytest.raises(UnsupportedOperationError, match="use_reentrant=False"):
        mimic_scores(model, zoo.nearby(model), batch, losses, params="all", engine="ghost")


@pytest.mark.parametrize("loss", ["contrastive"])
@pytest.mark.parametrize("b", [2, 3, 17])
def test_losses_in_which_samples_interact_are_refused(loss, b):
    model, reference = zoo.build("mlp", 4)
    with pytest.raises(UnsupportedOperationError, match=r"Samples interact above linear\("):
        mimic_scores(
            model, reference, zoo.draw("mlp", b), zoo.losses_of(loss), params="all", engine="ghost"
        )


def test_another_loss_of_the_same_model_is_looked_at_again():
    model, reference = zoo.build("mlp", 4)
    batch = zoo.draw("mlp", 6)
    mimic_scores(
        model, reference, batch, zoo.losses_of("cross-entropy"), params="all", engine="ghost"
    )
    with pytest.raises(UnsupportedOperationError, match="engine='forward'"):
        mimic_scores(
            model, reference, batch, zoo.losses_of("contrastive"), params="all", engine="ghost"
        )


def test_a_pass_without_gradients_shows_nothing_of_the_samples():
    model, reference = zoo.build("mlp", 4)
    batch, count = zoo.draw("mlp", 6), torch.zeros(())

    def losses(m, rows):
        return zoo.losses_of("contrastive")(m, rows) * count

    assert (mimic_scores(model, reference, batch, losses, params="all", engine="ghost") == 0).all()
    count += 1
    with pytest.raises(UnsupportedOperationError, match="Samples interact"):
        mimic_scores(model, reference, batch, losses, params="all", engine="ghost")


@pytest.mark.parametrize("params", ["all", "0.*", "1.*"])
def test_statistics_of_the_batch_are_refused_above_scored_layers_only(params):
    model, reference = zoo.build("cnn-batchnorm-train", 3)
    batch, losses = zoo.draw("cnn", 8), zoo.losses_of("cross-entropy")
    with pytest.raises(UnsupportedOperationError, match="1 normalizes by the statistics"):
        mimic_scores(model, reference, batch, losses, params=params, engine="ghost")
    assert_scores(model, reference, batch, losses, params="head")


def test_what_cannot_be_seen_is_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, WIDTH))
    x, y = torch.randn(5, 3), torch.randint(WIDTH, (5,))
    mimic = GradMimic(model, zoo.nearby(model), params="all", engine="ghost")
    with mimic:
        h = model[0](x)
    losses = F.cross_entropy(model[1](h), y, reduction="none")
    with pytest.raises(UnsupportedOperationError, match=r"1\.weight reaches the losses by a way"):
        mimic.weigh(losses)


def test_an_operation_that_cannot_be_differentiated_is_named():
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.bag, self.head = nn.EmbeddingBag(7, 3, mode="max"), nn.Linear(3, WIDTH)

        def forward(self, x):
            return self.head(self.bag(x))

    model = Bag()
    batch = torch.randint(7, (5, 4)), torch.randint(WIDTH, (5,))
    with pytest.raises(UnsupportedOperationError, match=r"embedding_bag by bag\.weight"):
        mimic_scores(model, zoo.nearby(model), batch, losses_of, params="all", engine="ghost")


def test_an_input_that_was_written_over_is_refused():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.head = nn.Parameter(torch.randn(3)), nn.Linear(3, WIDTH)
            self.weight.requires_grad_(False)

        def forward(self, x):
            y = F.layer_norm(x, (3,)) if False else x + 0
            z = F.linear(y, self.head.weight.detach() * 0 + 1) + 0
            out = self.head(y)
            y.add_(1)
            return out + z

    model, batch = Careless(), (torch.randn(5, 3), torch.randint(WIDTH, (5,)))
    with pytest.raises(UnsupportedOperationError, match=r"input of linear\(.*changed in place"):
        mimic_scores(model, zoo.nearby(model), batch, losses_of, params="head.*", engine="ghost")


def test_detached_losses_and_a_second_weighing_are_errors():
    model, reference, batch = around("linear", 4)
    with pytest.raises(LossError, match="do not depend on the scored parameters"):
        mimic_scores(model, reference, batch, lambda m, x: losses_of(m, x).detach(), engine="ghost")
    mimic = GradMimic(model, reference, engine="ghost")
    with mimic:
        losses = losses_of(model, batch)
    mimic.weigh(losses)
    with pytest.raises(UsageError, match="no forward pass to weigh"):
        mimic.weigh(losses)
    with pytest.raises(ParameterError, match="backward='thrice' is unknown"):
        GradMimic(model, reference, backward="thrice")
