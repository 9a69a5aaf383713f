"""Small models, losses and references of every kind, for tests that hold over all of them."""

import copy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

CLASSES = 4


class Transformer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embed = nn.Linear(3, width)
        self.layer = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):  # [b, 5, 3]
        return self.head(self.layer(self.embed(x)).mean(1))


class Words(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.embedding = nn.Embedding(11, width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):  # [b, 6] word numbers
        return self.head(self.norm(self.embedding(x)).mean(1))


class TiedDecoder(nn.Module):
    """A head that shares its weight with the embedding, as in GPT-2."""

    def __init__(self, width=6, words=11):
        super().__init__()
        self.wte = nn.Embedding(words, width)
        self.trunk = nn.Linear(width, width)
        self.lm_head = nn.Linear(width, words, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, x):  # [b, t] word numbers
        return self.lm_head(torch.tanh(self.trunk(self.wte(x))))


def _cnn(width, norm):
    return nn.Sequential(
        nn.Conv2d(1, 2 * width, 3),
        norm(2 * width),
        nn.GELU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * 4, CLASSES),
    )


def build(kind, width, dtype=torch.float64, seed=0):
    """A model of this kind, and a reference a small step away from it."""
    torch.manual_seed(seed)
    model = {
        "mlp": lambda: nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, CLASSES)),
        "cnn-batchnorm-train": lambda: _cnn(width, nn.BatchNorm2d),
        "cnn-batchnorm-eval": lambda: _cnn(width, nn.BatchNorm2d).eval(),
        "cnn-groupnorm": lambda: _cnn(width, lambda c: nn.GroupNorm(2, c)),
        "transformer": lambda: Transformer(2 * width),
        "transformer-eval": lambda: Transformer(2 * width).eval(),
        "embedding": lambda: Words(width),
    }[kind]().to(dtype)
    return model, nearby(model)


def nearby(model, distance=0.3):
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(distance * torch.randn_like(parameter))
    return reference


MODELS = (
    "mlp",
    "cnn-batchnorm-train",
    "cnn-batchnorm-eval",
    "cnn-groupnorm",
    "transformer",
    "transformer-eval",
    "embedding",
)
LOSSES = (
    "cross-entropy",
    "label-smoothing",
    "ignore-index",
    "class-weights",
    "bce",
    "mse",
    "contrastive",
)


@dataclass
class Batch:
    x: torch.Tensor
    y: torch.Tensor
    other: torch.Tensor  # [b, CLASSES], a second view for contrastive losses, targets for the rest

    def take(self, rows):
        return Batch(self.x[rows], self.y[rows], self.other[rows])


def draw(kind, b, dtype=torch.float64, seed=1):
    torch.manual_seed(seed)
    shape = {"mlp": (3,), "transformer": (5, 3), "transformer-eval": (5, 3)}.get(kind, (1, 6, 6))
    x = torch.randint(11, (b, 6)) if kind == "embedding" else torch.randn(b, *shape, dtype=dtype)
    return Batch(x, torch.randint(CLASSES, (b,)), torch.rand(b, CLASSES, dtype=dtype))


def losses_of(kind):
    def losses(model, batch):
        z, y = model(batch.x), batch.y  # [b, CLASSES], [b]
        if kind == "label-smoothing":
            return F.cross_entropy(z, y, label_smoothing=0.1, reduction="none")
        if kind == "ignore-index":
            return F.cross_entropy(z, y, ignore_index=1, reduction="none")
        if kind == "class-weights":
            weight = torch.arange(1, CLASSES + 1, dtype=z.dtype)
            return F.cross_entropy(z, y, weight=weight, reduction="none")
        if kind == "bce":
            return F.binary_cross_entropy_with_logits(z, batch.other, reduction="none").mean(1)
        if kind == "mse":
            return F.mse_loss(z, batch.other, reduction="none").mean(1)
        if kind == "contrastive":
            similarity = F.normalize(z, dim=1) @ F.normalize(batch.other, dim=1).T / 0.1  # [b, b]
            pairs = torch.arange(len(z))
            rows = F.cross_entropy(similarity, pairs, reduction="none")
            return (rows + F.cross_entropy(similarity.T, pairs, reduction="none")) / 2
        return F.cross_entropy(z, y, reduction="none")

    return losses
