"""``reproduce efficiency``: how good is a model that is trained on the best part of the data alone?

    part_j(p)       the ⌈p n⌉ samples with the highest mean score x̄_j     all scorers from one log
    accuracy_j(p)   of plain training on part_j(p), for as many epochs as on all

*random* takes any ⌈p n⌉ samples. A smaller part means fewer steps, so random parts of clean data
cost accuracy; a part without the wrong labels gains more than that where there are many.
"""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradmimic.reproduce import plots
from gradmimic.reproduce.cases import LOGGED, Case, Cases
from gradmimic.reproduce.cells import Cell, Values
from gradmimic.reproduce.means import STACKED
from gradmimic.reproduce.report import Report, Rows
from gradmimic.reproduce.tables import pivot
from gradmimic.run.train import Rows as Samples
from gradmimic.run.train import train

SHARES = (0.8, 0.7, 0.6, 0.5)
ALL, RANDOM = "all", "random"
RANKED = ("mimic", *LOGGED, STACKED)
_TOLD_APART = ("mimic", RANDOM, STACKED, "rho", "loss", "agra")


def cells(cases: Cases) -> list[Cell]:
    """Return a cell for each set, noise, seed and scorer."""
    return [
        {**cell, "by": name, "shares": [1.0] if name == ALL else list(SHARES)}
        for cell in cases.cells("efficiency")
        for name in (ALL, RANDOM, *RANKED)
    ]


def compute(cases: Cases, cell: Cell) -> Values:
    """Train plainly on each part."""
    case, name = cases.open(cell), cell["by"]
    n = len(case.labels)
    if name in (ALL, RANDOM):
        order = np.random.default_rng(cell["seed"]).permutation(n)
    else:
        order = np.argsort(-cases.means(cell).of(name), kind="stable")  # the best first
    return {
        "accuracy": [_trained_on(case, best(order, share)) for share in cell["shares"]],
        "wrong": [float(case.wrong[best(order, share)].mean()) for share in cell["shares"]],
    }


def best(order: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.int64]:
    """Return the first ⌈p n⌉ of n rows, in the order of the data.

    Example:
        >>> best(np.array([3, 0, 2, 1]), 0.5)
        array([0, 3])
    """
    return np.sort(order[: ceil(share * len(order) - 1e-9)])


def report(rows: Rows) -> Report:
    """Lay out accuracies by the share that is kept, and what they gain on random parts."""
    records = [
        {**cell, "kept": f"{share:.0%}", "value": accuracy}
        for cell, values in rows
        for share, accuracy in zip(cell["shares"], values["accuracy"], strict=True)
    ]
    tables, told = [], []
    for name, noise in dict.fromkeys((cell["set"], cell["noise"]) for cell, _ in rows):
        own = [r for r in records if (r["set"], r["noise"]) == (name, noise)]
        tables.append(
            pivot(
                own, f"accuracy of the part that is kept, %: {name}, noise {noise}",
                rows=["by"], column="kept", scale=100, digits=2,
            )
        )  # fmt: skip
        told += _told(f"{name}, noise {noise}", own)
    points = [
        {
            "x": float(point["column"].rstrip("%")), "y": point["value"],
            "low": point["low"], "high": point["high"], "name": point["by"],
            "panel": table.title.partition(": ")[2],
        }
        for table in tables
        for point in table.points()
        if point["by"] != ALL
    ]  # fmt: skip
    chart = plots.lines(
        points, title="Accuracy of models trained on the best part alone", x="kept, %",
        y="test accuracy, %", told_apart=_TOLD_APART,
    )  # fmt: skip
    return Report(tables, {"accuracy": chart}, told)


def _told(where: str, records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say which scorer's part is best at each share, and what mimic's gains on a random one."""
    told = []
    means = pivot(records, where, rows=["kept"], column="by")
    for (kept,), row in means.rows.items():
        of = {name: mean.value for name, mean in zip(means.columns, row, strict=True) if mean}
        if "mimic" not in of:
            continue
        winner = max(of, key=lambda name: of[name])
        told.append(
            f"{where}, {kept} kept: mimic {100 * (of['mimic'] - of[RANDOM]):+.2f} points on "
            f"random; the best is {winner}, {100 * (of[winner] - of['mimic']):+.2f} on mimic."
        )
    return told


def _trained_on(case: Case, rows: npt.NDArray[np.int64]) -> float:
    """Return the test accuracy of plain training on some rows."""
    problem, recipe = case.problem, case.recipe
    at = torch.from_numpy(rows).to(case.labels.device)
    part = Samples(problem.train.inputs[at], case.labels[at])
    curve = train(problem.start(recipe.seed), part, **recipe._asdict(), test=problem.test)
    return curve.accuracy[-1]
