"""Wrong labels: how many are found, how surely and how fast, beside cleanlab.

On real features with symmetric noise and with human labels, for each method: precision, recall and
F1 of what it flags, AUROC of its score, and seconds for all, training included. "known" is the F1
of flagging as many of the lowest scores as labels are wrong, which no one knows. Every method sees
the same features, with one global scale, and one thread.

- ours: ``inspect_labels``; "trusted" gives it some checked rows, and is measured on the others.
- cleanlab: ``filter.find_label_issues`` on probabilities of scikit-learn's logistic regression by
  five-fold cross-validation; by its default filter, and by the one that does best on these data.
  Of the strengths of regularisation in ``STRENGTHS`` it gets the one that predicts the given labels
  best, and only the seconds of that one count. (The default, 1, is slower and worse.)
- trained mimic: the mimic scores of a model that trains on each fold, at the learning rate that
  suits it best, instead of walking straight to the reference; one round, all else as ours.

Run: python benchmarks/label_issues.py [--quick]     needs cleanlab and scikit-learn
"""

import argparse
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from harness import save
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from gradmimic import GradMimic, ScoreLog
from gradmimic.canaries import Canaries
from gradmimic.cross_fit import deal
from gradmimic.curate.decide import decide
from gradmimic.data.noise import symmetric
from gradmimic.data.scale import Scale
from gradmimic.label_issues import inspect_labels
from gradmimic.label_issues.judge import _FOLDS
from gradmimic.label_issues.probe import Data, fit
from gradmimic.run.metrics import detection
from gradmimic.run.train import Rows, train
from gradmimic.separation import auroc

