"""The built-in two-tower CLIP, small enough for CPUs and examples; nothing is downloaded.

    picture [3, s, s] → patches → mean and maximum over places     → projection [128] → ‖·‖ = 1
    caption           → hashed words → mean of their embeddings    → projection [128] → ‖·‖ = 1

Both towers see a bag, of patches and of words: with a few hundred pairs to learn from, that is what
carries over to new ones. A word is a row of a table that its hash picks, so there is no vocabulary
to keep.
"""

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.contrastive import Embedded
from gradmimic.errors import ConfigError
from gradmimic.integrations.pillow import Picture
from gradmimic.pair_model import PairModel
from gradmimic.wrapped import unwrapped

SIZE = 64  # pixels
SPACE = 128  # dimensions that both towers share
PATCH, PATCHES = 8, (64, 96)  # pixels of a patch's side; what is made of it
WORDS, WORD = 2048, 64  # rows of the table of words, and their width
MOST = 32  # words of a caption
_MOST_SCALE = math.log(100)  # as CLIP's

_WORD = re.compile(r"\w+")


class Small(nn.Module):
    """Bags of patches and of words."""

    def __init__(self) -> None:
        super().__init__()
        first, second = PATCHES
        self.image = nn.Sequential(
            nn.Conv2d(3, first, PATCH, stride=PATCH // 2),
            nn.GroupNorm(8, first),
            nn.ReLU(),
            nn.Conv2d(first, second, 1),
            nn.GroupNorm(8, second),
            nn.ReLU(),
        )
        self.words = nn.Embedding(WORDS, WORD)
        nn.init.normal_(self.words.weight, std=0.05)  # small, so that they soon weigh words too
        self.text = nn.LayerNorm(WORD)
        self.image_projection = nn.Linear(2 * second, SPACE, bias=False)
        self.text_projection = nn.Linear(WORD, SPACE, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def encode_images(self, images: Tensor) -> Tensor:
        """Return ``[b, 128]`` of unit length for ``[b, 3, s, s]``."""
        patches = self.image(images)  # [b, 96, p, p]
        bag = torch.cat([patches.mean((2, 3)), patches.amax((2, 3))], 1)
        return F.normalize(self.image_projection(bag), dim=1)

    def encode_texts(self, words: Tensor) -> Tensor:
        """Return ``[b, 128]`` of unit length for ``[b, t]`` rows of the table; 0 is no word."""
        there = (words > 0).unsqueeze(2)  # [b, t, 1]
        bag = (self.words(words) * there).sum(1) / there.sum(1).clamp(min=1)
        return F.normalize(self.text_projection(self.text(bag)), dim=1)

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
        image_size: width and height of its pictures in pixels, 64 by default.

    Returns:
        The model, with CLIP's loss.

    Raises:
        ConfigError: pictures would be smaller than two patches.

    Example:
        >>> open_small().scored("image")
        ['image_projection.weight']
    """
    size = SIZE if image_size is None else image_size
    if size < 2 * PATCH:
        raise ConfigError(f"image_size must be at least {2 * PATCH} for model 'small', got {size}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Small()
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


def _bare(model: nn.Module) -> Small:
    return cast(Small, unwrapped(model))
