"""What scoring a data set costs: ``gradmimic.scoring.score`` against inference on the same input.

    cost = median_t (scoring_t / inference_t)       the two take turns in one process

Inference reads the same batches ahead, runs the same model without gradients and fetches each
sample's class. Scoring runs one checkpoint, scores its head toward a reference, and logs every
sample: reading, the log and its last flush are included. Two checkpoints that share a trunk are
measured against one inference: the trunk is run once.

Run: python benchmarks/score.py [--quick]
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Timing, interleave, save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.ahead import ahead
from gradmimic.canaries import Canaries, CanaryLosses
from gradmimic.data import Samples
from gradmimic.data.scale import Scale
from gradmimic.log import ScoreLog
from gradmimic.run.checkpoints import with_shared_trunks
from gradmimic.run.models import Classifier
from gradmimic.run.row_batches import Labelled, RowBatches
from gradmimic.scoring import score

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES, BATCH = 10, 128


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.GroupNorm(8, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.GroupNorm(8, width),
        )  # fmt: skip
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


def trunks() -> dict[str, tuple[nn.Sequential, int, tuple[int, ...], int]]:
    """Return trunks with their width, the shape of their inputs, and the batches of a turn."""
    mlp = nn.Sequential(nn.Linear(1280, 1024), nn.ReLU())
    wide = nn.Sequential(nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 1024), nn.ReLU())
    cnn = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    widths, blocks = (64, 128, 256, 512), [nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1), nn.ReLU())]
    for place, width in enumerate(widths):
        before = widths[max(place - 1, 0)]
        blocks += [
            nn.Sequential(Residual(before, width, 1 + (place > 0)), Residual(width, width, 1))
        ]
    resnet = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return {
        "MLP 1280-1024": (mlp, 1024, (1280,), 400),
        "MLP 2048-2048-1024": (wide, 1024, (2048,), 64),
        "CNN 32x32, 2 layers": (cnn, 64, (3, 32, 32), 24),
        "ResNet-18 32x32": (resnet, 512, (3, 32, 32), 3),
    }


def samples_like(shape: Sequence[int], batches: int) -> Samples:
    """Return random samples: features, or pictures as bytes."""
    rng, n = np.random.default_rng(0), batches * BATCH
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Samples(
        inputs=images if len(shape) == 3 else rng.normal(size=(n, *shape)).astype(np.float32),
        labels=rng.integers(0, CLASSES, n),
        classes=tuple(map(str, range(CLASSES))),
        ids=np.arange(n),
        source="random",
    )


def inference(model: nn.Module, batches: RowBatches) -> Callable[[], object]:
    """Return a pass of the model over all batches."""

    @torch.no_grad()
    def run() -> list[Any]:
        read = ahead(batches.__getitem__, range(len(batches)))
        return [model(batch.inputs).argmax(1).cpu().numpy() for batch in read]

    return run


def scoring(
    models: dict[str, Classifier], better: Classifier, batches: RowBatches, rate: float | None
) -> Callable[[], object]:
    """Return a pass that scores all batches and logs them, in a new folder each time."""
    canaries = None if rate is None else Canaries(rate)
    checkpoints = with_shared_trunks(models)
    head = {name: value for name, value in better.state_dict().items() if "head" in name}

    def losses(model: nn.Module, batch: Labelled) -> tuple[Tensor, CanaryLosses | None]:
        z = model(batch.inputs)
        drawn = None if canaries is None else canaries.labels(z, batch.labels, batch.ids)
        return F.cross_entropy(z, batch.labels, reduction="none"), drawn

    def run() -> None:
        folder = Path(tempfile.mkdtemp())
        with ScoreLog(folder) as log:
            score(checkpoints, head, batches, losses, log, ids=lambda own: own.ids)
        shutil.rmtree(folder)

    return run


def measure(name: str, quick: bool) -> dict[str, Timing]:
    """Measure one model."""
    trunk, width, shape, number = trunks()[name]
    batches = RowBatches(samples_like(shape, max(2, number // (4 if quick else 1))), BATCH, DEVICE)
    scale = Scale(batches.samples.inputs[:BATCH])
    first = Classifier(scale, trunk, nn.Linear(width, CLASSES)).to(DEVICE).eval()
    second, better = deepcopy(first), deepcopy(first)
    for other in (second, better):
        nn.init.normal_(other.head.weight, std=0.1)
    return interleave(
        {
            "inference": inference(first, batches),
            "scores": scoring({"first": first}, better, batches, None),
            "scores and canaries": scoring({"first": first}, better, batches, 0.05),
            "two checkpoints": scoring({"first": first, "second": second}, better, batches, None),
        },
        turns=5 if quick else 15,
        warmup=1,
    )


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer batches and turns")
    quick = parser.parse_args().quick
    torch.manual_seed(0)
    if DEVICE.type == "cpu":
        torch.set_num_threads(1)
    table = Table("model", "inference, ms a batch", "scores", "and canaries", "two checkpoints")
    results = {}
    for name in track(list(trunks()), "models"):
        found = measure(name, quick)
        results[name] = {what: timing._asdict() for what, timing in found.items()}
        number = max(2, trunks()[name][3] // (4 if quick else 1))
        base, *others = found.values()
        table.add_row(
            name, f"{base.seconds / number * 1e3:.2f}", *(f"{own.ratio:.3f}" for own in others)
        )
    Console().print(table)
    command = "python benchmarks/score.py" + (" --quick" if quick else "")
    print(f"saved to {save('score-quick' if quick else 'score', results, command)}")


if __name__ == "__main__":
    main()
