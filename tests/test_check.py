"""A reference is told to be usable or useless before anything is trained on it."""

import copy
import json

import pytest
import torch
from noisy import CANARIES, WIDTH, K, World, fitted, mlp
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic, mimic_scores
from gradmimic.canaries import CanaryLosses
from gradmimic.check import MOST, check_reference
from gradmimic.errors import (
    DataError,
    LossError,
    ParameterError,
    UsageError,
    UselessReferenceError,
)
from gradmimic.outputs import Outputs
from gradmimic.separation import Area
from gradmimic.verdict import AlignmentCheck, concluded, judged


@pytest.fixture(scope="module")
def world():
    return World()


# What is told of good ones


def test_a_reference_with_the_same_trunk_is_usable_as_it_is(world):
    found = world.check(world.same, world.probe)
    assert (found.usable, found.best) == (True, "none")
    assert list(found.alignments) == ["none", "outputs"]
    plain = found.alignments["none"]
    assert plain.auroc["uniform/6"].value > 0.7
    assert plain.auroc["uniform/6"].low < plain.auroc["uniform/6"].value
    assert 0.5 < plain.auroc["confusable/6"].value < plain.auroc["uniform/6"].value
    assert plain.losses[1] < plain.losses[0]  # on the way to the reference
    assert 0.5 < plain.positive < 1
    assert plain.cosine > 0.3
    assert "projections into one space" in found.impossible["rotation"]
    assert found.samples == 1500
    assert found.missing == 0
    found.raise_if_useless()


def test_numbers_are_those_of_the_formulas(world):
    theta = {name: p.detach() for name, p in world.model[2].named_parameters()}
    there = {name: p.detach() for name, p in world.same[2].named_parameters()}
    here = torch.cat([p.flatten() for p in theta.values()])
    v = torch.cat([(there[name] - p).flatten() for name, p in theta.items()])
    own = world.check(world.same, align="none").alignments["none"]
    assert own.cosine == pytest.approx(torch.cosine_similarity(here, here + v, dim=0).item())
    assert own.distance == pytest.approx((v.norm() / here.norm()).item())
    halfway = copy.deepcopy(world.model)
    halfway[2].load_state_dict({name: (theta[name] + there[name]) / 2 for name in theta})
    with torch.no_grad():
        rows = torch.arange(1500)
        expected = [world.losses(model, rows)[0].mean().item() for model in (world.model, halfway)]
    assert (own.losses[0], own.losses[2]) == pytest.approx(expected)
    scores = mimic_scores(world.model, world.same, rows, lambda m, r: world.losses(m, r)[0])
    assert own.positive == pytest.approx((scores > 0).float().mean().item())
    assert own.spread == pytest.approx(scores.std(correction=0).item(), rel=1e-5)


def test_from_other_initial_weights_outputs_alone_are_usable(world):
    found = world.check(world.other)
    assert (found.usable, found.best) == (True, "outputs")
    plain = found.alignments["none"]
    assert plain.usable is False
    assert "inverted: bad samples score higher than good ones" in plain.reason
    assert found.alignments["outputs"].auroc["uniform/6"].value > 0.7
    refused = world.check(world.other, align="none")
    assert refused.usable is False
    with pytest.raises(UselessReferenceError, match="inverted where .* other initial weights"):
        refused.raise_if_useless()


def test_a_table_of_outputs_is_usable(world, tmp_path):
    table = world.outputs(world.other)
    found = world.check(table, ids=lambda rows: rows)
    assert (found.usable, found.best) == (True, "outputs")
    assert "table of outputs" in found.impossible["none"]
    module = world.check(world.other).alignments["outputs"]
    own = found.alignments["outputs"]
    assert own.losses[0] == pytest.approx(module.losses[0], rel=1e-3)  # float16
    assert own.losses[1:] == (None,) * 4  # outputs lie in no place among the weights
    assert own.area == pytest.approx(module.area, abs=1e-3)
    table.write(tmp_path / "outputs.parquet")
    read = world.check(tmp_path / "outputs.parquet", ids=lambda rows: rows)
    assert read.as_dict() == found.as_dict()


def test_samples_that_the_table_lacks_are_counted_and_left_out(world):
    half = Outputs(range(0, 1500, 2), world.outputs(world.other).of(range(0, 1500, 2))[0])
    found = world.check(half, ids=lambda rows: rows)
    assert (found.samples, found.missing, found.usable) == (750, 750, True)
    assert found.alignments["outputs"].canaries == {"uniform/6": 750, "confusable/6": 750}
    none = world.check(Outputs([-1], torch.zeros(1, K)), ids=lambda rows: rows)
    assert none.usable is False
    assert "knows none of these 1500 samples" in none.reason


