"""``reproduce quality``: how near do estimates of a data set's quality come to the truth?

    q̂      = 1 − ρ̂                      by the canaries, with an interval (curate/quality.py)
    q̂_vote = |kept by the 1/b majority| / n      as published
    r      = Σ (a − ā)(b − b̄) / √(Σ (a − ā)² Σ (b − b̄)²)     Pearson's, of estimates a and noise b

over all levels of noise and seeds of a set. The truth enters the tables only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.curate.quality import estimate_quality
from gradmimic.curate.select import select
from gradmimic.reproduce import plots
from gradmimic.reproduce.cases import Cases
from gradmimic.reproduce.cells import Cell, Values
from gradmimic.reproduce.report import Report, Rows
from gradmimic.reproduce.tables import pivot

PUBLISHED = -0.903  # Pearson of the vote's estimate with the noise
_SHOWN = {"estimate": "by canaries", "vote": "by the 1/b vote"}


def cells(cases: Cases) -> list[Cell]:
    """Return a cell for each set, noise and seed."""
    return cases.cells("quality")


def compute(cases: Cases, cell: Cell) -> Values:
    """Train re-weighted on a cell's labels, and estimate their quality from the log."""
    case = cases.open(cell)
    with case.logged() as (log, _):
        found = estimate_quality(log).quality
        vote = select(log, "one_over_b", aggregate="majority")
    return {
        "true": 1.0 - float(case.wrong.mean()),
        "estimate": found.value,
        "low": found.low,
        "high": found.high,
        "vote": len(vote.kept) / len(vote),
    }


def pearson(first: npt.ArrayLike, second: npt.ArrayLike) -> float | None:
    """Return Pearson's correlation, in [−1, 1]; None where one of them is constant.

    Args:
        first: ``[n]``.
        second: ``[n]``.

    Example:
        >>> round(pearson([1, 2, 3], [3, 2, 1]), 9), pearson([1, 1], [1, 2])
        (-1.0, None)
    """
    a, b = (np.asarray(x, dtype=np.float64) for x in (first, second))
    a, b = a - a.mean(), b - b.mean()
    length = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / length if length else None


def report(rows: Rows) -> Report:
    """Lay out estimates beside the truth."""
    names = {
        "true": "true",
        "estimate": "estimate",
        "low": "low",
        "high": "high",
        "vote": "1/b vote",
    }
    records = [
        {**cell, "what": shown, "value": values[name]}
        for cell, values in rows
        for name, shown in names.items()
    ]
    table = pivot(
        records, "quality, the share of right labels", rows=["set", "noise"], column="what"
    )
    told = []
    for name in dict.fromkeys(cell["set"] for cell, _ in rows):
        own = [values for cell, values in rows if cell["set"] == name]
        told += _told(name, own)
    points = [
        {
            "x": values["true"], "y": values[which],
            "low": values["low"] if which == "estimate" else values[which],
            "high": values["high"] if which == "estimate" else values[which],
            "name": shown, "panel": cell["set"],
        }
        for which, shown in _SHOWN.items()
        for cell, values in rows
    ]  # fmt: skip
    chart = plots.against(points, title="Quality: estimated against true", x="true", y="estimated")
    return Report([table], {"estimates": chart}, told)


def _told(name: str, own: list[Any]) -> list[str]:
    true, low, high = (np.array([values[key] for values in own]) for key in ("true", "low", "high"))
    told = []
    for which, shown in _SHOWN.items():
        estimate = np.array([values[which] for values in own])
        r = pearson(estimate, 1.0 - true)
        text = "is not defined" if r is None else f"{r:.4f}"
        error = np.abs(estimate - true).mean()
        told.append(
            f"{name}, {shown}: Pearson of the estimate with the noise {text} "
            f"(published for the vote: {PUBLISHED}), mean absolute error {error:.4f}."
        )
    inside = int(((low <= true) & (true <= high)).sum())
    told.append(f"{name}: the interval holds the truth in {inside} of {len(own)} trainings.")
    return told
