"""A training that is cut off and taken up again goes on as if nothing had been."""

import io
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic
from gradmimic.canaries import Canaries


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(6, 4, False), nn.Linear(5, 4, False)

    def forward(self, x, y):
        return 5 * F.normalize(self.image(x), dim=1) @ F.normalize(self.text(y), dim=1).T


def batches(n):
    generator = torch.Generator().manual_seed(1)
    for step in range(n):
        z = torch.randn(60, 3, generator=generator)
        wide = torch.cat([z, torch.randn(60, 3, generator=generator)], 1)
        yield wide, wide[:, :5] + 0.5, list(range(60 * step, 60 * step + 60))


def run(model, optimizer, mimic, data):
    canaries = Canaries(rate=0.5)
    told = []
    for x, y, ids in data:
        with mimic:
            s = model(x, y)
            losses = -(s.log_softmax(1).diagonal() + s.log_softmax(0).diagonal()) / 2
            drawn = canaries.pairs(s, ids)
        loss = mimic.weigh(losses, ids, canaries=drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        told.append(mimic.weights)
    return torch.stack(told)


@pytest.mark.parametrize("align", ["none", "rotation"])
@pytest.mark.parametrize("weighting", ["softmax", "posterior"])
def test_a_mimic_put_back_goes_on_exactly(align, weighting):
    start, reference = Towers(), Towers()
    settings = {"params": "all", "align": align, "weighting": weighting, "engine": "forward"}
    if weighting == "softmax":
        settings["temperature"] = "auto"

    def fresh():
        model = deepcopy(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
        return model, optimizer, GradMimic(model, reference, **settings)

    data = list(batches(40))
    whole = run(*fresh(), data)

    model, optimizer, mimic = fresh()
    first = run(model, optimizer, mimic, data[:21])
    saved = io.BytesIO()
    parts = model.state_dict(), optimizer.state_dict(), mimic.state_dict()
    torch.save(parts, saved)
    run(model, optimizer, mimic, data[21:30])  # what happens afterwards must not matter
    saved.seek(0)
    parts = torch.load(saved, weights_only=True)
    again = fresh()
    for thing, part in zip(again, parts, strict=True):
        thing.load_state_dict(part)
    assert again[2].step == 21
    rest = run(*again, data[21:])
    assert torch.equal(torch.cat([first, rest]), whole)


def test_without_what_was_learned_it_would_go_on_otherwise():
    """The test above can fail: a mimic that is not put back gives other weights."""
    start, reference = Towers(), Towers()
    data = list(batches(30))
    model = deepcopy(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    settings = {"params": "all", "align": "rotation", "temperature": "auto", "engine": "forward"}
    mimic = GradMimic(model, reference, **settings)
    run(model, optimizer, mimic, data[:21])
    other = deepcopy(model), deepcopy(optimizer.state_dict())
    rest = run(model, optimizer, mimic, data[21:])
    optimizer = torch.optim.AdamW(other[0].parameters(), lr=0.02)
    optimizer.load_state_dict(other[1])
    anew = run(other[0], optimizer, GradMimic(other[0], reference, **settings), data[21:])
    assert not torch.equal(rest, anew)


def test_a_mimic_that_faded_is_still_fading():
    model, reference = Towers(), Towers()
    mimic = GradMimic(model, reference, params="all")
    assert mimic.compare(torch.tensor([0.1, 0.2]), torch.tensor([1.1, 1.3]))
    other = GradMimic(model, reference, params="all")
    other.load_state_dict(mimic.state_dict())
    assert other.overtaken == 0


class HeadFirst(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = torch.nn.Linear(4, 3), torch.nn.Linear(2, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))


def test_a_mimic_put_back_knows_which_module_is_the_head():
    model, better = HeadFirst(), HeadFirst()
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])

    def weigh(mimic):
        with mimic:
            losses = torch.nn.functional.cross_entropy(model(x), y, reduction="none")
        return mimic.weigh(losses)

    first = GradMimic(model, better)
    with pytest.warns(UserWarning, match="the module used last is 'head', not 'body'"):
        weigh(first)
    again = GradMimic(model, better)
    again.load_state_dict(first.state_dict())
    torch.testing.assert_close(weigh(again), weigh(first))
    torch.testing.assert_close(again.scores, first.scores)