class Clip(nn.Module):
    def __init__(self, seed, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(20, width, False), nn.Linear(16, width, False)

    def forward(self, images, texts):
        one, other = (F.normalize(z, dim=1) for z in (self.image(images), self.text(texts)))
        return 5 * one @ other.T  # [b, b]


def pairs(n, seed):
    g = torch.Generator().manual_seed(0)
    to_image, to_text = torch.randn(10, 20, generator=g), torch.randn(10, 16, generator=g)
    g.manual_seed(seed)
    meaning = torch.randn(n, 10, generator=g)
    noise = [0.3 * torch.randn(n, width, generator=g) for width in (20, 16)]
    return meaning @ to_image + noise[0], meaning @ to_text + noise[1]


def contrastive(model, images, texts):
    similarity = model(images, texts)
    losses = -(similarity.log_softmax(1).diag() + similarity.log_softmax(0).diag()) / 2
    return similarity, losses


def matched(model, images, texts, steps):
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,), generator=g)
        optimizer.zero_grad()
        contrastive(model, images[rows], texts[rows])[1].mean().backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("width", [8, 6])
def test_projections_from_other_initial_weights_are_usable_by_rotation(width):
    images, texts = pairs(1000, 1)
    texts[:300] = texts[:300].roll(1, 0)
    model = matched(Clip(0), images, texts, 30)
    reference = matched(Clip(5, width), *pairs(1000, 2), 300)

    def losses(model, rows):
        similarity, losses = contrastive(model, images[rows], texts[rows])
        return losses, CANARIES.pairs(similarity, rows)

    order = torch.randperm(1000, generator=torch.Generator().manual_seed(3))
    found = check_reference(
        model, reference.state_dict(), order.split(50), losses, params="all"
    )  # fmt: skip
    assert (found.usable, found.best) == (True, "rotation")
    assert found.alignments["rotation"].auroc["swapped"].value > 0.6
    if width == 8:
        assert found.alignments["none"].usable is False
    else:
        assert "another shape" in found.impossible["none"]


# What is refused, and why


def test_random_weights_are_refused(world):
    found = world.check(mlp(77))
    assert (found.usable, found.best) == (False, None)
    assert {"none", "outputs"} == set(found.alignments)
    assert all(own.usable is False for own in found.alignments.values())
    with pytest.raises(UselessReferenceError, match="same classes in the same order"):
        found.raise_if_useless()


def test_shuffled_outputs_are_refused(world):
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(4))
    found = world.check(world.outputs(world.other, order), ids=lambda rows: rows)
    assert found.usable is False
    with pytest.raises(UselessReferenceError, match="with align='outputs', AUROC"):
        found.raise_if_useless()


def test_another_task_is_refused(world):
    x, y = world.clean
    moved = world.check(fitted(mlp(0), x, (y + 1) % K, 600))  # classes in another order
    assert moved.usable is False
    fewer = world.check(fitted(mlp(0, classes=4), x, y % 4, 10))
    assert fewer.usable is False
    assert "model [6, 64], reference [4, 64]" in fewer.reason
    assert "layer '2' gives outputs [100, 6], the reference [100, 4]" in fewer.reason
    assert fewer.alignments == {}
    with pytest.raises(UselessReferenceError, match="no alignment fits. none: "):
        fewer.raise_if_useless()


def test_the_models_own_weights_are_no_direction(world):
    found = world.check(copy.deepcopy(world.model).state_dict())
    assert found.usable is False
    assert "none: The direction is zero" in found.reason


def test_nan_weights_are_refused(world):
    broken = copy.deepcopy(world.same).state_dict()
    broken["2.weight"][0, 0] = torch.nan
    assert "NaN or infinite" in world.check(broken).reason


# What cannot be told


def test_without_canaries_nothing_is_guessed(world):
    for reference in (world.same, mlp(77)):
        found = check_reference(
            world.model, reference, world.batches, lambda m, rows: world.losses(m, rows)[0]
        )
        assert (found.usable, found.best) == (None, None)
        assert "nothing can be told without canaries" in found.reason
        assert found.alignments["none"].auroc == {}
        assert found.alignments["none"].spread > 0
        found.raise_if_useless()


def test_few_canaries_tell_nothing(world):
    found = check_reference(world.model, world.same, [torch.arange(60)], world.losses)
    assert found.usable is None
    assert "by 60 uniform canaries, expected 100 or more" in found.reason


@pytest.mark.parametrize(
    ("area", "usable", "why"),
    [
        (Area(0.9, 0.8, 0.99), True, "0.900"),
        (Area(0.58, 0.49, 0.66), False, "know nothing"),
        (Area(0.53, 0.51, 0.55), False, "by luck"),
        (Area(0.05, 0.03, 0.07), False, "inverted"),
    ],
)
def test_the_verdict_on_an_area(area, usable, why):
    told, reason = judged({"confusable/3": Area(0.5, 0.4, 0.6), "swapped": area}, {"swapped": 500})
    assert told is usable
    assert why in reason


def test_the_simplest_that_is_as_good_as_the_best_is_chosen():
    def check(value, half):
        area = {"swapped": Area(value, value - half, value + half)}
        return AlignmentCheck(
            0.5, 1.0, (1.0,) * 5, 0.5, 1.0, {"swapped": 500}, area, *judged(area, {"swapped": 500})
        )

    for plain, rotated, best in ((0.80, 0.82, "none"), (0.70, 0.82, "rotation"), (0.1, 0.6, None)):
        found = {"none": check(plain, 0.03), "rotation": check(rotated, 0.03)}
        told = concluded(found, {}, samples=500, missing=0)
        assert told.best == (best or "rotation")
        assert f"align={told.best!r}" in told.reason


