"""Flickr8k as the CLIP benchmark uses it: frozen features or pixels, splits, swaps, batches.

A pair is an image with its five captions, of which one is drawn at every visit. In a swapped pair
all five are another image's. Planted canaries are pairs that we swap ourselves, once and for all,
and add to the training data.
"""

import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gradmimic.pair_model import PairModel

SHARED = Path(os.environ.get("GRADMIMIC_DATA", "../shared/data")) / "flickr8k"
CAPTIONS = 5
TRUSTED, NOISY, TEST = 200, 500, 100
BATCH = 64


class Inputs(NamedTuple):
    """A batch as a pair model reads it."""

    images: Tensor
    tokens: Mapping[str, Tensor]


class Where(NamedTuple):
    """Which pairs a batch holds."""

    images: Tensor  # [b], rows of the data
    owners: Tensor  # [b], rows whose captions they come with
    captions: Tensor  # [b], which of the five


@dataclass(frozen=True, eq=False)
class Data:
    """800 images with five captions each, as one kind of model reads them.

    Args:
        images: ``[800, …]``.
        texts: ``[800, 5, t]``.
        key: what the model calls its texts.
    """

    images: Tensor
    texts: Tensor
    key: str

    def batch(self, at: Where) -> Inputs:
        """Return these pairs."""
        return Inputs(self.images[at.images], {self.key: self.texts[at.owners, at.captions]})


@dataclass(frozen=True, eq=False)
class Pool:
    """Pairs to train on.

    Args:
        images: ``[n]`` rows of the data; planted canaries come last.
        owners: ``[n]`` rows whose captions they come with.
        planted: how many of them are canaries.
    """

    images: Tensor
    owners: Tensor
    planted: int = 0

    def __len__(self) -> int:
        return len(self.images)

    @property
    def real(self) -> int:
        """How many are no canaries."""
        return len(self) - self.planted

    def only(self, mask: Tensor) -> "Pool":
        """Return the real pairs that the mask ``[n]`` names."""
        return Pool(self.images[: self.real][mask], self.owners[: self.real][mask])

    def plant(self, share: float, seed: int) -> "Pool":
        """Add pairs of some of the images with the captions of another one of them."""
        chance = torch.Generator().manual_seed(seed + 9)
        serve = self.images[torch.randperm(len(self), generator=chance)[: round(share * len(self))]]
        owners = torch.cat([self.owners, serve.roll(1)])
        return Pool(torch.cat([self.images, serve]), owners, len(serve))

    def batches(self, seed: int) -> Iterator[tuple[int, Tensor, Where]]:
        """Yield epoch, positions in the pool (canaries last) and pairs, for ever."""
        epoch = 0
        while True:
            chance = torch.Generator().manual_seed(1000 * seed + epoch)
            order = torch.randperm(len(self), generator=chance)
            drawn = torch.randint(CAPTIONS, (len(self),), generator=chance)
            for part in order.split(BATCH):
                if len(part) < 2:  # nothing to be told from
                    continue
                rows = torch.cat([part[part < self.real], part[part >= self.real]])
                yield epoch, rows, Where(self.images[rows], self.owners[rows], drawn[rows])
            epoch += 1


@dataclass(frozen=True, eq=False)
class Split:
    """Who trains the reference, who is trained on, and who is tested on.

    Args:
        trusted: 200 clean pairs.
        noisy: 500 pairs, some swapped.
        test: ``[100]`` rows.
        wrong: ``[500]`` bool, which of the noisy ones are swapped.
    """

    trusted: Pool
    noisy: Pool
    test: Tensor
    wrong: Tensor


def split(share: float, seed: int) -> Split:
    """Shuffle the rows, part them, and swap the captions of a share of the noisy pairs."""
    chance = torch.Generator().manual_seed(seed)
    order = torch.randperm(TRUSTED + NOISY + TEST, generator=chance)
    trusted, noisy, test = order.split([TRUSTED, NOISY, TEST])
    swapped = round(share * NOISY)
    owners = torch.cat([noisy[:swapped].roll(1), noisy[swapped:]])
    wrong = torch.arange(NOISY) < swapped
    return Split(Pool(trusted, trusted), Pool(noisy, owners), test, wrong)


def features() -> Data:
    """Read frozen features of a pretrained CNN, and of a pretrained sentence encoder."""
    images = torch.tensor(np.load(SHARED / "image_features.npy").astype(np.float32))
    texts = torch.tensor(np.load(SHARED / "caption_features.npy").astype(np.float32))
    return Data(F.normalize(images - images.mean(0), dim=1), F.normalize(texts, dim=2), "features")


def pixels(pair: PairModel) -> Data:
    """Read the photographs and captions as a model takes them."""
    table = pq.read_table(SHARED / "pairs.parquet", columns=["image", "captions"])
    pictures = [
        pair.transform(Image.open(io.BytesIO(data)).convert("RGB"))
        for data in table["image"].to_pylist()
    ]
    said = [pair.tokenize(own[:CAPTIONS]) for own in table["captions"].to_pylist()]
    ((key, _),) = said[0].items()
    return Data(torch.stack(pictures), torch.stack([own[key] for own in said]), key)
