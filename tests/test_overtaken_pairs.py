"""Canaries of pairs tell whether the model has overtaken its reference in the first epoch alone."""

import copy

import pytest
import torch
from torch import nn

from gradmimic import Canaries, GradMimic
from gradmimic.contrastive import Embedded, clip_losses

torch.manual_seed(0)


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = nn.Linear(6, 4, False), nn.Linear(5, 4, False)

    def forward(self, x, y):
        unit = nn.functional.normalize
        return Embedded(unit(self.image(x), dim=1), unit(self.text(y), dim=1), torch.tensor(5.0))


@pytest.mark.parametrize(("epoch", "told"), [(None, True), (0, True), (1, False), (7, False)])
def test_pairs_learned_by_heart_do_not_end_the_weights(epoch, told):
    model = Towers()
    useless = copy.deepcopy(model)
    for parameter in useless.parameters():
        nn.init.normal_(parameter)
    mimic = GradMimic(model, useless, params="all", temperature=0.1)
    canaries = Canaries(rate=1.0)
    for step in range(30):
        chance = torch.Generator().manual_seed(step)
        x, y = torch.randn(50, 6, generator=chance), torch.randn(50, 5, generator=chance)
        ids = torch.arange(step * 50, step * 50 + 50)
        with mimic:
            pairs = model(x, y)
            losses = clip_losses(pairs)
            drawn = canaries.pairs(pairs.similarity, ids)
        mimic.weigh(losses, ids, epoch=epoch, canaries=drawn)
    assert (mimic.overtaken is not None) == told
