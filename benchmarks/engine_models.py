"""The models of ``benchmarks/engines.py``, and a batch for each.

Own modules, in the published shapes, of parts that every peer can take per-sample gradients of:
torch.func and Opacus know no Conv1D and no parameter that no layer holds.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.bench import models as bench
from gradmimic.bench.models import Batch, Block, Decoder, VisionTransformer

CLASSES, WORDS = 100, 10_000
Norm = Callable[[int], nn.Module]


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False), norm(after), nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False), norm(after),
        )  # fmt: skip
        self.skip: nn.Module = nn.Identity()
        if before != after:
            self.skip = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def resnet18(norm: Norm) -> nn.Module:
    stages = [
        (64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1),
        (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1),
    ]  # fmt: skip
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), norm(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(
        *stem, *(Residual(*stage, norm) for stage in stages),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, CLASSES),
    )  # fmt: skip


class DualEncoder(nn.Module):
    """Images and texts into one space, as CLIP does."""

    def __init__(self, size: int, length: int, width: int = 256, depth: int = 6) -> None:
        super().__init__()
        self.image = VisionTransformer(width, depth, 4, patch=16, size=size, outputs=128)
        self.words = nn.Embedding(WORDS, width)
        self.text = nn.Sequential(*(Block(width, 4, causal=True) for _ in range(depth)))
        self.text_projection = nn.Linear(width, 128)
        self.scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        """Map ``[b, 3, size, size]`` and ``[b, t]`` to the similarities ``[b, b]``."""
        image = F.normalize(self.image(images), dim=1)
        text = F.normalize(self.text_projection(self.text(self.words(texts)).mean(1)), dim=1)
        similarities: Tensor = self.scale.exp() * image @ text.T
        return similarities


def contrastive(model: nn.Module, batch: Batch) -> Tensor:
    z = model(*batch)
    pairs = torch.arange(len(z), device=z.device)
    rows = F.cross_entropy(z, pairs, reduction="none")
    return (rows + F.cross_entropy(z.T, pairs, reduction="none")) / 2


@dataclass(frozen=True)
class Case(bench.Case):
    """``shared``: why a sample's loss depends on the rest of its batch, where it does."""

    head: str = "head"
    shared: str | None = None


def cases(size: int, length: int) -> dict[str, Case]:
    """Build every case for images of ``size`` pixels and texts of ``length`` words."""

    def images(b: int) -> Batch:
        return torch.randn(b, 3, size, size), torch.randint(CLASSES, (b,))

    def words(b: int) -> Tensor:
        return torch.randint(WORDS, (b, length + 1))

    return {
        "ResNet-18 GroupNorm": Case(lambda: resnet18(lambda c: nn.GroupNorm(32, c)), images),
        "ResNet-18 BatchNorm": Case(
            lambda: resnet18(nn.BatchNorm2d), images, shared="BatchNorm mixes the batch's samples"
        ),
        "ViT-S/16": Case(
            lambda: VisionTransformer(384, 12, 6, patch=16, size=size, outputs=CLASSES), images
        ),
        "GPT-2 10M": Case(
            lambda: Decoder(256, 9, 8, words=WORDS, length=length),
            lambda b: (lambda w: (w[:, :-1], w[:, 1:]))(words(b)),
        ),
        "CLIP": Case(
            lambda: DualEncoder(size, length),
            lambda b: (images(b)[0], words(b)[:, 1:]),
            contrastive,
            head="text_projection.*",
            shared="a contrastive loss compares the batch's samples",
        ),
    }
