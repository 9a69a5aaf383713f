"""What the two stages are worth on real data: ``gradmimic run`` over noise levels and seeds.

For each set, noise level and seed, one run of ``examples/*.yaml``, and beside it two rivals that
use the same trusted samples: the reference alone, and plain training on noisy and trusted samples
together, for as many epochs. As a rival detector: the reference's own loss. F1 is the mixture's;
``quality.py`` compares the rules.

Run: python benchmarks/figures.py [--seeds 3] [--lr 0.0003]
"""

import argparse
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch.nn import functional as F

from gradmimic.run.config import RunConfig, load_config
from gradmimic.run.inputs import Inputs, load_inputs
from gradmimic.run.job import run_job
from gradmimic.run.models import build_model
from gradmimic.run.train import Rows, train
from gradmimic.separation import auroc

EXAMPLES = Path(__file__).parents[1] / "examples"
GOALS = {  # re-weighted − plain in points; AUROC of the mean score
    "0.2": (1.0, 0.88),
    "0.4": (3.0, 0.92),
    "0.6": (7.0, 0.94),
    "human": (0.5, None),
}


def cases(folder: Path, lr: float | None) -> Iterator[tuple[str, str, RunConfig]]:
    """Yield data set, noise, configuration; the examples' own learning rate where lr is None."""
    for rate in (0.2, 0.4, 0.6):
        example = EXAMPLES / "cifar10n-symmetric.yaml"
        yield "CIFAR-10 features", str(rate), load_config(example, {"noise_rate": rate, "lr": lr})
    yield "CIFAR-10 features", "human", load_config(EXAMPLES / "cifar10n.yaml", {"lr": lr})
    trusted = folder / "trusted.txt"
    trusted.write_text("\n".join(str(row) for row in range(0, 10_003, 5)))
    for rate in (0.2, 0.4, 0.6):
        flags = {"noise_rate": rate, "trusted": str(trusted), "lr": lr}
        yield "banking77 features", str(rate), load_config(EXAMPLES / "banking77.yaml", flags)


def rivals(config: RunConfig, inputs: Inputs, out: Path) -> dict[str, float]:
    """Measure what else the trusted samples could have been used for."""
    data, trusted, test = inputs.train, inputs.trusted, inputs.test
    assert trusted is not None and test is not None and inputs.wrong is not None  # noqa: S101, PT018
    classes = len(data.classes)

    def fresh() -> torch.nn.Module:
        return build_model("linear", data.inputs, classes, hidden=1, seed=config.seed)

    both = Rows(
        torch.from_numpy(np.concatenate([data.inputs, trusted.inputs])),
        torch.from_numpy(np.concatenate([data.labels, trusted.labels])),
    )
    curve = train(
        fresh(), both, epochs=config.epochs, batch_size=config.batch_size, lr=config.lr,
        weight_decay=config.weight_decay, seed=config.seed,
        test=Rows(torch.from_numpy(test.inputs), torch.from_numpy(test.labels)),
    )  # fmt: skip
    reference = fresh()
    reference.load_state_dict(torch.load(out / "reference.pt", weights_only=True))
    with torch.no_grad():
        logits = reference(torch.from_numpy(data.inputs))
        losses = F.cross_entropy(logits, torch.from_numpy(data.labels), reduction="none")
    return {
        "noisy_and_trusted": curve.accuracy[-1],
        "reference_loss_auroc": auroc(-losses.numpy(), inputs.wrong) or 0.0,
    }


def measure(config: RunConfig) -> dict[str, float]:
    """Run one configuration and its rivals; shares in [0, 1]."""
    values = run_job(config).values
    return {
        "reference": values["reference_accuracy"],
        "plain": values["plain"]["accuracy"][-1],
        "reweighted": values["reweighted"]["accuracy"][-1],
        "gain": values["gain"],
        "auroc": values["auroc"],
        "first_auroc": values["auroc_per_epoch"][0],
        "f1": values["detection"]["f1"],
        **rivals(config, load_inputs(config), Path(config.out)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--lr", type=float, help="of every training, instead of the examples'")
    options = parser.parse_args()
    seeds = range(options.seeds)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        todo = [(*case, seed) for case in cases(Path(folder), options.lr) for seed in seeds]
        for data, noise, config, seed in track(todo, "running", console=Console(stderr=True)):
            out = Path(folder) / f"{data}-{noise}-{seed}".replace(" ", "-")
            config = replace(config, seed=seed, out=str(out), report=False, rule="mixture")
            results.append({"data": data, "noise": noise, "seed": seed} | measure(config))
    table = Table(
        "data", "noise", "reference", "plain", "noisy + trusted", "re-weighted", "gain", "goal",
        "AUROC", "goal", "of 1st epoch", "of reference's loss", "F1",
    )  # fmt: skip
    for data, noise in dict.fromkeys((row["data"], row["noise"]) for row in results):
        rows = [row for row in results if (row["data"], row["noise"]) == (data, noise)]

        def mean(key: str, rows: list[dict[str, Any]] = rows) -> float:
            return float(statistics.mean(row[key] for row in rows))

        gains = [100 * row["gain"] for row in rows]
        spread = statistics.stdev(gains) if len(gains) > 1 else 0.0
        gain_goal, auroc_goal = GOALS[noise] if data.startswith("CIFAR") else (None, None)
        accuracies = ("reference", "plain", "noisy_and_trusted", "reweighted")
        table.add_row(
            data, noise, *(f"{100 * mean(key):.2f}" for key in accuracies),
            f"{statistics.mean(gains):+.2f} ± {spread:.2f}", f"≥ {gain_goal}" if gain_goal else "",
            f"{mean('auroc'):.3f}", f"≥ {auroc_goal}" if auroc_goal else "",
            *(f"{mean(key):.3f}" for key in ("first_auroc", "reference_loss_auroc", "f1")),
        )  # fmt: skip
    Console(width=200).print(table)
    own = "" if options.lr is None else f"-lr-{options.lr:g}"
    flags = f"--seeds {options.seeds}" + ("" if options.lr is None else f" --lr {options.lr:g}")
    save(f"figures{own}", results, f"python benchmarks/figures.py {flags}")


if __name__ == "__main__":
    main()
