"""One training on pairs: what decays, what is clamped, when it measures, and what settles first."""

import math
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_clip_planted import toy
from test_clip_pool import held

from gradmimic import GradMimic
from gradmimic.run.clip.answers import Answers
from gradmimic.run.clip.prepare import fed_alike, lock
from gradmimic.run.clip.small import open_small
from gradmimic.run.clip.train import epoch_ends, settle, start, train, train_mode
from gradmimic.transport import FIRST


def scaled(value):
    """Return the toy with a temperature of its own."""
    pair = toy()
    pair.model.logit_scale = torch.nn.Parameter(torch.tensor(value, dtype=torch.float64))
    return replace(pair, scale=lambda model: (model.logit_scale.exp(), None))


def test_matrices_decay_and_nothing_else():
    training = start(scaled(1.0), lr=0.5, weight_decay=0.1)
    decay = {
        id(parameter): group["weight_decay"]
        for group in training.optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in training.model.named_parameters():
        assert decay.pop(id(parameter)) == (0.1 if name.endswith("weight") else 0.0)
    assert decay == {}


@pytest.mark.parametrize(("loss", "most"), [("clip", math.log(100)), ("siglip", 9.0)])
def test_the_temperature_stops_where_clip_stops_it(loss, most):
    pair = replace(scaled(9.0), loss=loss)
    pair.model.logit_scale.requires_grad_(False)  # only what bounds it moves it
    if loss == "siglip":
        pair = replace(pair, scale=lambda model: (model.logit_scale.exp() * 0 + 1, torch.zeros(())))
    training = start(pair, lr=1e-3, weight_decay=0.0)
    train(training, held(8, 4), ends=[2])
    assert float(pair.model.logit_scale) == pytest.approx(most)


def test_it_measures_at_the_ends_of_epochs_and_stops_at_the_last():
    data, training = held(20, 4), start(toy(), lr=1e-3, weight_decay=0.0)
    ends = epoch_ends(data, 3)
    assert ends == [5, 10, 15]
    steps, rounds = [], []
    curve = train(
        training,
        data,
        ends=[5, 12],
        measure=lambda _model: {"step": training.at.step},
        on_step=lambda: steps.append(training.at.step),
        on_round=lambda: rounds.append((training.at.epoch, training.at.round)),
    )
    assert steps == [*range(1, 13)]
    assert curve.measured == [{"step": 5}, {"step": 12}]
    assert len(curve.loss) == 2
    assert rounds == [(0, 1), (1, 1)]


def test_locked_modules_stay_in_evaluation():
    pair = open_small(image_size=16)
    lock(pair, "text")
    model = pair.model
    moving = {name for name, own in model.named_parameters() if own.requires_grad}
    assert moving == {n for n, _ in model.named_parameters() if n.startswith("image")} | {
        "log_scale"
    }
    train_mode(model)
    assert model.image.training
    assert not model.text.training
    assert not model.words.training


def test_settling_moves_nothing_and_lets_every_pair_be_scored():
    pair, reference = open_small(seed=0, image_size=16), open_small(seed=1, image_size=16)
    data = held(12, 6)
    images = torch.rand(12, 3, 16, 16)
    data = replace(data, images=images, tokenize=pair.tokenize)
    answers = Answers(reference, pair)
    training = start(answers.beside(pair), lr=1e-3, weight_decay=0.0)
    mimic = GradMimic(pair.model, answers, params=pair.scored(), align="transport")
    before = deepcopy(pair.model.state_dict())
    settle(training, data, mimic, FIRST)
    assert mimic.step == 0
    for name, own in pair.model.state_dict().items():
        assert torch.equal(own, before[name])
    train(training, data, ends=[1], mimic=mimic)
    assert mimic.scores is not None
    assert mimic.step == 1


def test_answers_are_those_of_the_reference_for_the_same_pairs():
    pair, reference = open_small(seed=0, image_size=16), open_small(seed=1, image_size=16)
    batch = replace(held(4, 4), images=torch.rand(4, 3, 16, 16), tokenize=pair.tokenize).batch(
        torch.arange(4)
    )
    answers = Answers(reference, pair)
    said = answers.beside(pair).embed(pair.model, batch)
    torch.testing.assert_close(said.image, pair.embed(pair.model, batch).image)
    theirs = reference.embed(reference.model, batch)
    found = answers("anything", more="at all")
    assert [*found] == ["image_projection", "text_projection"]
    torch.testing.assert_close(found["image_projection"], theirs.image)
    torch.testing.assert_close(found["text_projection"], theirs.text)


def test_models_are_fed_alike_if_they_make_the_same_of_pictures_and_captions():
    one = open_small(image_size=16)
    assert fed_alike(one, open_small(seed=1, image_size=16))
    assert not fed_alike(one, open_small(image_size=24))
    other = replace(one, tokenize=lambda texts: one.tokenize([text.upper() for text in texts]))
    assert fed_alike(one, other)  # not equal, but the same words
    other = replace(one, tokenize=lambda texts: one.tokenize([text[:5] for text in texts]))
    assert not fed_alike(one, other)
