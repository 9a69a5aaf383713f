"""What trusted rows are worth, and what there is without any: references of noisy labels alone.

For each set, noise and seed, and for each number of trusted rows: the re-weighted model with every
reference that these rows allow, next to plain training without and with them. Linear probes on
features, 15,000 noisy rows of cifar10n and 8,002 of banking77, always the same ones; trusted rows
come from others, with their right labels. The truth enters the metrics only.

    trusted        a probe of the trusted rows, for as many steps as the training, but no more than
                   20 epochs or 1,000 steps, whichever is longer; × 10: its head sharpened
    cross-fitted   gradmimic.run.self_reference, on the noisy rows and the trusted ones
    early, average   likewise
    one round      cross-fitted once, without weights: the mean of the folds' heads; or by fold,
                   each batch from one fold, with the head that never saw it as its reference
    inspect_labels   finds wrong labels and trains no model

Run: python benchmarks/trusted.py [--seeds 3] [--quick]     15 minutes on one thread
"""

import argparse
import copy
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import save
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from gradmimic.canaries import Canaries, enough
from gradmimic.cross_fit import Predict, cross_fit
from gradmimic.curate import select
from gradmimic.label_issues import inspect_labels
from gradmimic.log import ScoreLog
from gradmimic.outputs import Outputs
from gradmimic.reweight import GradMimic
from gradmimic.run.config import RunConfig, load_config
from gradmimic.run.inputs import load_inputs
from gradmimic.run.metrics import detection
from gradmimic.run.models import Classifier, build_model
from gradmimic.run.self_reference import SHARPER, Recipe, self_reference, sharpened
from gradmimic.run.train import Rows, accuracy, logits, train
from gradmimic.separation import auroc

EXAMPLES = Path(__file__).parents[1] / "examples"
NOISY = 15_000
TRUSTED = (0, 100, 500, 2_000, 5_000)
LEAST_STEPS, LEAST_EPOCHS = 1_000, 20
CLASSES_NEED = 5  # trusted rows a class, on average; below, the table says so


@dataclass(frozen=True)
class Task:
    """One set with one noise and seed; ``pool`` are the rows that may be trusted."""

    config: RunConfig
    data: Rows
    wrong: np.ndarray[Any, np.dtype[np.bool_]]
    pool: Rows
    test: Rows
    initial: Classifier


def cases(folder: Path) -> Iterator[tuple[str, str, RunConfig]]:
    """Yield data set, noise and configuration."""
    yield "cifar10n", "0.4", load_config(EXAMPLES / "cifar10n-symmetric.yaml", {})
    yield "cifar10n", "human", load_config(EXAMPLES / "cifar10n.yaml", {})
    trusted = folder / "trusted.txt"
    trusted.write_text("\n".join(str(row) for row in range(0, 10_003, 5)))
    yield "banking77", "0.4", load_config(EXAMPLES / "banking77.yaml", {"trusted": str(trusted)})


def load(config: RunConfig, noisy: int) -> Task:
    """Read a set, corrupt its labels, and mix the rows that may be trusted."""
    inputs = load_inputs(config)
    assert inputs.trusted is not None and inputs.test is not None  # noqa: S101, PT018
    assert inputs.wrong is not None  # noqa: S101
    x, y = np.asarray(inputs.train.inputs), inputs.train.labels
    own = np.random.default_rng(0).permutation(len(y))[:noisy]
    mixed = np.random.default_rng(config.seed).permutation(len(inputs.trusted))
    initial = build_model(
        "linear", x[own], len(inputs.train.classes), hidden=1, seed=config.seed
    )  # fmt: skip
    return Task(
        config,
        _rows(x[own], y[own]),
        inputs.wrong[own],
        _rows(np.asarray(inputs.trusted.inputs)[mixed], inputs.trusted.labels[mixed]),
        _rows(np.asarray(inputs.test.inputs), inputs.test.labels),
        initial,
    )


def _rows(x: Any, y: Any) -> Rows:
    return Rows(torch.tensor(x), torch.tensor(y).long())


def fit(task: Task, rows: Rows, epochs: int, **more: Any) -> Classifier:
    """Train a fresh probe with the task's recipe."""
    model, own = copy.deepcopy(task.initial), task.config
    train(
        model, rows, epochs=epochs, batch_size=own.batch_size, lr=own.lr,
        weight_decay=own.weight_decay, seed=own.seed, **more,
    )  # fmt: skip
    return model


def reference_epochs(task: Task, m: int) -> int:
    """Return passes over m trusted rows: few rows need confidence, many are soon overfitted."""
    per_epoch = ceil(m / task.config.batch_size)
    steps = task.config.epochs * ceil(len(task.data) / task.config.batch_size)
    return ceil(min(steps, max(LEAST_EPOCHS * per_epoch, LEAST_STEPS)) / per_epoch)


