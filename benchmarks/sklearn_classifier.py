"""Classifiers on features with wrong labels: accuracy, F1 of what is flagged, time.

Rivals: logistic regression on the labels as they are, and cleanlab's CleanLearning around the same
logistic regression, which flags labels and fits again without them. Their regularisation is the one
of ``STRENGTHS`` that predicts the given labels best in cross-validation, and choosing it costs them
nothing. All get features that are centred and divided by one number, one thread, and never a right
label. Accuracy is on test data with right labels.

Run: python benchmarks/sklearn_classifier.py [--quick]     needs cleanlab and scikit-learn
"""

import argparse
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import save
from rich.console import Console
from rich.table import Table

from gradmimic.data.noise import symmetric
from gradmimic.data.scale import Scale
from gradmimic.integrations.sklearn import MimicClassifier
from gradmimic.run.metrics import detection

DATA = Path(os.environ.get("GRADMIMIC_DATA", Path(__file__).parents[2] / "shared" / "data"))
Row = dict[str, Any]
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
METHODS = ("logistic regression", "CleanLearning", "linear", "mlp, lr 1e-3")


def cases(seed: int, quick: bool) -> Iterator[tuple[str, Any, Any, Any, Any, Any]]:
    """Yield the name, features, right and given labels, test features and labels."""
    from sklearn.datasets import load_digits

    def scaled(inputs: Any) -> Any:
        return scale(torch.from_numpy(inputs)).numpy()

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = order[:360], order[360:]
    scale = Scale(x[train])
    for rate in (0.4,) if quick else (0.0, 0.2, 0.4):
        given = symmetric(y[train], rate, 10, seed=seed)
        yield f"digits, {rate:.0%}", scaled(x[train]), y[train], given, *(
            scaled(x[test]), y[test],
        )  # fmt: skip
    if quick or not (folder := DATA / "cifar10n").is_dir():
        return
    x, x_test = (np.load(folder / f"features_{part}.npy") for part in ("train", "test"))
    y_test = np.load(folder / "labels_test.npy").astype(np.int64)
    y, human = (np.load(folder / f"{kind}_labels_train.npy").astype(np.int64)
                for kind in ("clean", "human"))  # fmt: skip
    rows = np.random.default_rng(seed).permutation(len(x))[:5000]
    scale = Scale(x[rows])
    for name, labels in (("40%", symmetric(y, 0.4, 10, seed=seed)), ("human", human)):
        yield f"CIFAR-10, {name}", scaled(x[rows]), y[rows], labels[rows], *(
            scaled(x_test), y_test,
        )  # fmt: skip


def strength(x: Any, given: Any) -> float:
    """Return the regularisation that suits the given labels best."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    found = {c: cross_val_score(LogisticRegression(C=c), x, given, cv=3).mean() for c in STRENGTHS}
    return max(found, key=lambda c: found[c])


def fitted(method: str, x: Any, given: Any, c: float, seed: int) -> tuple[Any, Any]:
    """Return a classifier, and a mask of what it flags; None where it flags nothing."""
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    if method == "logistic regression":
        return LogisticRegression(C=c).fit(x, given), None
    if method == "CleanLearning":
        model = CleanLearning(
            LogisticRegression(), seed=seed, find_label_issues_kwargs={"n_jobs": 1}
        )
        model.fit(x, given)
        return model, model.get_label_issues()["is_label_issue"].to_numpy()
    options: dict[str, Any] = {} if method == "linear" else {"estimator": "mlp", "lr": 1e-3}
    ours = MimicClassifier(random_state=seed, **options).fit(x, given)
    return ours, ours.label_issues_


def measure(seed: int, quick: bool) -> Iterator[Row]:
    for name, x, true, given, x_test, y_test in cases(seed, quick):
        c = strength(x, given)
        for method in METHODS:
            start, cpu = time.perf_counter(), time.process_time()
            model, flagged = fitted(method, x, given, c, seed)
            row = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
            right = float(np.mean(model.predict(x_test) == y_test))
            f1 = None if flagged is None or name.endswith(", 0%") else (
                detection(flagged, given != true)["f1"])  # fmt: skip
            share = None if flagged is None else float(flagged.mean())
            yield {"data": name, "method": method, "seed": seed, "accuracy": right, "f1": f1,
                   "flagged": share} | row  # fmt: skip


def main() -> None:
    """Print means over the seeds, and save all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="digits at 40 % alone; saves nothing")
    quick = parser.parse_args().quick
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # that 100 iterations do not reach the optimum
    console = Console(width=110)
    with threadpool_limits(1):
        fitted("linear", np.tile(np.eye(2), (20, 1)), np.tile([0, 1], 20), 1.0, 0)  # imports
        rows = [row for seed in range(3) for row in measure(seed, quick)]
    table = Table("data", "method", "accuracy", "F1", "flagged", "seconds of CPU")
    for data, method in dict.fromkeys((row["data"], row["method"]) for row in rows):
        mine = [row for row in rows if (row["data"], row["method"]) == (data, method)]
        cells = [
            "" if mine[0][key] is None else f"{np.mean([row[key] for row in mine]):.3f}"
            for key in ("accuracy", "f1", "flagged", "cpu")
        ]
        table.add_row(data, method, *cells, end_section=method == METHODS[-1])
    console.print(table)
    if not quick:
        command = "python benchmarks/sklearn_classifier.py"
        console.print(f"saved to {save('sklearn_classifier', rows, command)}")


if __name__ == "__main__":
    main()
