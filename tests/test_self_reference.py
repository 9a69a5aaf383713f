import copy
from dataclasses import replace
from math import ceil

import numpy as np
import pytest
import torch
from blobs import CLASSES, make_blobs
from torch.nn import functional as F

from gradmimic.data import symmetric
from gradmimic.errors import LossError, ParameterError
from gradmimic.reweight import GradMimic
from gradmimic.run.models import build_model
from gradmimic.run.self_reference import SHARPER, Recipe, agreement, self_reference, sharpened
from gradmimic.run.train import Rows, train
from gradmimic.separation import auroc

KINDS = ("cross_fit", "early", "average")
RECIPE = Recipe(epochs=4, batch_size=16, lr=0.01, weight_decay=1e-5, seed=0)


def noisy(n=240, rate=0.4, seed=0):
    x, y = make_blobs(n, seed)
    labels = symmetric(y, rate, CLASSES, seed)
    return Rows(torch.from_numpy(x), torch.from_numpy(labels)), labels != y


def linear(data, seed=0):
    return build_model("linear", data.inputs.numpy(), CLASSES, hidden=1, seed=seed)


def judged(outputs, data):
    return -F.cross_entropy(outputs, data.labels, reduction="none").numpy()


def plainly(model, data, epochs):
    train(
        model, data, epochs=epochs, batch_size=RECIPE.batch_size, lr=RECIPE.lr,
        weight_decay=RECIPE.weight_decay, seed=RECIPE.seed,
    )  # fmt: skip
    return model


def mean_scores(reference, data):
    """Score every sample while a fresh model trains, as a run does."""
    model, total = linear(data), torch.zeros(len(data))
    mimic = GradMimic(model, reference, params="head", temperature=0.7)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.lr)
    for _ in range(8):
        for rows in torch.randperm(len(data)).split(16):
            with mimic:
                logits = model(data.inputs[rows])
                losses = F.cross_entropy(logits, data.labels[rows], reduction="none")
            optimizer.zero_grad()
            mimic.weigh(losses).backward()
            optimizer.step()
            total[rows] += mimic.scores
    return total.numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_labels_stand_out_without_a_single_trusted_one(kind):
    data, wrong = noisy()
    reference = self_reference(kind, linear(data), data, RECIPE)
    assert auroc(judged(reference.outputs, data), wrong) > 0.88
    assert auroc(mean_scores(reference.model, data), wrong) > (0.8 if kind == "early" else 0.9)


def test_a_reference_as_unsure_as_its_labels_pulls_toward_doubt():
    data, wrong = noisy()
    model = self_reference("early", linear(data), data, RECIPE).model
    sharp = auroc(mean_scores(model, data), wrong)
    assert auroc(mean_scores(sharpened(model, 1 / SHARPER), data), wrong) < 0.6 < sharp


def test_cross_fitting_does_not_learn_wrong_labels_by_heart():
    data, wrong = noisy(90, 0.3)
    wide = Rows(torch.cat([data.inputs, torch.randn(90, 200)], 1), data.labels)
    recipe = RECIPE._replace(epochs=40)

    def believed(kind):
        outputs = self_reference(kind, linear(wide), wide, recipe).outputs
        return (outputs.argmax(1) == wide.labels)[wrong].float().mean()

    assert believed("average") > 0.9
    assert believed("cross_fit") < 0.6


def test_early_is_the_first_epoch_of_the_plain_training():
    data, _ = noisy()
    initial = linear(data)
    first = plainly(copy.deepcopy(initial), data, 1)
    found = self_reference("early", initial, data, RECIPE).model
    torch.testing.assert_close(found.head.weight, SHARPER * first.head.weight)
    torch.testing.assert_close(found.head.bias, SHARPER * first.head.bias)


def test_average_is_the_mean_of_the_epochs():
    data, _ = noisy()
    initial = linear(data)
    ends = [plainly(copy.deepcopy(initial), data, k).head.weight for k in range(1, 5)]
    found = self_reference("average", initial, data, RECIPE).model
    torch.testing.assert_close(found.head.weight, SHARPER * torch.stack(ends).mean(0))


@pytest.mark.parametrize("kind", ["early", "average"])
def test_outputs_are_the_models(kind):
    data, _ = noisy()
    model, outputs = self_reference(kind, linear(data), data, RECIPE)
    torch.testing.assert_close(outputs, model(data.inputs).detach())


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_reference_and_nothing_else_moves(kind):
    data, _ = noisy()
    initial = linear(data)
    before, state = copy.deepcopy(initial.state_dict()), torch.random.get_rng_state()
    one = self_reference(kind, initial, data, RECIPE)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(77)
    two = self_reference(kind, initial, data, RECIPE)
    assert torch.equal(one.outputs, two.outputs)
    assert torch.equal(one.model.head.weight, two.model.head.weight)
    for name, tensor in initial.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("trusted", [None, 20])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step_is_announced(kind, trusted):
    data, _ = noisy(100)
    more = None if trusted is None else noisy(trusted, 0.0)[0]
    told = []

    def progress(what, steps):
        told.append([what, steps, 0])

        def step():
            told[-1][2] += 1

        return step

    self_reference(kind, linear(data), data, RECIPE, trusted=more, progress=progress)
    assert len(told) == 1
    what, steps, taken = told[0]
    assert what == "reference"
    assert steps == taken
    if kind == "early":
        assert steps == ceil((100 + (trusted or 0)) / 16)


@pytest.mark.parametrize("kind", KINDS)
def test_trusted_rows_take_part(kind):
    data, _ = noisy(60)
    useless = replace(data, labels=torch.randint(0, CLASSES, (60,)))
    x, y = make_blobs(300, 5)
    trusted = Rows(torch.from_numpy(x), torch.from_numpy(y))
    found = self_reference(kind, linear(data), useless, RECIPE, trusted=trusted)
    _, truth = make_blobs(60, 0)
    assert found.outputs.shape == (60, CLASSES)
    assert (found.outputs.argmax(1).numpy() == truth).mean() > 0.9


def test_a_trunk_is_trained_too():
    data, wrong = noisy(600)
    initial = build_model("mlp", data.inputs.numpy(), CLASSES, hidden=8, seed=0)
    model, outputs = self_reference("cross_fit", initial, data, RECIPE)
    assert not torch.equal(model.trunk[0].weight, initial.trunk[0].weight)
    assert auroc(judged(outputs, data), wrong) > 0.9


def test_sharpening_changes_no_class():
    data, _ = noisy(20)
    model = linear(data)
    before = model(data.inputs)
    after = sharpened(copy.deepcopy(model))(data.inputs)
    torch.testing.assert_close(after, SHARPER * before)


def test_agreement_is_the_probability_of_the_label():
    outputs = torch.tensor([[0.0, np.log(3.0)], [0.0, np.log(3.0)]])
    torch.testing.assert_close(
        agreement(outputs, torch.tensor([0, 1])), torch.tensor([0.25, 0.75]), check_dtype=False
    )


def test_too_few_samples():
    data, _ = noisy(2, 0.0)
    with pytest.raises(ParameterError, match=r"as many as there are samples \(2\)"):
        self_reference("cross_fit", linear(noisy()[0]), data, RECIPE)


def test_a_training_that_diverges_says_so():
    data, _ = noisy(60)
    data.inputs[3] = torch.inf
    with pytest.raises(LossError):
        self_reference("early", linear(noisy()[0]), data, RECIPE)
