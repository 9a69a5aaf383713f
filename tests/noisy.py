"""A noisy data set, a model in the midst of its training, and references of all kinds."""

import copy

import torch
from torch import nn
from torch.nn import functional as F

from gradmimic.canaries import Canaries
from gradmimic.check import check_reference
from gradmimic.outputs import Outputs

K, WIDTH = 6, 12
CANARIES = Canaries(rate=1.0)


def drawn(n, seed):
    """Classes that are no linear matter: the sign of one feature flips what the others say."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(K, (n,), generator=g)
    x = torch.randn(n, WIDTH, generator=g)
    flip = x[:, -1:].sign()
    x[:, :K] += 2.5 * flip * F.one_hot(y, K)
    return x, y


def mlp(seed, classes=K):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, classes))


def fitted(model, x, y, steps, only=""):
    g = torch.Generator().manual_seed(0)
    trained = [p for name, p in model.named_parameters() if name.startswith(only)]
    optimizer = torch.optim.AdamW(trained, lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,), generator=g)
        optimizer.zero_grad()
        F.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    return model


class World:
    """A noisy data set, a model in the midst of its training, and references of all kinds."""

    def __init__(self):
        self.x, self.true = drawn(1500, 1)
        g = torch.Generator().manual_seed(2)
        wrong = torch.rand(1500, generator=g) < 0.3
        other = (self.true + 1 + torch.randint(K - 1, (1500,), generator=g)) % K
        self.y = torch.where(wrong, other, self.true)
        self.clean = drawn(1500, 3)
        self.model = fitted(mlp(0), self.x, self.y, 100)
        self.same = fitted(mlp(0), *self.clean, 600)  # from the model's initial weights
        self.other = fitted(mlp(9), *self.clean, 600)
        self.probe = copy.deepcopy(self.same)  # shares the reference's trunk
        self.probe[2].load_state_dict(mlp(1)[2].state_dict())
        fitted(self.probe, self.x, self.y, 50, only="2.")
        self.batches = list(torch.arange(1500).split(100))

    def losses(self, model, rows):
        logits = model(self.x[rows])
        losses = F.cross_entropy(logits, self.y[rows], reduction="none")
        return losses, CANARIES.labels(logits, self.y[rows], rows)

    def check(self, reference, model=None, **options):
        model = model or self.model
        return check_reference(model, reference, self.batches, self.losses, **options)

    def outputs(self, reference, order=None):
        with torch.no_grad():
            values = reference(self.x)
        return Outputs(range(1500), values if order is None else values[order])
