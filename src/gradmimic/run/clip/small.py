"""The built-in two-tower CLIP, small enough for CPUs and examples; nothing is downloaded.

    picture [3, s, s] → four strided convolutions → mean over places → projection [128] → ‖·‖ = 1
    caption → hashed words → mean of their embeddings → one layer    → projection [128] → ‖·‖ = 1

A word is a row of a table that its hash picks, so there is no vocabulary to keep.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.contrastive import Embedded
from gradmimic.integrations.pillow import Picture
from gradmimic.pair_model import PairModel
from gradmimic.wrapped import unwrapped

SIZE = 64  # pixels
SPACE = 128  # dimensions that both towers share
WIDTHS = (3, 24, 48, 96, 128)
WORDS, WORD = 4096, 96  # rows of the table of words, and their width
MOST = 32  # words of a caption
_MOST_SCALE = math.log(100)  # as CLIP's

_WORD = re.compile(r"\w+")


class Small(nn.Module):
    """A CNN on pictures and a bag of hashed words on captions."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            *(_block(*pair) for pair in pairwise(WIDTHS)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.words = nn.Embedding(WORDS, WORD)
        self.text = nn.Sequential(nn.LayerNorm(WORD), nn.Linear(WORD, 2 * WORD), nn.GELU())
        self.image_projection = nn.Linear(WIDTHS[-1], SPACE, bias=False)
        self.text_projection = nn.Linear(2 * WORD, SPACE, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return ``[b, 128]`` of unit length for ``[b, 3, s, s]``."""
        return F.normalize(self.image_projection(self.image(images)), dim=1)

    def encode_texts(self, words: Tensor) -> Tensor:
        """Return ``[b, 128]`` of unit length for ``[b, t]`` rows of the table; 0 is no word."""
        there = (words > 0).unsqueeze(2)  # [b, t, 1]
        mean = (self.words(words) * there).sum(1) / there.sum(1).clamp(min=1)
        return F.normalize(self.text_projection(self.text(mean)), dim=1)

    def forward(self, images: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what both towers say, and s."""
        return self.encode_images(images), self.encode_texts(words), self.scale()

    def scale(self) -> Tensor:
        """Return s, at most 100."""
        return self.log_scale.clamp(max=_MOST_SCALE).exp()


@dataclass(frozen=True)
class HashedWords:
    """Captions to rows of the table of words.

    Example:
        >>> tokens = HashedWords()(["A dog.", "a DOG"])["words"]
        >>> tokens.shape, bool((tokens[0] == tokens[1]).all())
        (torch.Size([2, 32]), True)
    """

    most: int = MOST

    def __call__(self, captions: Sequence[str]) -> Mapping[str, Tensor]:
        """Return ``{"words": [b, t]}`` int64; what follows the first ``most`` words is left out."""
        words = torch.zeros(len(captions), self.most, dtype=torch.int64)
        for row, caption in enumerate(captions):
            found = _WORD.findall(caption.lower())[: self.most]
            # the same number in every process, unlike hash()
            numbers = [1 + zlib.crc32(word.encode()) % (WORDS - 1) for word in found]
            words[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        return {"words": words}


def open_small(*, seed: int = 0, image_size: int | None = None) -> PairModel:
    """Build the small model.

    Args:
        seed: of its initial weights.
        image_size: width and height of its pictures in pixels, 64 by default; any from 16 on.

    Returns:
        The model, with CLIP's loss.

    Example:
        >>> open_small().scored("image")
        ['image_projection.weight']
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Small()
    size = image_size or SIZE
    return PairModel(
        model,
        "small",
        "clip",
        encode_images=lambda model, images: _bare(model).encode_images(images),
        encode_texts=lambda model, tokens: _bare(model).encode_texts(tokens["words"]),
        scale=lambda model: (_bare(model).scale(), None),
        projections={"image": ["image_projection.weight"], "text": ["text_projection.weight"]},
        transform=Picture((size, size)),
        tokenize=HashedWords(),
        forward=lambda model, images, tokens: Embedded(*model(images, tokens["words"])),
    )


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=2, padding=1), nn.GroupNorm(8, width), nn.ReLU()
    )


def _bare(model: nn.Module) -> Small:
    return cast(Small, unwrapped(model))