DATA = Path(os.environ.get("GRADMIMIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
STRENGTHS = (0.001, 0.01, 0.1)
FILTERS = {"cleanlab": "prune_by_noise_rate", "cleanlab, low": "low_self_confidence"}
Row = dict[str, Any]


def cases() -> Iterator[tuple[str, str, Any, Any, Any, Any]]:
    """Yield data, noise, features, true labels, given labels and a mask of trusted rows."""
    folder = DATA / "cifar10n"
    x = np.load(folder / "features_train.npy")
    true, human = (
        np.load(folder / f"{kind}_labels_train.npy").astype(np.int64) for kind in ("clean", "human")
    )
    trusted = np.arange(len(x)) < 5000
    for rate in (0.0, 0.1, 0.2, 0.4):
        yield "CIFAR-10", f"{rate:.0%}", x, true, symmetric(true, rate, 10, seed=0), trusted
    yield "CIFAR-10", "human", x, true, human, trusted
    folder = DATA / "banking77"
    x = np.load(folder / "features_train.npy")
    true = pq.read_table(folder / "train.parquet")["label"].to_numpy().astype(np.int64)
    trusted = np.arange(len(x)) % 5 == 0
    for rate in (0.0, 0.1, 0.2, 0.4):
        yield "banking77", f"{rate:.0%}", x, true, symmetric(true, rate, 77, seed=0), trusted


def measure(x: Any, true: Any, given: Any, trusted: Any) -> Iterator[Row]:
    """Run every method on one case."""
    wrong = given != true
    start = time.perf_counter()
    found = inspect_labels(x, given)
    yield ours("ours", start, found, wrong, np.ones(len(x), dtype=bool))
    start = time.perf_counter()
    found = inspect_labels(x, np.where(trusted, true, given), trusted=trusted)
    yield ours("ours, trusted", start, found, wrong, ~trusted)
    start = time.perf_counter()
    mask, score = trained_mimic(x, given)
    yield judged("trained mimic", start, mask, score, wrong)
    yield from cleanlab(x, given, wrong, FILTERS)


def cleanlab(x: Any, given: Any, wrong: Any, filters: dict[str, str]) -> Iterator[Row]:
    """Flag by cleanlab's filters, from one set of probabilities."""
    from cleanlab.filter import find_label_issues

    probabilities, seconds = cross_validated(x, given)
    score = probabilities[np.arange(len(x)), given]
    for name, filter_by in filters.items():
        start = time.perf_counter() - seconds
        mask = find_label_issues(given, probabilities, filter_by=filter_by, n_jobs=1)
        yield judged(name, start, mask, score, wrong)


def ours(name: str, start: float, found: Any, wrong: Any, rows: Any) -> Row:
    """Describe what ``inspect_labels`` found, and what it says of itself."""
    rate = found.noise_rate
    row = judged(name, start, found.mask[rows], found.score[rows], wrong[rows])
    return row | {"estimate": rate.value, "low": rate.low, "high": rate.high}


def judged(name: str, start: float, mask: Any, score: Any, wrong: Any) -> Row:
    """Compare what is flagged with what is wrong."""
    seconds = time.perf_counter() - start
    lowest = np.zeros(len(wrong), dtype=bool)
    lowest[np.argsort(score, kind="stable")[: int(wrong.sum())]] = True
    return {
        "method": name,
        "seconds": seconds,
        "wrong": float(wrong.mean()),
        "flagged": float(mask.mean()),
        **detection(mask, wrong),
        "auroc": auroc(score, wrong),
        "known": detection(lowest, wrong)["f1"],
    }


def cross_validated(x: Any, given: Any) -> tuple[Any, float]:
    """Predict each sample by a logistic regression that did not see it; also return the seconds."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    scaled = Scale(x)(torch.from_numpy(x)).numpy()
    best: tuple[float, Any, float] = (-1.0, None, 0.0)
    for strength in STRENGTHS:
        start = time.perf_counter()
        model = LogisticRegression(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that 100 iterations do not reach the optimum
            found = cross_val_predict(model, scaled, given, method="predict_proba", cv=5)
        seconds = time.perf_counter() - start
        right = float((found.argmax(1) == given).mean())
        best = max(best, (right, found, seconds), key=lambda tried: tried[0])
    return best[1:]


def trained_mimic(x: Any, given: Any) -> tuple[Any, Any]:
    """Train on each fold, re-weighted toward the probe of the other folds, and select."""
    classes = int(given.max()) + 1
    data = Data(x, torch.from_numpy(given), classes, seed=0)
    scale, step = Scale(x), 0
    fold = deal(len(data.labels), _FOLDS, seed=data.seed, labels=data.labels)
    weights = np.ones(len(x), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        with ScoreLog(folder) as log:
            for k in range(_FOLDS):
                probe = fit(data, scale, np.flatnonzero(fold != k), weights)
                own = np.flatnonzero(fold == k)
                head = nn.Linear(x.shape[1], classes)
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
                reference = {"weight": probe.weight, "bias": probe.bias}
                mimic = GradMimic(head, reference, log=log)
                mimic.step = step
                rows = Rows(scale(torch.from_numpy(x[own])), data.labels[own])
                train(
                    head, rows, epochs=5, batch_size=32, lr=1e-4, weight_decay=1e-5, seed=0,
                    mimic=mimic, canaries=Canaries(1.0), ids=own.tolist(),
                )  # fmt: skip
                step = mimic.step
        selection, _ = decide(folder, "calibrated")
    return ~selection.mask(), selection.table["score"].to_numpy()


def large(n: int, d: int) -> tuple[Any, Any, Any]:
    """Make clouds of float16 features, their labels and labels of which a tenth are wrong."""
    chance = np.random.default_rng(0)
    true = chance.integers(0, 10, n)
    centers = 0.08 * chance.normal(size=(10, d)).astype(np.float32)
    x = np.empty((n, d), dtype=np.float16)
    for rows in np.array_split(np.arange(n), 50):
        x[rows] = chance.normal(size=(len(rows), d)) + centers[true[rows]]
    return x, true, symmetric(true, 0.1, 10, seed=0)


def show(rows: list[Row], console: Console) -> None:
    """Print a table."""
    columns = ("data", "noise", "method", "precision", "recall", "F1", "known", "AUROC", "seconds")
    scores = ("precision", "recall", "f1", "known", "auroc")
    table = Table(*columns, "wrong", "flagged", "estimate", title="wrong labels")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        estimate = ""
        if row["estimate"] is not None:
            estimate = f"{row['estimate']:.3f} ({row['low']:.3f} – {row['high']:.3f})"
        new_case = following is None or (row["data"], row["noise"]) != (
            following["data"],
            following["noise"],
        )
        table.add_row(
            row["data"], row["noise"], row["method"],
            *(f"{row[key]:.3f}" if row["wrong"] else "" for key in scores),
            f"{row['seconds']:.1f}", f"{row['wrong']:.3f}", f"{row['flagged']:.3f}",
            estimate,
            end_section=new_case,
        )  # fmt: skip
    console.print(table)


def main() -> None:
    """Print the table and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one set; saves nothing")
    arguments = parser.parse_args()
    import sklearn.linear_model  # noqa: F401  the limit reaches only libraries that are loaded
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    todo = list(cases())[-2:-1] if arguments.quick else list(cases())
    rows: list[Row] = []
    none = dict.fromkeys(("estimate", "low", "high"))
    with threadpool_limits(1):
        for data, noise, *case in track(todo, "real sets", console=Console(stderr=True)):
            rows += [{"data": data, "noise": noise} | none | row for row in measure(*case)]
        n = 2_000 if arguments.quick else 50_000
        x, true, given = large(n, 1280)
        start = time.perf_counter()
        found = inspect_labels(x, given)
        size = {"data": f"{n:,} × 1,280", "noise": "10%"} | none
        rows.append(size | ours("ours", start, found, given != true, np.ones(n, dtype=bool)))
        only = {"cleanlab": FILTERS["cleanlab"]}
        rows += [size | row for row in cleanlab(x, given, given != true, only)]
    show(rows, Console(width=150))
    if not arguments.quick:
        print(f"saved to {save('label_issues', rows, 'python benchmarks/label_issues.py')}")


if __name__ == "__main__":
    main()