def reweighted(task: Task, reference: Any, outputs: Tensor, **more: Any) -> dict[str, Any]:
    """Train with a reference, log, select by canaries, and measure."""
    own, model = task.config, copy.deepcopy(task.initial)
    with tempfile.TemporaryDirectory() as folder:
        with ScoreLog(folder, seed=own.seed) as log:
            mimic = GradMimic(model, reference, log=log, **{"temperature": 0.7} | more)
            train(
                model, task.data, epochs=own.epochs, batch_size=own.batch_size, lr=own.lr,
                weight_decay=own.weight_decay, seed=own.seed, mimic=mimic, canaries=_canaries(task),
            )  # fmt: skip
        return _found(task, model, folder, outputs)


def by_fold(task: Task, heads: list[Classifier], fold: Tensor, outputs: Tensor) -> dict[str, Any]:
    """Train on batches of one fold each, with the head that never saw it as their reference."""
    own, model, canaries = task.config, copy.deepcopy(task.initial), _canaries(task)
    generator = torch.Generator().manual_seed(own.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=own.lr, weight_decay=own.weight_decay)
    with tempfile.TemporaryDirectory() as folder:
        with ScoreLog(folder, seed=own.seed) as log:
            mimics = [GradMimic(model, head, temperature=0.7, log=log) for head in heads]
            step = 0
            for epoch in range(own.epochs):
                batches = []
                for k in range(len(heads)):
                    rows = (fold == k).nonzero()[:, 0]
                    rows = rows[torch.randperm(len(rows), generator=generator)]
                    batches += [(k, batch) for batch in rows.split(own.batch_size)]
                for place in torch.randperm(len(batches), generator=generator).tolist():
                    k, rows = batches[place]
                    mimics[k].step, step = step, step + 1
                    y = task.data.labels[rows]
                    with mimics[k]:
                        z = model(task.data.inputs[rows])
                        losses = F.cross_entropy(z, y, reduction="none")
                        drawn = canaries.labels(z, y, rows)
                    loss = mimics[k].weigh(losses, rows, epoch=epoch, canaries=drawn)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        return _found(task, model, folder, outputs)


def _canaries(task: Task) -> Canaries:
    return Canaries(enough(len(task.data)), seed=task.config.seed)


def _found(task: Task, model: Classifier, folder: str, outputs: Tensor) -> dict[str, Any]:
    """Select from a log, and measure."""
    chosen = select(folder, "calibrated")
    visited = chosen.table["sample_id"].to_numpy()
    losses = F.cross_entropy(outputs, task.data.labels, reduction="none").numpy()
    removed = ~chosen.mask(np.arange(len(task.data)))
    return {
        "accuracy": accuracy(model, task.test),
        "auroc": auroc(chosen.table["score"].to_numpy(), task.wrong[visited]),
        "f1": detection(removed, task.wrong)["f1"],
        "reference_loss_auroc": auroc(-losses, task.wrong),
    }


def one_round(task: Task) -> tuple[list[Classifier], Tensor, Tensor]:
    """Cross-fit once: the heads, the fold of each sample, and the outputs out of fold."""
    heads: list[Classifier] = []
    fold = torch.zeros(len(task.data), dtype=torch.long)

    def learn(rows: Any) -> Predict:
        taken = Rows(task.data.inputs[rows], task.data.labels[rows])
        heads.append(fit(task, taken, task.config.epochs))

        def judge(own: Any) -> Tensor:
            fold[own] = len(heads) - 1
            return logits(heads[-1], task.data.inputs[own])

        return judge

    outputs = cross_fit(learn, len(task.data), folds=3, seed=0, labels=task.data.labels)
    return heads, fold, outputs


def mean_head(heads: list[Classifier]) -> Classifier:
    """Return a model with the mean of all weights."""
    mean = copy.deepcopy(heads[0])
    with torch.no_grad():
        for name, parameter in mean.named_parameters():
            parameter.copy_(torch.stack([head.get_parameter(name) for head in heads]).mean(0))
    return mean


def label_issues(task: Task) -> dict[str, Any]:
    """Find wrong labels without training any model, by cross-fitted probes."""
    found = inspect_labels(
        task.data.inputs.numpy(), task.data.labels.numpy(), seed=task.config.seed
    )  # fmt: skip
    f1 = detection(found.mask, task.wrong)["f1"]
    return {"auroc": auroc(found.score, task.wrong), "f1": f1, "accuracy": None}


