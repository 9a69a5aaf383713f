"""Transport of bare matrices, as in ``x @ projection``: the same as that of linear layers."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradmimic import GradMimic
from gradmimic.direction import choose
from gradmimic.errors import AlignmentError
from gradmimic.projection import scored_projections
from gradmimic.transport import FIRST

B = 12


class Layers(nn.Module):
    def __init__(self, seed, width=4):
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Linear(6, 5)
        self.image, self.text = nn.Linear(5, width, False), nn.Linear(5, width, False)

    def forward(self, x):
        h = self.trunk(x).tanh()
        return {"image": self.image(h), "text": self.text(h.flip(1))}


class Matrices(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.trunk = layers.trunk
        self.image = nn.Parameter(layers.image.weight.detach().T.clone())
        self.text = nn.Parameter(layers.text.weight.detach().T.clone())

    def forward(self, x):
        h = self.trunk(x).tanh()
        return {"image": h @ self.image, "text": torch.matmul(h.flip(1), self.text)}


def scores(model, reference, params, engine):
    mimic = GradMimic(model, reference, align="transport", params=params, engine=engine)
    for step in range(FIRST + 2):
        x = torch.randn(B, 6, generator=torch.Generator().manual_seed(step))
        with mimic:
            both = model(x)
            image, text = (F.normalize(both[name], dim=1) for name in ("image", "text"))
            losses = F.cross_entropy(image @ text.T / 0.1, torch.arange(B), reduction="none")
        mimic.weigh(losses)
    return mimic.scores


@pytest.mark.parametrize("engine", ["forward", "oracle"])
@pytest.mark.parametrize("width", [3, 4, 7])
def test_matrices_score_like_layers(engine, width):
    model, reference = Layers(0), Layers(1, width)
    layers = scores(model, reference, ["image.weight", "text.weight"], engine)
    bare = scores(Matrices(model), reference, ["image", "text"], engine)
    assert layers.std() > 0
    torch.testing.assert_close(bare, layers, rtol=1e-4, atol=1e-5)


def test_a_layer_and_a_matrix_stand_beside_each_other():
    model = nn.ModuleDict({"a": Matrices(Layers(0)), "text": nn.Linear(5, 4)})
    found = scored_projections(choose(model, ["a.image", "text.*"]), "transport")
    assert {name: own.biased for name, own in found.items()} == {"text": True, "a.image": False}
    for own in found.values():
        parts = own.named(own.current())
        held = dict(model.named_parameters())
        for name, part in parts.items():
            torch.testing.assert_close(part, held[name].detach())
        torch.testing.assert_close(own.joined(parts), own.current())
        assert own.width == 4


def test_matrices_of_torchs_own_modules_are_no_projections():
    words = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2))
    with pytest.raises(AlignmentError, match="belongs to Embedding"):
        scored_projections(choose(words, "0.weight"), "transport")
