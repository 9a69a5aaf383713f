"""Rotation: swapped captions, found toward a contrastive reference from other initial weights.

Frozen features of photographs and captions (flickr8k), two linear projections and a temperature of
1/20; the reference is trained on 400 pairs, the model on 400 others of which 30 % or 50 % have
another caption. AUROC of the mean score over ten epochs, beside that of the reference's own
similarity. What it does for the training is a question of CLIP, not of rotation.

Run: python benchmarks/rotation.py [--seeds 3]
"""

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from harness import save
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic import GradMimic
from gradmimic.separation import auroc

SHARED = Path(os.environ.get("GRADMIMIC_DATA", "../shared/data"))
Align = Literal["none", "rotation"]


class Projections(nn.Module):
    """Similarities ``[b, b]`` of pictures and captions in a common space."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.image, self.text = nn.Linear(1280, width, False), nn.Linear(384, width, False)

    def forward(self, images: Tensor, texts: Tensor) -> Tensor:
        u, v = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        return 20 * u @ v.T


def losses(similarity: Tensor) -> Tensor:
    """Symmetric InfoNCE ``[b]``."""
    return -(similarity.log_softmax(1).diagonal() + similarity.log_softmax(0).diagonal()) / 2


def batches(rows: Tensor, epochs: int, seed: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        yield from rows[torch.randperm(len(rows), generator=generator)].split(100)


def measure(images: Tensor, texts: Tensor, share: float, seed: int) -> dict[str, Any]:
    """Return the AUROC of each alignment toward each reference."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    trusted, noisy = order[:400], order[400:]
    swapped = noisy[: round(share * len(noisy))]
    captions = texts.clone()
    captions[swapped] = texts[swapped.roll(1)]
    wrong = torch.isin(noisy, swapped).numpy()
    found: dict[str, Any] = {"share": share, "seed": seed}
    for name, start, width in (
        ("same start", seed, 64), ("other start", seed + 100, 64), ("other width", seed + 100, 128),
    ):  # fmt: skip
        reference = Projections(start, width)
        optimizer = torch.optim.AdamW(reference.parameters(), lr=3e-3)
        for rows in batches(trusted, 30, seed):
            optimizer.zero_grad()
            losses(reference(images[rows], texts[rows])).mean().backward()
            optimizer.step()
        aligns: tuple[Align, ...] = ("rotation",) if width != 64 else ("none", "rotation")
        for align in aligns:
            model = Projections(seed, 64)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
            mimic = GradMimic(model, reference, params="all", align=align, temperature="auto")
            total = torch.zeros(len(images))
            for rows in batches(noisy, 10, seed):
                with mimic:
                    each = losses(model(images[rows], captions[rows]))
                loss = mimic.weigh(each)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                assert mimic.scores is not None  # noqa: S101
                total[rows] += mimic.scores
            found[f"{name}, {align}"] = auroc(total[noisy].numpy(), wrong)
        said = clip_score(reference, images[noisy], captions[noisy])
        found[f"{name}, reference's similarity"] = auroc(said.numpy(), wrong)
    return found


@torch.no_grad()
def clip_score(model: Projections, images: Tensor, captions: Tensor) -> Tensor:
    """Return what the reference thinks of each pair by itself, ``[n]``: its CLIP score."""
    similarity: Tensor = model(images, captions).diagonal()
    return similarity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = SHARED / "flickr8k"
    images = torch.tensor(np.load(folder / "image_features.npy").astype(np.float32))
    texts = torch.tensor(np.load(folder / "caption_features.npy").astype(np.float32))[:, 0]
    images = F.normalize(images - images.mean(0), dim=1)
    results = [
        measure(images, texts, share, seed) for share in (0.3, 0.5) for seed in range(options.seeds)
    ]
    table = Table("AUROC", "30 % swapped", "50 % swapped")
    for name in results[0]:
        if name not in ("share", "seed"):
            own = {s: [row[name] for row in results if row["share"] == s] for s in (0.3, 0.5)}
            table.add_row(name, *(f"{statistics.mean(values):.3f}" for values in own.values()))
    Console().print(table)
    save("rotation", results, f"python benchmarks/rotation.py --seeds {options.seeds}")


if __name__ == "__main__":
    main()
