"""How near is near enough: from which turn on a contrastive reference has to be turned back.

The set-up of rotation.py with a reference of the same initial weights, whose projections are then
turned together, by exp(t A) for a random skew A and t from 0 on: what it says stays the same, where
its weights are does not. AUROC of the mean score over ten epochs along the plain difference and by
rotation, beside ``nearness``; and the nearness of references that nobody turned.

Run: python benchmarks/nearness.py [--seeds 3]
"""

import argparse
import statistics
from typing import Any

import numpy as np
import torch
from harness import save
from rich.console import Console
from rich.table import Table
from rotation import SHARED, Align, Projections, batches, losses
from torch import Tensor
from torch.nn import functional as F

from gradmimic import GradMimic
from gradmimic.direction import choose
from gradmimic.reference import Reference
from gradmimic.rotation import nearness
from gradmimic.separation import auroc

TURNS = (0.0, 0.3, 0.5, 0.7, 0.9, 1.2, 1.6, 2.0, 3.0)
WIDTH = 64


def measure(images: Tensor, texts: Tensor, seed: int) -> list[dict[str, Any]]:
    """Return a row for each turn, and one for another start."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    trusted, noisy = order[:400], order[400:]
    swapped = noisy[:120]
    captions = texts.clone()
    captions[swapped] = texts[swapped.roll(1)]
    wrong = torch.isin(noisy, swapped).numpy()

    def scored(weights: dict[str, Tensor], align: Align) -> tuple[float, float, float | None]:
        """Return the nearness before and after training, and the AUROC."""
        model = Projections(seed, WIDTH)
        reference = Reference(weights, "turned")
        subset = choose(model, "all")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        mimic = GradMimic(
            model, reference, params="all", align=align, temperature="auto", engine="forward"
        )
        before, total = nearness(model, subset, reference), torch.zeros(len(images))
        for rows in batches(noisy, 10, seed):
            with mimic:
                each = losses(model(images[rows], captions[rows]))
            loss = mimic.weigh(each)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            assert mimic.scores is not None  # noqa: S101
            total[rows] += mimic.scores
        after = nearness(model, subset, reference)
        return before, after, auroc(total[noisy].numpy(), wrong)

    chance = torch.Generator().manual_seed(1000 + seed)
    skew = torch.randn(WIDTH, WIDTH, generator=chance)
    skew = (skew - skew.T) / (2 * WIDTH) ** 0.5
    rows = []
    for start, turns in ((seed, TURNS), (seed + 100, (0.0,))):
        better = Projections(start, WIDTH)
        optimizer = torch.optim.AdamW(better.parameters(), lr=3e-3)
        for taken in batches(trusted, 30, seed):
            optimizer.zero_grad()
            losses(better(images[taken], texts[taken])).mean().backward()
            optimizer.step()
        for turn in turns:
            r = torch.linalg.matrix_exp(turn * skew)
            weights = {name: r @ own.detach() for name, own in better.named_parameters()}
            plain, turned = scored(weights, "none"), scored(weights, "rotation")
            rows.append({
                "name": f"same start, t = {turn}" if start == seed else "other start",
                "seed": seed, "nearness": plain[0], "in the end": turned[1],
                "none": plain[2], "rotation": turned[2],
            })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = SHARED / "flickr8k"
    images = torch.tensor(np.load(folder / "image_features.npy").astype(np.float32))
    texts = torch.tensor(np.load(folder / "caption_features.npy").astype(np.float32))[:, 0]
    images = F.normalize(images - images.mean(0), dim=1)
    results = [row for seed in range(options.seeds) for row in measure(images, texts, seed)]
    columns = "nearness", "in the end", "none", "rotation"
    table = Table("reference", *columns)
    for name in dict.fromkeys(row["name"] for row in results):
        own = [row for row in results if row["name"] == name]
        table.add_row(name, *(f"{statistics.mean(r[c] for r in own):.3f}" for c in columns))
    Console().print(table)
    save("nearness", results, f"python benchmarks/nearness.py --seeds {options.seeds}")


if __name__ == "__main__":
    main()
