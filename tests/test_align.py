import copy

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, ScoreLog
from gradmimic.align import Difference, without_shift
from gradmimic.direction import Direction, choose, direction
from gradmimic.errors import (
    AlignmentError,
    ParameterError,
    ReferenceMismatchError,
    UselessReferenceError,
)
from gradmimic.outputs import Outputs
from gradmimic.reference import load_reference
from gradmimic.rotation import Rotation, common_space, rotated
from gradmimic.separation import Area, auroc, separation
from gradmimic.trial import Trial, pick_alignment, preferred


class Pair(nn.Module):
    """Two towers, each a linear trunk and a projection into one space."""

    def __init__(self, e, dtype=torch.float64):
        super().__init__()
        self.image = nn.Linear(5, e, bias=False, dtype=dtype)
        self.text = nn.Linear(4, e, bias=True, dtype=dtype)
        self.log_scale = nn.Parameter(torch.tensor(1.0, dtype=dtype))

    def forward(self, batch):
        image, text = batch
        u, v = F.normalize(self.image(image), dim=1), F.normalize(self.text(text), dim=1)
        return self.log_scale.exp() * u @ v.T  # [b, b]


def contrastive(model, batch):
    similarity = model(batch)
    return -(similarity.log_softmax(1).diagonal() + similarity.log_softmax(0).diagonal()) / 2


def orthogonal(e, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(e, e, generator=generator, dtype=torch.float64))
    return q


