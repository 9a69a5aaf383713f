import copy
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, mimic_scores
from gradmimic.contrastive import Embedded, clip_losses, siglip_losses
from gradmimic.errors import LossError, RankError, UnsupportedOperationError

LOSSES = {"clip": clip_losses, "siglip": siglip_losses}
PARAMS = {
    "image": ["image_projection.*"],
    "text": ["text_projection.*"],
    "both": ["*_projection.*"],
    "all": "all",
}


class Towers(nn.Module):
    def __init__(self, width=6, e=4):
        super().__init__()
        self.image, self.text = nn.Linear(5, width), nn.Embedding(11, width)
        self.image_projection = nn.Linear(width, e, False)
        self.text_projection = nn.Linear(width, e)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(-2.0))
        self.double()

    def forward(self, batch):
        image, words = batch
        u = self.image_projection(self.image(image).tanh())
        v = self.text_projection(self.text(words).mean(1).tanh())
        return F.normalize(u, dim=1), F.normalize(v, dim=1), self.log_scale.exp(), self.bias


def drawn(seed, b, width=6, e=4):
    """A model, a reference near it, and a batch."""
    torch.manual_seed(seed)
    model = Towers(width, e)
    better = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in better.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model, better, (torch.randn(b, 5).double(), torch.randint(11, (b, 3)))


