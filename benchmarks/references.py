"""References from anywhere: a small CNN trained from scratch on noisy labels.

For each noise and seed: plain training; the same on the clean samples alone, which is all that a
perfect filter could reach; and re-weighted training (``align="outputs", weighting="posterior"``)
with references that share nothing with the model but the classes: a CNN of the same width from
other initial weights, one of double width, and one of another family (an MLP on Fashion-MNIST, a
linear probe on pretrained features on CIFAR-10), each trained on the trusted rows and cached once.
The first of them also by transport, and with the softmax; at 0.4 also by plain difference. No
choice is made on the test set: accuracy is that of the last epoch, against the *best* epoch of
plain training.

The overhead is that of a step of ResNet-18, cached and with the reference run beside.

Run: python benchmarks/references.py --data fashion|cifar10 [--seeds 3] ; … --overhead
"""

import argparse
import gzip
import math
import os
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from harness import interleave, save
from overhead import resnet18
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic import Canaries, GradMimic, Outputs
from gradmimic.data import read_samples, symmetric
from gradmimic.separation import auroc

SHARED = Path(os.environ.get("GRADMIMIC_DATA", "../shared/data"))
BATCH, LR, WIDTH = 64, 3e-3, 32
GOALS = {"0.2": 1.0, "0.4": 2.0, "0.6": 4.0}  # points above the best epoch of plain training


class Data(NamedTuple):
    """Images and labels, on which everything here is measured."""

    x: Tensor  # [n, c, h, w], noisy
    y: Tensor  # [n], the true labels
    trusted_x: Tensor
    trusted_y: Tensor
    test_x: Tensor
    test_y: Tensor
    human: Tensor | None  # [n], what people said
    features: tuple[Tensor, Tensor] | None  # of the noisy and of the trusted rows
    epochs: int


def fashion() -> Data:
    """1,000 trusted, 6,000 noisy and 3,000 test images of Fashion-MNIST's test part."""

    def idx(name: str, header: int) -> npt.NDArray[np.uint8]:
        content = gzip.decompress((SHARED / "fashion_mnist" / name).read_bytes())
        values: npt.NDArray[np.uint8] = np.frombuffer(content, np.uint8, offset=header).copy()
        return values

    x = torch.tensor(idx("t10k-images-idx3-ubyte.gz", 16)).reshape(-1, 1, 28, 28).float()
    y = torch.tensor(idx("t10k-labels-idx1-ubyte.gz", 8)).long()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = (x[order] - x.mean()) / x.std(), y[order]
    return Data(x[1000:7000], y[1000:7000], x[:1000], y[:1000], x[7000:], y[7000:], None, None, 10)


def cifar10() -> Data:
    """5,000 trusted and 15,000 noisy training images of CIFAR-10, and 5,000 of its test images."""
    folder = SHARED / "cifar10n"
    train = read_samples(str(folder / "images_train.parquet"), labels="clean_label")
    test = read_samples(str(folder / "images_test.parquet"), labels="label")
    x, test_x = torch.tensor(train.inputs).float(), torch.tensor(test.inputs).float()
    mean, spread = x.mean((0, 2, 3), keepdim=True), x.std()
    x, test_x = (x - mean) / spread, (test_x - mean) / spread
    y = torch.tensor(train.labels)
    human = torch.tensor(np.load(folder / "human_labels_train.npy").astype(np.int64))
    features = torch.tensor(np.load(folder / "features_train.npy").astype(np.float32))
    features = features / features.std()
    some, trusted = slice(5000, 20_000), slice(0, 5000)
    return Data(
        x[some], y[some], x[trusted], y[trusted], test_x, torch.tensor(test.labels), human[some],
        (features[some], features[trusted]), 8,
    )  # fmt: skip