def turned(model, r):
    """The same function, at other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (other.image.weight, other.text.weight, other.text.bias):
            parameter.copy_(r @ parameter)
    return other


def pairs(seed=0, b=6):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(b, 5, generator=generator, dtype=torch.float64),
        torch.randn(b, 4, generator=generator, dtype=torch.float64),
    )


# Rotation


@given(e=st.integers(2, 7), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_scores_do_not_depend_on_how_the_reference_is_turned(e, seed):
    torch.manual_seed(seed)
    model, better = Pair(e), Pair(e)
    batch, seen = pairs(seed), []
    for reference in (better, turned(better, orthogonal(e, seed))):
        mimic = GradMimic(model, reference, params="*[egx][.t]*", align="rotation")
        with mimic:
            losses = contrastive(model, batch)
        mimic.weigh(losses)
        seen.append(mimic.scores)
    torch.testing.assert_close(*seen, rtol=1e-8, atol=1e-8)


@given(e=st.integers(2, 6), other=st.integers(2, 8), seed=st.integers(0, 100))
@settings(max_examples=30, deadline=None)
def test_no_other_rotation_lies_nearer(e, other, seed):
    torch.manual_seed(seed)
    model, better = Pair(e), Pair(other)
    subset = choose(model, ["image.*", "text.*"])
    space = common_space(subset)
    far = load_reference(better).match(model, subset, free=space)
    near = rotated(far, subset, space)

    def agreement(target):
        return sum(
            float((target[name] * parameter.detach()).sum())
            for name, parameter in subset.parameters.items()
        )

    def length(target):
        return sum(float(part.square().sum()) for part in target.values())

    for trial in range(10):
        q = orthogonal(max(e, other), 1000 * seed + trial)[:e, :other]
        candidate = {name: q @ part for name, part in far.items()}
        # ‖θ − Rθ_ref‖² = ‖θ‖² + ‖Rθ_ref‖² − 2⟨θ, Rθ_ref⟩, and a rotation keeps lengths
        assert agreement(near) >= agreement(candidate) - 1e-9
    if other <= e:
        assert length(near) == pytest.approx(length(far))


def test_a_turned_copy_of_the_model_is_no_direction_at_all():
    torch.manual_seed(0)
    model = Pair(4)
    subset = choose(model, ["image.*", "text.*"])
    rotation = Rotation(model, subset, load_reference(turned(model, orthogonal(4))))
    assert rotation.direction().norm == pytest.approx(0, abs=1e-12)
    assert Difference(
        model, subset, load_reference(turned(model, orthogonal(4)))
    ).direction().norm > 1  # fmt: skip


def test_the_rotation_is_taken_again_as_the_weights_move():
    torch.manual_seed(1)
    model, better = Pair(3), Pair(3)
    subset = choose(model, ["image.*", "text.*"])
    rotation = Rotation(model, subset, load_reference(better))
    for _ in range(17):
        v = rotation.direction()
        with torch.no_grad():
            model.image.weight.add_(0.1)
    space = common_space(subset)
    with torch.no_grad():
        model.image.weight.sub_(0.1)
    expected = direction(
        subset, rotated(load_reference(better).match(model, subset), subset, space)
    )
    torch.testing.assert_close(v.tensors, expected.tensors)


def test_bare_matrices_lie_the_other_way_round():
    class Clip(nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = nn.Linear(5, 3, bias=False)
            self.text_projection = nn.Parameter(torch.randn(4, 3))

    model = Clip()
    space = common_space(choose(model, "all"))
    assert space == {"text_projection": 1, "visual.weight": 0}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(3, 2), "expects params= to name two or more projections into one space"),
        (nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)), r"0.weight \[2, 3\].*1.weight \[4, 2\]"),
    ],
)
def test_what_is_no_pair_of_projections_is_not_turned(model, message):
    with pytest.raises(AlignmentError, match=message):
        GradMimic(model, copy.deepcopy(model), params="all", align="rotation")


def test_rotation_goes_by_the_inputs_that_come():
    """What says the same, turned, is found, however far its weights for other inputs lie."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"image": nn.Linear(8, 4, dtype=torch.float64),
                           "text": nn.Linear(6, 4, False, dtype=torch.float64)})  # fmt: skip
    turn = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64)).Q
    reference = {name: turn @ p.detach() for name, p in model.named_parameters()}
    for name, seen in (("image.weight", 5), ("text.weight", 4)):  # the other inputs are always 0
        rest = reference[name].shape[1] - seen
        reference[name][:, seen:] = 9 * torch.randn(4, rest, dtype=torch.float64)
    alignment = Rotation(model, choose(model, "all"), load_reference(reference))
    h = torch.randn(16, 8, dtype=torch.float64), torch.randn(16, 6, dtype=torch.float64)
    h[0][:, 5:], h[1][:, 4:] = 0, 0

    def away():
        v = alignment.direction().tensors
        image = F.linear(h[0], v["image.weight"], v["image.bias"])
        return float(image.norm() + F.linear(h[1], v["text.weight"]).norm())

    before = away()
    with alignment.watching():
        model["image"](h[0]), model["text"](h[1])
    alignment.observe(None)
    assert away() < 1e-4 < 0.1 < before


def test_other_widths_are_for_rotation_only():
    model, better = Pair(3), Pair(6)
    with pytest.raises(ReferenceMismatchError, match=r"image.weight: model \[3, 5\], reference"):
        GradMimic(model, better, params=["image.*", "text.*"])
    mimic = GradMimic(model, better, params=["image.*", "text.*"], align="rotation")
    with mimic:
        losses = contrastive(model, pairs())
    mimic.weigh(losses).backward()
    assert mimic.scores.isfinite().all()


