"""Two ranks that share a contrastive batch give what one process gives on all of it."""

from functools import partial

import pytest
import torch
from on_ranks import CUTS
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from gradmimic import Canaries, GradMimic
from gradmimic.contrastive import Embedded, clip_losses, siglip_losses
from gradmimic.gathered import gather
from gradmimic.integrations.open_clip import PairLosses
from gradmimic.reference import Reference

pytestmark = pytest.mark.slow  # processes of their own, each of which imports torch

SIZE, STEPS = 12, 4
BOTH = ["image_projection.weight", "text_projection.weight"]


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(5, 6), nn.Linear(4, 6)
        self.image_projection = nn.Linear(6, 3, False)
        self.text_projection = nn.Linear(6, 3, False)
        self.log_scale = nn.Parameter(torch.tensor(1.0))
        self.bias = nn.Parameter(torch.tensor(-1.0))

    def forward(self, image, text):
        u = self.image_projection(self.image(image).tanh())
        v = self.text_projection(self.text(text).tanh())
        return F.normalize(u, dim=1), F.normalize(v, dim=1), self.log_scale.exp(), self.bias


def batch_of(step):
    chance = torch.Generator().manual_seed(step)
    image = torch.randn(SIZE, 5, generator=chance).double()
    return image, image[:, :4] + 0.3 * torch.randn(SIZE, 4, generator=chance).double()


def train(rank, size, *, losses=clip_losses, how=None, options=None, steps=STEPS, canaries=False):
    """Train, and tell everything about it; one process gets all samples of each batch."""
    torch.manual_seed(3)
    model, better = Towers().double(), Towers().double()
    called = DistributedDataParallel(model) if size > 1 else model
    reference = Reference(better.state_dict(), "better", tuple(BOTH))
    mimic = GradMimic(called, reference, **{"params": BOTH, "engine": "forward", **(options or {})})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = []
    for step in range(steps):
        parts = batch_of(step)
        if size > 1:
            cut = CUTS[step % len(CUTS)]
            parts = [part[:cut] if rank == 0 else part[cut:] for part in parts]
        with mimic:
            pairs = Embedded(*called(*parts))
            if losses is not siglip_losses:  # no bias; but DDP waits for its gradient
                pairs = Embedded(pairs.image, pairs.text, pairs.scale + 0 * pairs.bias)
            if isinstance(losses, PairLosses):
                values = losses(pairs.image, pairs.text, pairs.scale)
            else:
                values = losses(pairs, **(how or {}))
            drawn = None
            if canaries:
                table = pairs.table()
                ids = [f"{rank}-{i}" for i in range(len(values))]
                drawn = Canaries(rate=1.0).pairs(pairs.image, ids, table.siglip)
        loss = mimic.weigh(values, canaries=drawn)
        optimizer.zero_grad()
        loss.backward()
        told.append({
            "loss": loss.detach(), "losses": values.detach(),
            "scores": mimic.scores, "weights": mimic.weights,
            "gradients": {name: p.grad.clone() for name, p in model.named_parameters()},
            "canaries": drawn.losses.detach() if canaries else None,
        })  # fmt: skip
        optimizer.step()
    return told


def open_clips(local_loss, gather_with_grad):
    return PairLosses("clip", local_loss=local_loss, gather_with_grad=gather_with_grad)


TRAININGS = {
    "clip": {},
    "siglip": {"losses": siglip_losses},
    "all parameters": {"options": {"params": "all"}},
    "one tower": {"options": {"params": BOTH[:1]}},
    "rotation": {"options": {"align": "rotation"}},
    "rotation of one tower": {"options": {"align": "rotation", "params": BOTH[1:]}},
    "auto": {"options": {"engine": "auto"}},
    "secant": {"options": {"engine": "secant"}},
    "open_clip": {"losses": open_clips(False, False)},
    "open_clip, gathered": {"losses": open_clips(False, True)},
    "open_clip, local": {"losses": open_clips(True, True)},
}
SCORES_ONLY = {
    "without gradients of others": {"how": {"gather_with_grad": False}, "steps": 1},
    "open_clip, local, without": {"losses": open_clips(True, False), "steps": 1},
    "canaries": {"losses": siglip_losses, "canaries": True, "steps": 1},
}