def cnn(channels: int, width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    widths = channels, width, 2 * width, 4 * width
    blocks = [
        nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU())
        for i, o in pairwise(widths)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    epochs: int,
    seed: int,
    mimic: GradMimic | None = None,
    test: tuple[Tensor, Tensor] | None = None,
) -> tuple[list[float], Tensor]:
    """Train with AdamW and a cosine schedule; return test accuracies and mean scores ``[n]``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=1e-5)
    steps = epochs * math.ceil(len(x) / BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator, canaries = torch.Generator().manual_seed(seed), Canaries(seed=seed)
    scores, accuracies = torch.full((epochs, len(x)), torch.nan), []
    for epoch in range(epochs):
        model.train()
        for rows in torch.randperm(len(x), generator=generator).split(BATCH):
            if mimic is None:
                loss = F.cross_entropy(model(x[rows]), y[rows])
            else:
                with mimic:
                    logits = model(x[rows])
                    losses = F.cross_entropy(logits, y[rows], reduction="none")
                    drawn = canaries.labels(logits, y[rows], rows)
                before = mimic.scores
                loss = mimic.weigh(losses, rows, epoch=epoch, canaries=drawn)
                if mimic.scores is not None and mimic.scores is not before:
                    scores[epoch, rows] = mimic.scores
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        if test is not None:
            accuracies.append(float((outputs(model, test[0]).argmax(1) == test[1]).float().mean()))
    return accuracies, scores.nanmean(0)


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    return torch.cat([model(block) for block in x.split(1000)])


def references(data: Data, seed: int) -> dict[str, tuple[nn.Module | None, Tensor, float | None]]:
    """Train references; return module, outputs on the noisy rows, and test accuracy, if any."""
    channels = data.x.shape[1]
    # as many steps as the training takes, at least thirty passes
    epochs = max(30, round(data.epochs * len(data.x) / len(data.trusted_x)))
    models: dict[str, nn.Module] = {
        "same width": cnn(channels, WIDTH, seed + 100),
        "double width": cnn(channels, 2 * WIDTH, seed + 200),
    }
    torch.manual_seed(seed + 300)
    if data.features is None:
        d = data.x[0].numel()
        models["another family"] = nn.Sequential(
            nn.Flatten(), nn.Linear(d, 256), nn.ReLU(), nn.Linear(256, 10)
        )
    found: dict[str, tuple[nn.Module | None, Tensor, float | None]] = {}
    for name, model in models.items():
        fit(model, data.trusted_x, data.trusted_y, epochs, seed)
        right = outputs(model, data.test_x).argmax(1) == data.test_y
        found[name] = model, outputs(model, data.x), float(right.float().mean())
    if data.features is not None:
        noisy, trusted = data.features
        probe = nn.Linear(trusted.shape[1], 10)
        fit(probe, trusted, data.trusted_y, epochs, seed)
        found["another family"] = None, outputs(probe, noisy), None
    return found


def measure(
    data: Data, noise: str, seed: int, known: dict[str, tuple[nn.Module | None, Tensor, Any]]
) -> dict[str, Any]:
    """Train everything at one level of noise."""
    if noise == "human":
        assert data.human is not None  # noqa: S101
        y = data.human
    else:
        y = torch.tensor(symmetric(data.y.numpy(), float(noise), 10, seed))
    wrong, channels = (y != data.y).numpy(), data.x.shape[1]
    test = data.test_x, data.test_y

    def fresh() -> nn.Module:
        return cnn(channels, WIDTH, seed)

    plain, _ = fit(fresh(), data.x, y, data.epochs, seed, test=test)
    right = torch.tensor(~wrong)
    clean, _ = fit(fresh(), data.x[right], y[right], data.epochs, seed, test=test)
    row: dict[str, Any] = {"plain_best": max(plain), "plain_last": plain[-1], "clean": clean[-1]}
    row["trusted"] = known["same width"][2]

    def reweighted(given: Outputs | nn.Module, **options: Any) -> dict[str, Any]:
        model = fresh()
        mimic = GradMimic(model, given, temperature="auto", **options)
        accuracy, scores = fit(model, data.x, y, data.epochs, seed, mimic, test)
        return {
            "accuracy": accuracy[-1],
            "best": max(accuracy),
            "auroc": auroc(scores.nan_to_num(0.0), wrong),
            "overtaken": mimic.overtaken,
        }

    for name, (_, said, _) in known.items():
        table = Outputs(range(len(y)), said, source=name)
        row[name] = reweighted(table, align="outputs", weighting="posterior")
        row[name]["reference_loss_auroc"] = auroc(
            -F.cross_entropy(said, y, reduction="none"), wrong
        )
    module, said, _ = known["same width"]
    table = Outputs(range(len(y)), said)
    row["outputs, softmax"] = reweighted(table, align="outputs")
    row["transport"] = reweighted(table, align="transport", weighting="posterior")
    row["transport, softmax"] = reweighted(table, align="transport")
    if noise == "0.4" and module is not None:
        row["difference"] = reweighted(module)
    return row


def show(results: list[dict[str, Any]]) -> Table:
    """Average over seeds."""
    names = "same width", "double width", "another family"
    table = Table("labels", "trusted alone", "plain, best epoch", "plain, last", "clean alone")
    for name in names:
        for column in (f"{name}: accuracy", "gain", "goal", "AUROC", "of its loss"):
            table.add_column(column)
    for noise in dict.fromkeys(row["noise"] for row in results):
        rows = [row for row in results if row["noise"] == noise]

        def mean(get: Callable[[dict[str, Any]], float], rows: Any = rows) -> float:
            return statistics.mean(get(row) for row in rows)

        cells = [f"{mean(lambda r, k=key: r[k]):.3f}" for key in  # type: ignore[misc]
                 ("trusted", "plain_best", "plain_last", "clean")]  # fmt: skip
        for name in names:
            gain = 100 * mean(lambda r, n=name: r[n]["accuracy"] - r["plain_best"])  # type: ignore[misc]
            cells += [
                f"{mean(lambda r, n=name: r[n]['accuracy']):.3f}",  # type: ignore[misc]
                f"{gain:+.1f}",
                str(GOALS.get(noise, "")),
                f"{mean(lambda r, n=name: r[n]['auroc']):.3f}",  # type: ignore[misc]
                f"{mean(lambda r, n=name: r[n]['reference_loss_auroc']):.3f}",  # type: ignore[misc]
            ]
        table.add_row(noise, *cells)
    return table


def overhead(turns: int) -> dict[str, Any]:
    """Time a step of ResNet-18: plain, transported from a cache, with the reference beside."""
    found = {}
    for batch in (32, 128):
        x, y = torch.randn(batch, 3, 32, 32), torch.randint(100, (batch,))
        ids = torch.arange(batch)
        beside = resnet18().eval()
        table = Outputs(range(100_000), torch.randn(100_000, 100))

        def stepper(
            reference: nn.Module | Outputs | None,
            align: Literal["outputs", "transport"] = "outputs",
            x: Tensor = x,
            y: Tensor = y,
            ids: Tensor = ids,
        ) -> Callable[[], None]:
            torch.manual_seed(0)
            model = resnet18()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
            mimic = None
            if reference is not None:
                mimic = GradMimic(model, reference, align=align, temperature="auto")

            def step() -> None:
                optimizer.zero_grad()
                if mimic is None:
                    loss = F.cross_entropy(model(x), y)
                else:
                    with mimic:
                        losses = F.cross_entropy(model(x), y, reduction="none")
                    loss = mimic.weigh(losses, ids)
                loss.backward()
                optimizer.step()

            return step

        def forward(reference: nn.Module = beside, x: Tensor = x) -> None:
            with torch.no_grad():
                reference(x)

        timed = interleave(
            {
                "plain": stepper(None), "cached": stepper(table), "beside": stepper(beside),
                "transport": stepper(table, "transport"), "forward": forward,
            },
            turns=turns, warmup=2,
        )  # fmt: skip
        found[str(batch)] = {
            name: {"seconds": timing.seconds, "ratio": timing.ratio}
            for name, timing in timed.items()
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=("fashion", "cifar10"), default="fashion")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--overhead", action="store_true")
    parser.add_argument("--turns", type=int, default=20)
    options = parser.parse_args()
    console = Console()
    if options.overhead:
        found = overhead(options.turns)
        table = Table(
            "batch", "plain (s)", "cached", "transported", "beside", "1 + its forward pass"
        )
        for batch, own in found.items():
            table.add_row(
                batch, f"{own['plain']['seconds']:.3f}", f"{own['cached']['ratio']:.3f}",
                f"{own['transport']['ratio']:.3f}",
                f"{own['beside']['ratio']:.3f}", f"{1 + own['forward']['ratio']:.3f}",
            )  # fmt: skip
        console.print(table)
        save("references-overhead", found, "python benchmarks/references.py --overhead")
        return
    torch.set_num_threads(1)  # small models; threads would wait for each other
    data = {"fashion": fashion, "cifar10": cifar10}[options.data]()
    levels = ["0.2", "0.4", "0.6"] + (["human"] if data.human is not None else [])
    results: list[dict[str, Any]] = []
    command = f"python benchmarks/references.py --data {options.data} --seeds {options.seeds}"
    for seed in range(options.seeds):
        known = references(data, seed)
        for noise in levels:
            results.append({"noise": noise, "seed": seed} | measure(data, noise, seed, known))
            save(f"references-{options.data}", results, command)  # a stop loses nothing
            Console(stderr=True).print(results[-1])
    console.width = max(console.width, 240)
    console.print(show(results))


if __name__ == "__main__":
    main()
