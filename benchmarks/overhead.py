"""What re-weighting costs: one step with ``GradMimic`` and its log, against the plain step.

    time   = median_t (re-weighted_t / plain_t)      the two take turns in one process
    memory = peak bytes of a re-weighted step / peak bytes of a plain one, tensors alone

The head is scored, where the goal is time ≤ 1.03 and memory ≤ 1.02; or all parameters. Canaries,
5 % of the samples under two wrong labels each, come on top.

Run: python benchmarks/overhead.py [--params all] [--quick]
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from harness import interleave, save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, ScoreLog
from gradmimic.bench.memory import peak_bytes
from gradmimic.direction import choose

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES = 100


class Residual(nn.Module):
    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width),
        )  # fmt: skip
        self.skip = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.skip(x))


class VisionTransformer(nn.Module):
    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.position = nn.Parameter(torch.zeros(1, 64, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
            norm_first=True,
        )  # fmt: skip
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position  # [b, 64, width]
        logits: Tensor = self.head(self.encoder(tokens).mean(1))
        return logits


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3072, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(),
        nn.Linear(1024, CLASSES),
    )  # fmt: skip


def resnet18() -> nn.Module:
    stages = [
        (64, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 1),
        (128, 256, 2), (256, 256, 1), (256, 512, 2), (512, 512, 1),
    ]  # fmt: skip
    stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, *(Residual(*s) for s in stages), pool, nn.Linear(512, CLASSES))


def vit() -> nn.Module:
    return VisionTransformer(192, 12, 3)


MODELS: dict[str, Callable[[], nn.Module]] = {"MLP": mlp, "ResNet-18": resnet18, "ViT-Ti/4": vit}


class Step:
    """One training step on one fixed batch, plain or re-weighted and logged."""

    def __init__(
        self,
        build: Callable[[], nn.Module],
        batch: int,
        log: ScoreLog | None,
        params: str,
        canaries: Canaries | None = None,
    ) -> None:
        torch.manual_seed(0)
        self.model, reference = build().to(DEVICE), build()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.x = torch.randn(batch, 3, 32, 32, device=DEVICE)
        self.y = torch.randint(CLASSES, (batch,), device=DEVICE)
        self.ids, self.steps = torch.arange(batch), 0
        scored = {
            name: parameter.detach()
            for name, parameter in choose(reference, params).parameters.items()
        }
        self.mimic, self.canaries = None, canaries
        if log is not None:
            self.mimic = GradMimic(self.model, scored, params=params, log=log)
        self.reference_bytes = sum(t.nbytes for t in scored.values()) if self.mimic else 0

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        if self.mimic is None:
            loss = F.cross_entropy(self.model(self.x), self.y)
        else:
            with self.mimic:
                logits = self.model(self.x)
                losses = F.cross_entropy(logits, self.y, reduction="none")
                ids = self.ids + self.steps * len(self.ids)  # others serve at every step
                drawn = self.canaries.labels(logits, self.y, ids) if self.canaries else None
            loss = self.mimic.weigh(losses, ids, epoch=self.steps, canaries=drawn)
            self.steps += 1
        loss.backward()
        self.optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    def peak_bytes(self) -> int:
        """Return the most bytes that tensors held at once: what lives on, and the step's own."""
        held = [*self.model.parameters(), *self.model.buffers()]
        for state in self.optimizer.state.values():
            held += [value for value in state.values() if isinstance(value, Tensor)]
        self.optimizer.zero_grad()
        return sum(t.nbytes for t in held) + self.reference_bytes + peak_bytes(self)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few turns, small batches")
    parser.add_argument("--params", choices=["head", "all"], default="head", help="what is scored")
    options = parser.parse_args()
    quick, params = options.quick, options.params
    results: list[dict[str, Any]] = []
    cases = [(name, batch) for name in MODELS for batch in ((8,) if quick else (32, 128))]
    cases = [case for case in cases if params == "head" or case[1] <= 32]  # they take long
    for name, batch in track(cases, "measuring", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as folder, ScoreLog(folder) as log:
            plain = Step(MODELS[name], batch, None, params)
            mimic = Step(MODELS[name], batch, log, params)
            # a second plain step beside the first shows how far the clock itself can be trusted
            again = Step(MODELS[name], batch, None, params)
            more = Step(MODELS[name], batch, log, params, Canaries())
            turns = 5 if quick else {"MLP": 500, "ResNet-18": 21, "ViT-Ti/4": 21}[name]
            timing = interleave(
                {
                    "plain": plain,
                    "re-weighted": mimic,
                    "with canaries": more,
                    "plain again": again,
                },
                turns=turns,
            )
            peaks = [
                statistics.median(step.peak_bytes() for _ in range(3)) for step in (plain, mimic)
            ]
        results.append(
            {
                "model": name,
                "batch": batch,
                "plain_seconds": timing["plain"].seconds,
                "time_ratio": timing["re-weighted"].ratio,
                "time_ratio_with_canaries": timing["with canaries"].ratio,
                "noise_ratio": timing["plain again"].ratio,
                "plain_bytes": peaks[0],
                "memory_ratio": peaks[1] / peaks[0],
            }
        )
    table = Table(
        "model", "batch", "plain step", "time ×", "with canaries ×", "plain again ×", "memory",
        "memory ×",
    )  # fmt: skip
    for row in results:
        table.add_row(
            row["model"], str(row["batch"]), f"{1e3 * row['plain_seconds']:.1f} ms",
            f"{row['time_ratio']:.3f}", f"{row['time_ratio_with_canaries']:.3f}",
            f"{row['noise_ratio']:.3f}",
            f"{row['plain_bytes'] / 2**20:.0f} MiB", f"{row['memory_ratio']:.4f}",
        )  # fmt: skip
    Console().print(table)
    if not quick:
        own = "overhead" if params == "head" else "overhead-all"
        save(own, results, f"python benchmarks/overhead.py --params {params}")


if __name__ == "__main__":
    main()
