"""Small models of the common kinds, built of torch alone, to measure on.

Each takes a batch ``(x, y)`` of its own making to one loss per sample.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batch = tuple[Tensor, Tensor]
CLASSES, WORDS, LENGTH = 100, 1000, 64


class Attention(nn.Module):
    """Self-attention with the fused kernel that models in use call."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, t, width]`` to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # [b, heads, t, ·]
        mixed: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return mixed


class Block(nn.Module):
    """One layer of a transformer, norms first."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[b, t, width]`` to the same shape."""
        x = x + self.attention(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed


class VisionTransformer(nn.Module):
    """Patches, blocks, the mean, and a head."""

    def __init__(
        self, width: int, depth: int, heads: int, *, patch: int, size: int, outputs: int = CLASSES
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Embedding((size // patch) ** 2, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``[b, 3, size, size]`` to ``[b, outputs]``."""
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # [b, t, width]
        tokens = tokens + self.position(_places(tokens))
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


class Decoder(nn.Module):
    """A language model: causal blocks, and a head that shares the embedding's weight."""

    def __init__(self, width: int, depth: int, heads: int, *, words: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map words ``[b, t]`` to ``[b, t, words]``."""
        hidden = self.embedding(x) + self.position(_places(x))
        logits: Tensor = self.head(self.norm(self.blocks(hidden)))
        return logits


def _places(x: Tensor) -> Tensor:
    """Return 0, 1, … for each sample's tokens, ``[b, t]``."""
    return torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])


def mlp() -> nn.Module:
    """Build three linear layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(),
        nn.Linear(512, CLASSES),
    )  # fmt: skip


def cnn() -> nn.Module:
    """Build four convolutions with group norms."""
    layers: list[nn.Module] = []
    for before, after, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 1), (64, 128, 2)):
        conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        layers += [conv, nn.GroupNorm(8, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, CLASSES))


def images(b: int) -> Batch:
    """Draw ``b`` images of 32 pixels and their classes."""
    return torch.randn(b, 3, 32, 32), torch.randint(CLASSES, (b,))


def texts(b: int) -> Batch:
    """Draw ``b`` texts, and each word's next one."""
    words = torch.randint(WORDS, (b, LENGTH + 1))
    return words[:, :-1], words[:, 1:]


def losses(model: nn.Module, batch: Batch) -> Tensor:
    """Return cross entropy ``[b]``; of a text, the mean over its words."""
    z = model(batch[0])
    if z.ndim == 2:
        return F.cross_entropy(z, batch[1], reduction="none")
    return F.cross_entropy(z.transpose(1, 2), batch[1], reduction="none").mean(1)


@dataclass(frozen=True)
class Case:
    """A model to measure on.

    Args:
        build: makes it.
        draw: makes a batch of so many samples.
        losses: ``losses(model, batch) -> [b]``.
    """

    build: Callable[[], nn.Module]
    draw: Callable[[int], Batch]
    losses: Callable[[nn.Module, Batch], Tensor] = losses


CASES: dict[str, Case] = {
    "mlp": Case(mlp, images),
    "cnn": Case(cnn, images),
    "vit": Case(lambda: VisionTransformer(128, 4, 4, patch=4, size=32), images),
    "decoder": Case(lambda: Decoder(128, 4, 4, words=WORDS, length=LENGTH), texts),
}
"""The models of ``gradmimic bench``, by name."""