@given(
    kind=st.sampled_from(sorted(LOSSES)),
    params=st.sampled_from(sorted(PARAMS)),
    b=st.integers(1, 7),
    width=st.integers(2, 6),
    e=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_scores_are_the_oracles(kind, params, b, width, e, seed):
    model, better, batch = drawn(seed, b, width, e)
    losses = lambda model, batch: LOSSES[kind](Embedded(*model(batch)))
    scored = {"params": PARAMS[params]}
    exact = mimic_scores(model, better, batch, losses, engine="oracle", **scored)
    found = mimic_scores(model, better, batch, losses, engine="forward", **scored)
    torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
    step = GradMimic(model, better, engine="forward", **scored)
    with step:
        values = losses(model, batch)
    step.weigh(values).backward()
    torch.testing.assert_close(step.scores, exact, rtol=1e-9, atol=1e-11)
    # the gradient is that of the weighted sum of the losses
    taken = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    weighted = (step.weights * losses(model, batch)).sum()
    wanted = torch.autograd.grad(
        weighted, list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    for (name, p), gradient in zip(model.named_parameters(), wanted, strict=True):
        torch.testing.assert_close(taken.get(name, torch.zeros_like(p)), gradient)


@pytest.mark.parametrize("kind", LOSSES)
def test_what_other_engines_do_with_a_loss_of_the_whole_batch(kind):
    model, better, batch = drawn(0, 6)
    losses = lambda model, batch: LOSSES[kind](Embedded(*model(batch)))
    exact = mimic_scores(model, better, batch, losses, engine="oracle", params="all")
    about = mimic_scores(model, better, batch, losses, engine="secant", params="all")
    torch.testing.assert_close(about, exact, rtol=1e-2, atol=1e-4)
    with pytest.raises(UnsupportedOperationError, match="Samples interact"):
        mimic_scores(model, better, batch, losses, engine="ghost", params="all")


@pytest.mark.parametrize("b", [1, 2, 5])
def test_their_means_are_the_published_losses(b):
    model, _, batch = drawn(b, b)
    pairs = Embedded(*model(batch))
    s = pairs.scale * pairs.image @ pairs.text.T + pairs.bias
    y = torch.arange(b)
    infonce = (F.cross_entropy(s, y) + F.cross_entropy(s.T, y)) / 2
    torch.testing.assert_close(clip_losses(pairs).mean(), infonce)
    sign = 2 * torch.eye(b) - 1
    sigmoid = -F.logsigmoid(sign * s).sum() / b
    torch.testing.assert_close(siglip_losses(pairs).mean(), sigmoid)
    torch.testing.assert_close(s, pairs.similarity)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_canary_loses_what_its_sample_would_with_captions_exchanged(kind):
    """The caption is another's, really, in the batch; all that stands around it is the same."""
    model, _, batch = drawn(1, 7)
    pairs, losses = Embedded(*model(batch)), LOSSES[kind]
    table = pairs.table()
    found = Canaries(rate=1.0).pairs(pairs.image, list("abcdefg"), getattr(table, kind))
    assert (found.kinds, found.rows) == (["swapped"] * 7, list(range(7)))
    for i, loss in zip(found.rows, found.losses, strict=True):
        exchanged = []
        for j in range(7):
            order = torch.arange(7)
            order[i], order[j] = j, i
            swapped = Embedded(pairs.image, pairs.text[order], pairs.scale, pairs.bias)
            exchanged.append(losses(swapped)[i])
        same = torch.isclose(torch.stack(exchanged), loss, rtol=1e-9)
        assert same.sum() == 1
        assert not same[i]


def test_the_present_way_to_make_canaries_is_clips():
    model, _, batch = drawn(2, 6)
    pairs = Embedded(*model(batch))
    by_matrix = Canaries(rate=1.0).pairs(pairs.similarity, range(6))
    by_loss = Canaries(rate=1.0).pairs(pairs.image, range(6), pairs.table().clip)
    torch.testing.assert_close(by_matrix.losses, by_loss.losses)
    assert (by_matrix.ids, by_matrix.rows) == (by_loss.ids, by_loss.rows)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_frozen_tower_needs_no_graph(kind):
    """As in LiT: images are embedded without one, and the text tower alone learns."""
    model, better, batch = drawn(3, 6)
    for parameter in [*model.image.parameters(), *model.image_projection.parameters()]:
        parameter.requires_grad_(False)

    def losses(model, batch):
        pairs = Embedded(*model(batch))
        with torch.no_grad():
            image = model(batch)[0].detach()
        return LOSSES[kind](Embedded(image, pairs.text, pairs.scale, pairs.bias))

    scored = {"params": PARAMS["text"]}
    exact = mimic_scores(model, better, batch, losses, engine="oracle", **scored)
    step = GradMimic(model, better, engine="forward", **scored)
    with step:
        values = losses(model, batch)
    step.weigh(values).backward()
    torch.testing.assert_close(step.scores, exact, rtol=1e-9, atol=1e-11)
    assert model.image.weight.grad is None
    assert model.text_projection.weight.grad.norm() > 0


def test_similarities_and_their_table_are_made_once():
    model, _, batch = drawn(4, 3)
    pairs = Embedded(*model(batch))
    assert pairs.table() is pairs.table("local")  # one process
    rows, columns, own = pairs.table()
    torch.testing.assert_close(rows, columns.T)
    assert own.tolist() == [0, 1, 2]


def test_embeddings_that_fit_nothing_are_refused():
    one = torch.tensor(1.0)
    with pytest.raises(LossError, match=r"as many images as captions.*got \[3, 2\] and \[4, 2\]"):
        clip_losses(Embedded(torch.zeros(3, 2), torch.zeros(4, 2), one))
    with pytest.raises(LossError, match="batch='everything' is unknown; expected 'global' or"):
        siglip_losses(Embedded(torch.zeros(3, 2), torch.zeros(3, 2), one), batch="everything")


def test_an_empty_batch_has_no_losses():
    none = torch.zeros(0, 4)
    for losses in LOSSES.values():
        assert losses(Embedded(none, none, torch.tensor(1.0), torch.tensor(0.0))).shape == (0,)


def test_a_rank_that_does_not_come_is_told_of(monkeypatch):
    def gone(*_tensors):
        raise RuntimeError("connection closed by peer")

    alone = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_rank=lambda: 1,
        get_world_size=lambda: 2, all_gather=gone,
    )  # fmt: skip
    monkeypatch.setattr("gradmimic.gathered.dist", alone)
    pairs = Embedded(torch.eye(2), torch.eye(2), torch.tensor(1.0))
    with pytest.raises(RankError, match=r"rank 1 of 2 could not exchange its embeddings: another "
                       r"rank ended.*pass batch='local'"):  # fmt: skip
        clip_losses(pairs)
    assert clip_losses(pairs, batch="local").shape == (2,)