def each_by_itself(rank, _folder):
    parts = [part[:5] if rank == 0 else part[5:] for part in batch_of(0)]
    torch.manual_seed(3)
    pairs = Embedded(*Towers().double()(*parts))
    return {"losses": clip_losses(pairs, batch="local").detach()}


def gathered_twice(rank, _folder):
    """Reverse mode twice over: what the derivative of a gradient takes."""
    own = torch.arange(1.0, 3.0 + rank, dtype=torch.float64).view(-1, 1).requires_grad_()
    every, first = gather(own)
    (gradient,) = torch.autograd.grad((every**3).sum(), own, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), own)
    return {"every": every.detach(), "first": first, "gradient": gradient.detach(),
            "second": second}  # fmt: skip


CASES = {
    name: partial(lambda rank, _folder, own: train(rank, 2, **own), own=own)
    for name, own in {**TRAININGS, **SCORES_ONLY}.items()
}
CASES |= {"each by itself": each_by_itself, "gathered twice": gathered_twice}


def told(two_ranks, name):
    return [found[f"test_contrastive_ranks.{name}"] for found in two_ranks[0]]


def close(a, b, digits=9):
    torch.testing.assert_close(a, b, rtol=10**-digits, atol=10**-digits)


@pytest.mark.parametrize("name", [*TRAININGS, *SCORES_ONLY])
def test_two_ranks_score_and_step_as_one_process(two_ranks, name):
    own = {**TRAININGS, **SCORES_ONLY}[name]
    one = train(0, 1, **own)
    digits = 5 if name == "secant" else 9
    for mine, a, b in zip(one, *told(two_ranks, name), strict=True):
        for key in ("losses", "scores", "weights"):
            close(torch.cat([a[key], b[key]]), mine[key], digits)
        close((a["loss"] + b["loss"]) / 2, mine["loss"], digits)
        for key, gradient in mine["gradients"].items():
            close(a["gradients"][key], b["gradients"][key])
            if name in TRAININGS:
                close(a["gradients"][key], gradient, digits)
    if "without" in name:  # what a sample does to the losses of the other rank is lost
        key = "image_projection.weight"
        assert not torch.allclose(a["gradients"][key], one[0]["gradients"][key], rtol=0.01)


def test_canaries_take_their_captions_from_their_own_rank(two_ranks):
    torch.manual_seed(3)
    pairs = Embedded(*Towers().double()(*batch_of(0)))
    i = torch.arange(SIZE)
    every = pairs.table().siglip(i.repeat_interleave(SIZE), i.repeat(SIZE)).view(SIZE, SIZE)
    a, b = (own[0]["canaries"] for own in told(two_ranks, "canaries"))
    cut = CUTS[0]
    assert (len(a), len(b)) == (cut, SIZE - cut)
    for row, loss in enumerate(torch.cat([a, b])):
        same = slice(0, cut) if row < cut else slice(cut, None)
        found = torch.isclose(every[row, same], loss, rtol=1e-9)
        assert found.sum() == 1
        assert not torch.isclose(every[row, row], loss, rtol=1e-9)


def test_ranks_can_be_left_out(two_ranks):
    torch.manual_seed(3)
    model = Towers().double()
    for own, rows in zip(
        told(two_ranks, "each by itself"), (slice(5), slice(5, None)), strict=True
    ):
        pairs = Embedded(*model(*(part[rows] for part in batch_of(0))))
        close(own["losses"], clip_losses(pairs).detach())


def test_gathered_rows_have_derivatives_of_any_order(two_ranks):
    a, b = told(two_ranks, "gathered twice")
    assert (a["first"], b["first"]) == (0, 2)
    for own in (a, b):
        assert own["every"].flatten().tolist() == [1, 2, 1, 2, 3]
        x = own["every"][own["first"] :][: len(own["gradient"])]
        close(own["gradient"], 2 * 3 * x**2)  # both ranks take the sum of all cubes
        close(own["second"], 2 * 6 * x)
