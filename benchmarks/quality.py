"""How well stage 2 knows how much is bad, and which: quality estimates and F1 over noise levels.

For each set, noise level and seed, one run of ``examples/*.yaml`` with canaries, and from its log
every rule's selection. The truth enters the table only. F1 is of the bad class; "known rate"
removes as many of the lowest scores as samples are bad, which no one can know without the truth.

Run: python benchmarks/quality.py [--seeds 3] [--data cifar10|banking77]
     python benchmarks/quality.py --data images      a small CNN, trained end to end
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from harness import save
from rich.console import Console
from rich.progress import track

from gradmimic.curate import Selection, estimate_quality, select
from gradmimic.curate.decide import Aggregate, Rule
from gradmimic.log import ScoreLog
from gradmimic.reproduce.quality import pearson
from gradmimic.reproduce.tables import pivot
from gradmimic.run.config import RunConfig, load_config
from gradmimic.run.inputs import load_inputs
from gradmimic.run.job import run_job
from gradmimic.run.metrics import detection
from gradmimic.separation import auroc

EXAMPLES = Path(__file__).parents[1] / "examples"
LEVELS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
RULES: dict[str, tuple[Rule, Aggregate]] = {
    "1/b majority": ("one_over_b", "majority"),
    "two-means": ("two_means", "mean"),
    "mixture": ("mixture", "mean"),
    "calibrated": ("calibrated", "mean"),
}


def cases(data: str, folder: Path) -> Iterator[tuple[str, RunConfig]]:
    """Yield noise and configuration."""
    if data == "images":
        example = EXAMPLES / "cifar10n-images.yaml"
        small = folder / "images.parquet"  # a CNN scored on all its parameters takes its time
        source = load_config(example, {}).data
        pq.write_table(pq.read_table(source).slice(0, 15_000), small)
        for rate in (0.2, 0.4):
            for canaries in ("scored", "trained"):
                for epochs in (5, 15):
                    own = {"canaries": canaries, "epochs": epochs, "data": str(small)}
                    own |= {"trunk": "trained", "labels": "clean_label"}
                    name = f"{rate} {canaries}, {epochs} epochs"
                    yield name, load_config(example, _noise(rate) | own)
        return
    example = EXAMPLES / ("cifar10n-symmetric.yaml" if data == "cifar10" else "banking77.yaml")
    flags: dict[str, Any] = {}
    if data == "banking77":
        trusted = folder / "trusted.txt"
        trusted.write_text("\n".join(str(row) for row in range(0, 10_003, 5)))
        flags["trusted"] = str(trusted)
    for rate in LEVELS:
        config = load_config(example, flags | _noise(rate))
        yield str(rate), replace(config, true_labels=None if rate else config.labels)
    if data == "cifar10":
        yield "human", load_config(EXAMPLES / "cifar10n.yaml", {})


def measure(config: RunConfig) -> dict[str, Any]:
    """Run one configuration, then decide by every rule."""
    run_job(config)
    log = ScoreLog.read(Path(config.out) / "log")
    inputs = load_inputs(config)
    wrong = inputs.wrong
    assert wrong is not None  # noqa: S101
    found = estimate_quality(log)
    row: dict[str, Any] = {
        "true": float(wrong.mean()),
        "estimate": found.noise_rate.value,
        "low": found.noise_rate.low,
        "high": found.noise_rate.high,
        "auroc_of_canaries": found.auroc[next(iter(found.auroc))].value,
    }
    for name, (rule, aggregate) in RULES.items():
        selection = select(log, rule, aggregate=aggregate)
        row[name] = detection(~selection.mask(inputs.train.ids), wrong)["f1"]
        row[f"{name} removes"] = len(selection.removed) / len(selection)
    scores = _scores(selection, inputs.train.ids)
    row["auroc"] = auroc(scores, wrong)
    lowest = np.argsort(scores, kind="stable")[: int(wrong.sum())]
    row["known rate"] = detection(np.isin(np.arange(len(wrong)), lowest), wrong)["f1"]
    return row


def show(data: str, results: list[dict[str, Any]], console: Console) -> None:
    """Print the means over the seeds, and how the estimates follow the truth."""
    names = ["true", "estimate", "low", "high", "auroc", *RULES, "known rate"]
    records = [
        {"noise": row["noise"], "what": name, "value": row[name]}
        for row in results
        for name in names
    ]
    records += [
        {"noise": row["noise"], "what": "inside", "value": row["low"] <= row["true"] <= row["high"]}
        for row in results
    ]
    console.print(pivot(records, data, rows=["noise"], column="what").shown())
    true, estimate = (np.array([row[key] for row in results]) for key in ("true", "estimate"))
    symmetric = np.array([row["noise"] != "human" for row in results])
    console.print(
        f"{data}: Pearson of estimated against true quality {pearson(true, estimate):.4f} "
        f"(symmetric noise alone {pearson(true[symmetric], estimate[symmetric]):.4f}; published: "
        f"0.903); mean absolute error on symmetric noise "
        f"{np.abs(true - estimate)[symmetric].mean():.4f}"
    )


def _noise(rate: float) -> dict[str, Any]:
    """Return the flags of symmetric noise."""
    return {"noise": "symmetric" if rate else "none", "noise_rate": rate}


def _scores(selection: Selection, ids: Any) -> Any:
    """Return the mean scores in the order of the data."""
    order = np.argsort(ids)
    scores = np.empty(len(ids))
    scores[order] = selection.table["score"].to_numpy()
    return scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", choices=["cifar10", "banking77", "images"], default="cifar10")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        todo = [
            (noise, replace(config, seed=seed, out=f"{folder}/run", report=False, overwrite=True))
            for noise, config in cases(options.data, Path(folder))
            for seed in range(options.seeds)
        ]
        for noise, config in track(todo, "running", console=Console(stderr=True)):
            results.append({"noise": noise, "seed": config.seed} | measure(config))
    show(options.data, results, Console(width=180))
    command = f"python benchmarks/quality.py --data {options.data} --seeds {options.seeds}"
    save(f"quality-{options.data}", results, command)


if __name__ == "__main__":
    main()