# The rest


def test_everything_stays_as_it_was(world):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, K)
    )
    model[0].weight.grad = torch.ones_like(model[0].weight)
    model[3].eval()
    reference = copy.deepcopy(model).train()
    nn.init.normal_(reference[4].weight)
    states = [copy.deepcopy(net.state_dict()) for net in (model, reference)]
    chance = torch.random.get_rng_state()
    check_reference(model, reference, iter(world.batches), world.losses)
    for net, state in zip((model, reference), states, strict=True):
        for name, value in net.state_dict().items():
            assert torch.equal(value, state[name]), name
    assert [module.training for module in model] == [True, True, True, False, True]
    assert all(module.training for module in reference[1:3])
    assert torch.equal(model[0].weight.grad, torch.ones(32, WIDTH))
    assert model[4].weight.grad is None
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert torch.equal(torch.random.get_rng_state(), chance)


def test_a_training_does_not_notice_checks_in_its_midst(world):
    runs = []
    for checking in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(copy.deepcopy(world.model), nn.BatchNorm1d(K), nn.Dropout(0.1))
        mimic = GradMimic(model, world.other, align="transport", params="0.2.*")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(20):
            rows = world.batches[step % 15]
            with mimic:
                losses, canaries = world.losses(model, rows)
            loss = mimic.weigh(losses, canaries=canaries)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if checking:
                world.check(world.other, model, params="0.2.*", align="transport")
        runs.append(model.state_dict())
    for name, value in runs[0].items():
        assert torch.equal(value, runs[1][name]), name


def test_no_more_batches_are_taken_than_needed(world):
    taken = []

    def endless():
        while True:
            taken.append(1)
            yield torch.arange(1000)

    found = check_reference(world.model, world.same, endless(), world.losses)
    assert found.samples == len(taken) * 1000 == MOST // 1000 * 1000 + 1000


def test_a_head_that_is_not_last_in_order_is_found(world):
    class Odd(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.head = nn.Linear(64, K)
            self.trunk = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU())

        def forward(self, x):
            return self.head(self.trunk(x))

    model, reference = Odd(0), fitted(Odd(0), *world.clean, 300)
    given = {"align": "none", "engine": "forward"}
    found = check_reference(model, reference, world.batches, world.losses, **given)
    named = check_reference(model, reference, world.batches, world.losses, params="head.*", **given)
    assert found.as_dict() == named.as_dict()


def test_engines_agree(world):
    small = world.batches[:2]
    one, other = (
        check_reference(world.model, world.same, small, world.losses, engine=engine)
        for engine in ("forward", "oracle")
    )
    for name, own in one.alignments.items():
        assert other.alignments[name].spread == pytest.approx(own.spread, rel=1e-4)
        assert other.alignments[name].area.value == pytest.approx(own.area.value, abs=1e-3)


def test_it_can_be_written_and_read_by_people(world):
    for reference in (world.same, world.other, mlp(0, classes=4)):
        found = world.check(reference)
        values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
        assert values["usable"] is found.usable
        assert values["best"] == found.best
        for name, own in found.alignments.items():
            area = own.auroc["uniform/6"]
            assert values["alignments"][name]["auroc"]["uniform/6"]["low"] == area.low
            told = f"{name}: AUROC of samples over uniform canaries is {area.value:.3f}"
            assert told in str(found)
        for name, why in found.impossible.items():
            assert f"{name}: does not fit, {why}" in str(found)
    assert str(world.check(world.other)).startswith("usable: with align='outputs', AUROC of")


def test_what_is_no_check(world):
    with pytest.raises(DataError, match="iterator that was used up"):
        check_reference(world.model, world.same, iter([]), world.losses)
    with pytest.raises(UsageError, match="needs each sample's id: pass ids="):
        world.check(world.outputs(world.same))
    with pytest.raises(DataError, match="have integer ids .* asked for string ids"):
        world.check(world.outputs(world.same), ids=lambda rows: [str(row) for row in rows])
    with pytest.raises(ParameterError, match="align='magic' is unknown"):
        world.check(world.same, align="magic")
    with pytest.raises(ParameterError, match="engine='magic' is unknown"):
        world.check(world.same, engine="magic")

    def only(canaries):
        return lambda model, rows: canaries(*world.losses(model, rows))

    for losses, why in (
        (only(lambda values, _: values.mean()), "one loss per sample"),
        (only(lambda values, _: values * torch.nan), "are NaN or infinite"),
        (only(lambda values, _: values.detach().clone()), "do not depend on the scored"),
        (only(lambda _, canaries: canaries), "got CanaryLosses"),
        (
            only(lambda values, c: (values, CanaryLosses(c.losses / 0, c.ids, c.kinds))),
            "are NaN or infinite",
        ),
    ):
        with pytest.raises(LossError, match=why):
            check_reference(world.model, world.same, world.batches, losses)
