"""What is turned, seen and refused; that it is the nearest rotation stands in test_align.py."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic
from gradmimic.contrastive import Embedded, clip_losses
from gradmimic.direction import choose
from gradmimic.errors import AlignmentError
from gradmimic.reference import Reference
from gradmimic.rotation import NEAR, Rotation, nearness
from gradmimic.trial import pick_alignment

BOTH = "image_projection.weight", "text_projection.weight"
BARE = "image_projection", "text_projection"


class Layers(nn.Module):
    """Projections as linear layers, as transformers has them."""

    def __init__(self, e=4):
        super().__init__()
        self.image_projection = nn.Linear(6, e, bias=False, dtype=torch.float64)
        self.text_projection = nn.Linear(5, e, bias=False, dtype=torch.float64)

    def forward(self, image, text):
        return self.image_projection(image), self.text_projection(text)


class Matrices(nn.Module):
    """The same as bare matrices, as OpenCLIP has them."""

    def __init__(self, layers):
        super().__init__()
        for name in BARE:
            weight = getattr(layers, name).weight.detach()
            setattr(self, name, nn.Parameter(weight.T.clone()))

    def forward(self, image, text):
        return image @ self.image_projection, torch.matmul(text, self.text_projection)


def losses_of(model, batch):
    u, v = (F.normalize(z, dim=1) for z in model(*batch))
    return clip_losses(Embedded(u, v, torch.tensor(5.0, dtype=torch.float64)))


def batch_of(seed, b=8):
    chance = torch.Generator().manual_seed(seed)
    batch = [torch.randn(b, d, generator=chance, dtype=torch.float64) for d in (6, 5)]
    batch[0][:, 4:], batch[1][:, 3:] = 0, 0  # inputs that never come
    return batch


def weights(model, projections=()):
    return Reference(dict(model.state_dict()), "test", tuple(projections))


def scores(model, reference, engine, steps=3, **options):
    """The scores of the last of a few steps, in which nothing is learned."""
    mimic = GradMimic(model, reference, align="rotation", engine=engine, **options)
    for step in range(steps):
        with mimic:
            losses = losses_of(model, batch_of(step))
        mimic.weigh(losses)
    return mimic.scores


@pytest.mark.parametrize("engine", ["forward", "oracle"])
def test_inputs_of_bare_matrices_are_seen_like_those_of_layers(engine):
    model, better = Layers(), Layers()
    layers = scores(model, weights(better), engine, params="all")
    bare = scores(Matrices(model), weights(Matrices(better)), engine, params="all")
    torch.testing.assert_close(bare, layers)
    unseen = scores(model, weights(better), engine, params="all", steps=1)  # by weights alone
    mimic = GradMimic(model, weights(better), align="rotation", params="all", engine=engine)
    with mimic:
        losses = losses_of(model, batch_of(0))
    mimic.weigh(losses)
    torch.testing.assert_close(mimic.scores, unseen)
    last = scores(Matrices(model), weights(Matrices(better)), engine, params="all", steps=1)
    torch.testing.assert_close(last, unseen)
    assert not torch.allclose(scores(model, weights(better), engine, params="all", steps=2)[:3],
                              unseen[:3])  # fmt: skip


@pytest.mark.parametrize("kind", [lambda layers: layers, Matrices])
@pytest.mark.parametrize("tower", [0, 1])
def test_one_tower_is_scored_as_both_are_turned(kind, tower):
    """R is that of both towers; v, and so the score, is over one of them."""
    model, better = (kind(Layers()) for _ in range(2))
    names = BOTH if isinstance(model, Layers) else BARE
    both = Rotation(model, choose(model, "all"), weights(better))
    one = Rotation(model, choose(model, names[tower]), weights(better, names))
    for step in range(2):
        for alignment in (both, one):
            alignment.direction()
            with alignment.watching():
                model(*batch_of(step))
            alignment.observe(None)
    v, w = both.direction().tensors, one.direction().tensors
    assert [*w] == [names[tower]]
    torch.testing.assert_close(w[names[tower]], v[names[tower]])


def test_what_is_scored_beside_the_projections_is_not_turned():
    class More(Layers):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Linear(6, 6, dtype=torch.float64)

    model, better = More(), More()
    found = Rotation(model, choose(model, "all"), weights(better, BOTH)).direction()
    assert {"trunk.weight", "trunk.bias", *BOTH} == found.tensors.keys()
    torch.testing.assert_close(
        found.tensors["trunk.weight"], better.trunk.weight.detach() - model.trunk.weight.detach()
    )
    with pytest.raises(AlignmentError, match="two or more projections into one space"):
        Rotation(model, choose(model, "all"), weights(better))  # nobody says which these are


def test_one_tower_alone_in_a_pass_tells_nothing():
    model, better = Layers(), Layers()
    alignment = Rotation(model, choose(model, "all"), weights(better))
    before = alignment.direction().tensors
    with alignment.watching():
        model.image_projection(batch_of(0)[0])
    alignment.observe(None)
    torch.testing.assert_close(alignment.direction().tensors, before)


def test_a_model_that_turning_would_change_is_refused():
    model, better = Layers(), Layers()
    reference = Reference(dict(better.state_dict()), "test", BOTH, fixed="it adds to its output")
    with pytest.raises(AlignmentError, match=r"cannot turn this model: it adds to its output\. "
                       r"Expected a reference that is near already.*align='none'"):  # fmt: skip
        GradMimic(model, reference, params="all", align="rotation")
    assert GradMimic(model, reference, params="all", align="none").aligned == "none"


def test_nearness_is_one_where_nothing_is_gained_and_falls_as_the_reference_is_turned():
    torch.manual_seed(0)
    model = Layers(32)
    subset = choose(model, "all")
    skew = torch.randn(32, 32, dtype=torch.float64)
    skew = (skew - skew.T) / 8
    seen = []
    for turn in (0.0, 0.2, 0.5, 1.0, 4.0):
        r = torch.linalg.matrix_exp(turn * skew)
        away = {name: r @ p.detach() for name, p in model.named_parameters()}
        seen.append(nearness(model, subset, Reference(away, "test")))
    assert seen[0] == pytest.approx(1)
    assert seen == sorted(seen, reverse=True)
    assert abs(seen[-1]) < 0.2 < NEAR < seen[1]
    assert nearness(model, subset, weights(Layers(7))) == 0  # of another width


@pytest.mark.parametrize("kind", [lambda layers: layers, Matrices])
def test_what_few_inputs_leave_open_is_settled_by_weights(kind):
    """Scores of new samples do not depend on how the reference was turned, from the first on."""
    model, better = kind(Layers(12)), Layers(12)
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    seen = []
    for r in (torch.eye(12, dtype=torch.float64), turn):
        turned = Layers(12)
        turned.load_state_dict({name: r @ p for name, p in better.state_dict().items()})
        alignment = Rotation(model, choose(model, "all"), weights(kind(turned)))
        for step in range(2):
            alignment.direction()
            with alignment.watching():
                model(*batch_of(step, b=2))  # 2 of 12 dimensions
            alignment.observe(None)
        seen.append([v.clone() for v in alignment.direction().tensors.values()])
    torch.testing.assert_close(*seen, rtol=1e-6, atol=1e-8)


def test_auto_tries_rotation_unless_it_would_change_the_model():
    model, better = Layers(), Layers()
    subset = choose(model, BOTH[:1])
    names = {}
    for fixed in ("", "it adds"):
        reference = Reference(dict(better.state_dict()), "test", BOTH, fixed)
        trial = pick_alignment("auto", model, subset, reference)
        names[fixed] = [candidate.name for candidate in trial.candidates]
    assert names == {"": ["none", "rotation"], "it adds": ["none"]}