def without(task: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what there is without a trusted row."""
    own = task.config
    recipe = Recipe(own.epochs, own.batch_size, own.lr, own.weight_decay, own.seed + 1)
    yield "(plain training)", {"accuracy": _last(task, task.data)}
    for kind, name in (("early", "early"), ("average", "average")):
        made = self_reference(kind, task.initial, task.data, recipe)  # type: ignore[arg-type]
        yield f"{name} × 10", _measured(task, made.model, made.outputs)
    heads, fold, outputs = one_round(task)
    model = mean_head(heads)
    yield "cross-fitted, one round", _measured(task, model, outputs)
    yield "cross-fitted, one round × 10", _measured(task, sharpened(model), outputs)
    sharp = [sharpened(head) for head in heads]
    yield "cross-fitted, one round, by fold × 10", by_fold(task, sharp, fold, outputs)
    made = self_reference("cross_fit", task.initial, task.data, recipe)
    yield "cross-fitted × 10", _measured(task, made.model, made.outputs)
    table = Outputs(torch.arange(len(task.data)), made.outputs)
    found = reweighted(task, table, made.outputs, align="transport", temperature="auto")
    yield "cross-fitted, transported", found
    yield "(inspect_labels)", label_issues(task)


def with_trusted(task: Task, m: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what m trusted rows are good for."""
    own = task.config
    trusted = Rows(task.pool.inputs[:m], task.pool.labels[:m])
    both = Rows(
        torch.cat([task.data.inputs, trusted.inputs]), torch.cat([task.data.labels, trusted.labels])
    )
    yield "(plain training on noisy + trusted)", {"accuracy": _last(task, both)}
    model = fit(task, trusted, reference_epochs(task, m))
    outputs = logits(model, task.data.inputs)
    yield "trusted", _measured(task, model, outputs)
    yield "trusted × 10", _measured(task, sharpened(model), SHARPER * outputs)
    recipe = Recipe(own.epochs, own.batch_size, own.lr, own.weight_decay, own.seed + 1)
    made = self_reference("cross_fit", task.initial, task.data, recipe, trusted=trusted)
    yield "trusted + cross-fitted × 10", _measured(task, made.model, made.outputs)


def _measured(task: Task, model: Classifier, outputs: Tensor) -> dict[str, Any]:
    found = reweighted(task, model, outputs)
    return found | {"reference_accuracy": accuracy(model, task.test)}


def _last(task: Task, rows: Rows) -> float:
    return accuracy(fit(task, rows, task.config.epochs), task.test)


def show(results: list[dict[str, Any]]) -> None:
    """Print the means over seeds, with the deviation of the accuracy."""
    table = Table(
        "data", "noise", "trusted", "reference", "its accuracy", "AUROC of its loss",
        "AUROC of the score", "F1", "accuracy, re-weighted",
    )  # fmt: skip
    keys = ("data", "noise", "trusted", "reference")
    for case in dict.fromkeys(tuple(row[key] for key in keys) for row in results):
        rows = [row for row in results if tuple(row[key] for key in keys) == case]

        def mean(key: str, form: str, factor: float = 1, rows: Any = rows) -> str:
            values = [factor * row[key] for row in rows if row.get(key) is not None]
            return format(statistics.mean(values), form) if values else ""

        own = [100 * row["accuracy"] for row in rows if row["accuracy"] is not None]
        spread = f" ± {statistics.stdev(own):.1f}" if len(own) > 1 else ""
        few = " (few)" if rows[0]["few"] else ""
        table.add_row(
            *case[:2], f"{case[2]:,}{few}", case[3], mean("reference_accuracy", ".1f", 100),
            mean("reference_loss_auroc", ".3f"), mean("auroc", ".3f"), mean("f1", ".3f"),
            mean("accuracy", ".1f", 100) + spread,
        )  # fmt: skip
    Console(width=160).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="3,000 noisy rows, 0 and 500 trusted")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("gradmimic").setLevel(logging.ERROR)  # of models that pass their reference
    start = time.monotonic()
    sizes, noisy = ((0, 500), 3_000) if options.quick else (TRUSTED, NOISY)
    flags = f"--seeds {options.seeds}" + (" --quick" if options.quick else "")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for data, noise, config in cases(Path(folder)):
                task = load(replace(config, seed=seed), noisy)
                for m in sizes:
                    if m > len(task.pool):
                        continue
                    few = 0 < m < CLASSES_NEED * task.initial.head.out_features
                    for name, found in without(task) if m == 0 else with_trusted(task, m):
                        where = {"data": data, "noise": noise, "seed": seed, "trusted": m}
                        results.append(where | {"few": few, "reference": name} | found)
                        own = "trusted-quick" if options.quick else "trusted"
                        save(own, results, f"python benchmarks/trusted.py {flags}")
                Console(stderr=True).log(data, noise, seed, f"{time.monotonic() - start:.0f} s")
    show(sorted(results, key=lambda row: (row["data"] != "cifar10n", row["noise"])))


if __name__ == "__main__":
    main()