@pytest.mark.slow
def test_rotation_finds_swapped_captions_with_a_reference_from_elsewhere(shared_data):
    """Frozen features of photographs and captions, as DESIGN measured: chance without it."""
    folder = shared_data / "flickr8k"
    images = torch.tensor(np.load(folder / "image_features.npy").astype(np.float32))
    texts = torch.tensor(np.load(folder / "caption_features.npy").astype(np.float32))[:, 0]
    images = F.normalize(images - images.mean(0), dim=1)
    order = torch.randperm(800, generator=torch.Generator().manual_seed(0))
    trusted, noisy = order[:400], order[400:]

    class Clip(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.image, self.text = nn.Linear(1280, 64, False), nn.Linear(384, 64, False)

        def forward(self, i, t):
            u, v = F.normalize(self.image(i), dim=1), F.normalize(self.text(t), dim=1)
            return 20 * u @ v.T

    def losses_of(model, i, t):
        similarity = model(i, t)
        return -(similarity.log_softmax(1).diagonal() + similarity.log_softmax(0).diagonal()) / 2

    def batches(rows, epochs):
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(epoch)
            yield from rows[torch.randperm(len(rows), generator=generator)].split(100)

    reference = Clip(seed=1)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=3e-3)
    for rows in batches(trusted, 30):
        optimizer.zero_grad()
        losses_of(reference, images[rows], texts[rows]).mean().backward()
        optimizer.step()
    captions = texts.clone()
    swapped = noisy[:120]
    captions[swapped] = texts[swapped.roll(1)]
    wrong = torch.zeros(800, dtype=torch.bool)
    wrong[swapped] = True
    found = {}
    for align in ("none", "rotation"):
        model = Clip(seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        mimic = GradMimic(model, reference, params="all", align=align)
        total = torch.zeros(800)
        for rows in batches(noisy, 5):
            with mimic:
                losses = losses_of(model, images[rows], captions[rows])
            loss = mimic.weigh(losses)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total[rows] += mimic.scores
        found[align] = auroc(total[noisy], wrong[noisy])
    assert found["none"] < 0.65
    assert found["rotation"] > 0.82


# Shift


def test_a_softmax_never_sees_the_shift():
    model, reference = zoo.build("mlp", 3)
    batch, losses = zoo.draw("mlp", 9), zoo.losses_of("cross-entropy")
    moved = copy.deepcopy(reference)
    with torch.no_grad():
        moved[2].weight.add_(torch.randn(3, dtype=torch.float64))
        moved[2].bias.add_(5.0)
    seen = {}
    for name, better in (("reference", reference), ("moved", moved)):
        for align in ("none", "shift"):
            mimic = GradMimic(model, better, align=align)
            with mimic:
                values = losses(model, batch)
            mimic.weigh(values)
            seen[name, align] = mimic.scores
    torch.testing.assert_close(seen["reference", "shift"], seen["moved", "shift"])
    assert not torch.allclose(seen["reference", "none"], seen["moved", "none"])
    # along v as it was, only longer
    ratio = seen["reference", "none"] / seen["reference", "shift"]
    torch.testing.assert_close(ratio, ratio[:1].expand(9))
    assert ratio[0] <= 1


def test_what_is_left_of_a_shift_is_nothing():
    v = Direction({"weight": torch.ones(3, 2), "bias": torch.full((3,), 2.0)})
    assert without_shift(v).tensors["weight"].abs().sum() == 0
    with pytest.raises(AlignmentError, match="expects the scored parameters to be of linear"):
        model = nn.Conv2d(1, 2, 3)
        GradMimic(model, copy.deepcopy(model), align="shift")


# The choice


def test_names_and_sources_that_cannot_be():
    model, reference = zoo.build("mlp", 3)
    with pytest.raises(ParameterError, match="align='sideways' is unknown; expected one of none"):
        GradMimic(model, reference, align="sideways")
    with pytest.raises(AlignmentError, match="weights alone do not tell"):
        GradMimic(model, reference.state_dict(), align="transport")
    table = Outputs([0], torch.zeros(1, zoo.CLASSES))
    with pytest.raises(AlignmentError, match="the reference is a table of outputs"):
        GradMimic(model, table, align="none")
    assert [a.name for a in pick_alignment("auto", model, choose(model), table).candidates] == [
        "outputs"
    ]
    found = pick_alignment("auto", model, choose(model), reference)
    assert isinstance(found, Trial)
    assert [candidate.name for candidate in found.candidates] == ["none", "outputs"]


def test_the_simplest_of_equals_is_preferred():
    near = Area(0.89, 0.85, 0.93), Area(0.91, 0.87, 0.95)
    assert preferred(near, "") == 0
    assert preferred([Area(0.1, 0.05, 0.15), *near], "") == 1
    with pytest.raises(UselessReferenceError, match="by alignment: none 0.5, where"):
        preferred([Area(0.52, 0.48, 0.56)], "none 0.5")


def blobs(seed, n=400, spread=0.4):
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(4, 6, generator=torch.Generator().manual_seed(99))
    y = torch.randint(0, 4, (n,), generator=generator)
    return centers[y] + spread * torch.randn(n, 6, generator=generator), y


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 4))


