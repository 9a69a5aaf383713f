"""Backbones, problems and trainings against what transformers and plain loops come to."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_copies import write_copy, write_features, write_vit
from torch import nn
from torch.nn import functional as F

from gradmimic.data.noise import symmetric
from gradmimic.errors import ConfigError
from gradmimic.log import ScoreLog
from gradmimic.reproduce import problems
from gradmimic.reproduce.backbones import Backbone, fresh_head
from gradmimic.reproduce.digest import digest
from gradmimic.reproduce.problems import open_problem
from gradmimic.reproduce.references import kept_reference
from gradmimic.reproduce.training import (
    APART,
    METHODS,
    fit,
    outputs_of,
    steps,
    train_reference,
)
from gradmimic.run.self_reference import Recipe
from gradmimic.run.train import batches, few_of_each
from gradmimic.scorers import SCORERS

RECIPE = Recipe(epochs=2, batch_size=8, lr=1e-2, weight_decay=1e-2, seed=3)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):  # an @ before a revision is one of the hub alone
    return str(write_vit(tmp_path_factory.mktemp("vit@home")))


@pytest.fixture
def problem(tmp_path):
    return open_problem("mine", write_features(tmp_path), "features", "probe", tmp_path)


@pytest.fixture
def noisy(problem):
    return torch.from_numpy(symmetric(problem.train.labels.numpy(), 0.4, 3, 0))


@pytest.mark.parametrize("size", [16, 8])
def test_a_backbone_sees_what_the_librarys_processor_makes(vit, size):
    from PIL import Image
    from transformers import AutoImageProcessor

    model = Backbone(vit, 3).with_head(fresh_head(16, 3, 0)).eval()
    pictures = torch.randint(0, 256, (5, 3, size, size), dtype=torch.uint8)
    processor = AutoImageProcessor.from_pretrained(vit, backend="pil")
    shown = [Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures]
    expected = model.model(**processor(shown, return_tensors="pt")).logits
    # Pillow rounds what it stretches to whole numbers
    torch.testing.assert_close(model(pictures), expected, rtol=0, atol=1e-5 if size == 16 else 0.02)


def test_the_head_reads_what_encode_returns(vit):
    model = Backbone(vit, 3)
    head = fresh_head(16, 3, seed=1)
    pictures = torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8)  # more than one chunk
    seen = model.with_head(head).encode(pictures)
    torch.testing.assert_close(head(seen), model(pictures))
    with torch.no_grad():
        torch.testing.assert_close(head(seen), model(pictures))


def test_digests_are_of_what_lies_below_the_head(vit, tmp_path):
    model, other = Backbone(vit, 3), Backbone(str(write_vit(tmp_path, seed=1)), 3)
    assert model.digest == Backbone(vit, 7).digest != other.digest
    assert digest([b"a", None]) != digest([None, b"a"])
    assert digest(np.zeros(2, np.float32)) != digest(np.zeros(1, np.float64))


def test_backbones_that_cannot_be(tmp_path, monkeypatch, vit):
    with pytest.raises(ConfigError, match=r"none could not be read: .* Expected a folder"):
        Backbone(str(tmp_path / "none"), 3)
    from gradmimic.reproduce import backbones

    read = backbones._read
    monkeypatch.setattr(backbones, "_read", lambda source, _classes: read(source, 4))
    with pytest.raises(ConfigError, match=r"last layer of .* is classifier, Linear.* of 3 classes"):
        Backbone(vit, 3)


def test_a_probe_is_encoded_once(tmp_path, vit, monkeypatch):
    copy = write_copy(tmp_path / "copy", "cifar10", size=32)
    first = open_problem("cifar10", copy, vit, "probe", tmp_path / "features")
    model = Backbone(vit, 3)
    pictures = torch.from_numpy(problems.load_set("cifar10", copy).test.pictures(16))
    torch.testing.assert_close(first.test.inputs, model.encode(pictures))

    monkeypatch.setattr(Backbone, "encode", lambda *_: pytest.fail("encoded again"))
    shutil.copytree(copy, tmp_path / "elsewhere")
    second = open_problem("cifar10", tmp_path / "elsewhere", vit, "probe", tmp_path / "features")
    assert second.identity == first.identity
    assert torch.equal(second.train.inputs, first.train.inputs)


def test_identities_tell_contents_apart(tmp_path, vit):
    def identity(seed, tuning="full", backbone=vit):
        folder = write_copy(tmp_path / str(seed), "pets", train=12 + seed)
        return open_problem("pets", folder, backbone, tuning, tmp_path).identity

    other = write_vit(tmp_path / Path(vit).name, seed=1)
    found = [
        identity(0), identity(1), identity(0, tuning="probe"), identity(0, backbone=str(other)),
    ]  # fmt: skip
    assert found[0] == identity(0)
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


def test_full_tuning_trains_everything_from_a_head_by_its_seed(tmp_path, vit):
    opened = open_problem("dtd", write_copy(tmp_path, "dtd"), vit, "full", tmp_path)
    assert opened.train.inputs.shape == (12, 3, 16, 16)
    before, same, other = opened.start(3), opened.start(3), opened.start(4)
    torch.testing.assert_close(before.state_dict(), same.state_dict(), rtol=0, atol=0)
    assert not torch.equal(before.model.classifier.weight, other.model.classifier.weight)
    reference = train_reference(opened, RECIPE)
    after = fit(opened, opened.train.labels, "mimic", RECIPE, reference=reference).model
    moved = {n for n, p in after.named_parameters() if not torch.equal(p, before.get_parameter(n))}
    assert moved == {n for n, _ in before.named_parameters()}


def test_features_are_not_tuned_in_full(tmp_path):
    with pytest.raises(ConfigError, match=r"features have no weights to train. Expected --tun"):
        open_problem("mine", write_features(tmp_path), "features", "full", tmp_path)


def by_hand(problem, labels, weigh):
    """Train the probe in float64, by gradients of single samples; ``weigh(g, θ) -> [b]``."""
    head = problem.start(RECIPE.seed).double()
    x, y = problem.train.inputs.double(), labels
    optimizer = torch.optim.AdamW(head.parameters(), lr=RECIPE.lr, weight_decay=RECIPE.weight_decay)
    for _, rows in batches(len(y), RECIPE.batch_size, RECIPE.epochs, RECIPE.seed):
        gradients = []
        for row in rows:
            own = F.cross_entropy(head(x[row][None]), y[row][None])
            taken = torch.autograd.grad(own, [*head.parameters()])
            gradients.append(torch.cat([part.flatten() for part in taken]))
        g = torch.stack(gradients)  # [b, all]
        total = (weigh(g, head)[:, None] * g).sum(0)
        sizes = [parameter.numel() for parameter in head.parameters()]
        for parameter, part in zip(head.parameters(), total.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
    return head


def test_plain_and_mimic_as_by_hand(problem, noisy):
    reference = train_reference(problem, RECIPE)
    target = torch.cat([p.detach().double().flatten() for p in reference.parameters()])

    def mimic(g, head):
        v = target - torch.cat([p.detach().flatten() for p in head.parameters()])
        return torch.softmax(-(g @ v) / v.norm() / 0.5, 0)

    plain = lambda g, _head: torch.full((len(g),), 1 / len(g))
    for method, weigh in (("plain", plain), ("mimic", mimic)):
        found = fit(problem, noisy, method, RECIPE, reference=reference, temperature=0.5).model
        expected = by_hand(problem, noisy, weigh)
        for own, other in zip(found.parameters(), expected.parameters(), strict=True):
            torch.testing.assert_close(own.double(), other, rtol=0, atol=2e-5)


def test_all_methods_start_alike_and_see_the_same_batches(problem, noisy):
    reference = train_reference(problem, RECIPE)
    curves = {m: fit(problem, noisy, m, RECIPE, reference=reference).curve for m in METHODS}
    assert {len(own.step_loss) for own in curves.values()} == {steps(problem, RECIPE)} == {16}
    assert len({own.step_loss[0] for own in curves.values()}) == 1
    assert len({tuple(own.step_loss) for own in curves.values()}) == len(METHODS)


def test_the_reference_learns_clean_labels_from_another_seed(problem, tmp_path):
    own = train_reference(problem, RECIPE)
    apart = RECIPE._replace(seed=RECIPE.seed + APART)
    same = fit(problem, problem.train.labels, "plain", apart).model
    torch.testing.assert_close(own.state_dict(), same.state_dict(), rtol=0, atol=0)
    calls = []
    for _ in range(2):
        kept = kept_reference(problem, RECIPE, tmp_path / "kept", lambda: calls.append(1))
        torch.testing.assert_close(kept.state_dict(), own.state_dict(), rtol=0, atol=0)
    assert len(calls) == steps(problem, RECIPE)
    assert outputs_of(own, problem).of(range(60))[1].all()


def test_a_few_clean_samples_of_each_class(problem):
    inputs, labels = few_of_each(problem.train, 0, 5)
    assert labels.bincount().tolist() == [5, 5, 5]
    where = (problem.train.inputs[:, None] == inputs).all(2).float().argmax(0)
    assert torch.equal(problem.train.labels[where], labels)
    assert len(where.unique()) == 15
    assert not torch.equal(few_of_each(problem.train, 1, 5)[0], inputs)
    assert few_of_each(problem.train, 0, 100)[1].bincount().tolist() == [20, 20, 20]


def test_methods_that_need_a_reference_say_so(problem, noisy):
    for method in ("mimic", "rho", "mimic_auto"):
        with pytest.raises(ConfigError, match=rf"method {method} needs a reference; exp"):
            fit(problem, noisy, method, RECIPE)
    assert isinstance(fit(problem, noisy, "agra", RECIPE).model, nn.Linear)


def test_every_scorer_is_logged_beside(problem, noisy, tmp_path):
    reference = train_reference(problem, RECIPE)
    others = [name for name in SCORERS if name != "mimic"]
    with ScoreLog(tmp_path / "log") as log:
        fit(problem, noisy, "mimic", RECIPE, reference=reference, scorers=others, log=log)
        assert {*log.scan().column("scorer").to_pylist()} == {*SCORERS}