def train(model, x, y, epochs, mimic=None, canaries=None, lr=0.01):
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scores = torch.full((epochs, len(x)), torch.nan)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(20):
            if mimic is None:
                loss = F.cross_entropy(model(x[rows]), y[rows])
            else:
                with mimic:
                    logits = model(x[rows])
                    losses = F.cross_entropy(logits, y[rows], reduction="none")
                    drawn = canaries.labels(logits, y[rows], rows)
                before = mimic.scores
                loss = mimic.weigh(losses, rows, epoch=epoch, canaries=drawn)
                if mimic.scores is not before:
                    scores[epoch, rows] = mimic.scores
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return scores.nanmean(0)


@pytest.mark.parametrize(("seed", "expected"), [(0, "none"), (5, "outputs")])
def test_canaries_choose_the_alignment(tmp_path, caplog, seed, expected):
    """From the same initial weights the difference will do; from others it takes outputs."""
    x, y = blobs(0)
    noisy = y.clone()
    noisy[:120] = (y[:120] + 1) % 4
    better = network(seed)
    train(better, *blobs(1), epochs=10, lr=0.003)
    model = network(0)
    given = better.state_dict() if expected == "none" else better  # weights alone say nothing
    with ScoreLog(tmp_path) as log:
        mimic = GradMimic(model, given, align="auto", temperature="auto", log=log)
        assert mimic.aligned == "auto"
        scores = train(model, x, noisy, 12, mimic, Canaries(0.5), lr=0.001)
        assert mimic.aligned == expected
        (event,) = [event for event in log.run["events"] if event["event"] == "aligned"]
        assert event["alignment"] == expected
        assert event["auroc"][expected]["low"] > 0.5
        assert log.scan().num_rows > 0
    assert caplog.text.count(f"align='auto' uses '{expected}'") == 1
    assert auroc(scores, noisy != y) > 0.9


@pytest.mark.parametrize("seed", [0, 2, 3])  # one direction in many is good by luck; it fades
def test_a_reference_that_knows_nothing_is_refused(seed):
    x, y = blobs(0)
    better = network(5)
    train(better, *blobs(1), epochs=10, lr=0.003)
    shuffled = torch.randperm(400, generator=torch.Generator().manual_seed(seed))
    outputs = Outputs(range(400), better(x).detach()[shuffled])
    model = network(0)
    mimic = GradMimic(model, outputs, align="auto")
    with pytest.raises(UselessReferenceError, match="says nothing about good and bad samples"):
        train(model, x, y, 6, mimic, Canaries(0.5))


# Separation


@given(st.lists(st.integers(0, 5), min_size=1), st.lists(st.integers(0, 5), min_size=1))
def test_separation_counts_pairs(good, bad):
    pairs_won = np.mean([(g > b) + (g == b) / 2 for g in good for b in bad])
    area = separation(good, bad)
    assert area.value == pytest.approx(pairs_won)
    assert 0 <= area.low <= area.value <= area.high <= 1


def test_the_interval_covers():
    chance, covered = np.random.default_rng(0), 0
    for _ in range(200):
        area = separation(chance.normal(1, 1, 150), chance.normal(0, 1, 60))
        covered += area.low <= 0.7602 <= area.high
    assert 180 <= covered <= 199
