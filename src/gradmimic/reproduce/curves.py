"""``reproduce curves``: after how many steps is re-weighted training where plain training ends?

    s*(a) = min { s : a(s) ≤ a_plain(S) }  for losses, ≥ for accuracy        S: the last step
    saved = 1 − s* / S                                     nothing where it is never reached

by three readings of "the same loss" and one of accuracy, each measured at the same steps:

training loss   mean of ℓ over all training samples under the labels given, wrong ones included:
                what plain training minimises, and what re-weighting is meant not to
right labels    mean of ℓ over the training samples whose label is right
test loss       mean of ℓ over the clean test samples
test accuracy   on the same
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Any

from torch import nn
from torch.nn import functional as F

from gradmimic.reproduce import plots
from gradmimic.reproduce.cases import Case, Cases
from gradmimic.reproduce.cells import Cell, Values
from gradmimic.reproduce.report import Report, Rows
from gradmimic.reproduce.tables import Mean, pivot
from gradmimic.reproduce.training import steps
from gradmimic.run.train import logits

METHODS = ("plain", "mimic")
READINGS = ("training loss", "right labels", "test loss", "test accuracy")
PUBLISHED = 0.207  # of steps saved to the same training loss, CLIP on DataComp
_POINTS = 40  # of each curve


def cells(cases: Cases) -> list[Cell]:
    """Return a cell for each set, noise and seed."""
    return cases.cells("curves", points=_POINTS)


def compute(cases: Cases, cell: Cell) -> Values:
    """Train plainly and re-weighted, and measure both at the same steps."""
    case = cases.open(cell)
    total = steps(case.problem, case.recipe)
    at = sorted({ceil(total * k / cell["points"]) for k in range(1, cell["points"] + 1)})
    found: dict[str, Any] = {"steps": at}
    for method in METHODS:
        watch = _Watch(case, set(at))
        reference = case.reference if method == "mimic" else None
        watched = replace(case, problem=replace(case.problem, start=watch.start))
        watched.fit(method, reference=reference, on_step=watch)
        found[method] = watch.curves
    return found


def reached(curve: Sequence[float], target: float, at: Sequence[int], falling: bool) -> int | None:
    """Return the first measured step at which a curve is as good as a target; None if it never is.

    Args:
        curve: ``[k]``.
        target: to reach.
        at: ``[k]``, the steps.
        falling: whether less is better.

    Example:
        >>> reached([3.0, 2.0, 1.0], 2.0, [10, 20, 30], falling=True)
        20
    """
    better = -1.0 if falling else 1.0
    good = (step for step, x in zip(at, curve, strict=True) if better * (x - target) >= 0)
    return next(good, None)


def report(rows: Rows) -> Report:
    """Lay out the steps to where plain training ends, and the curves."""
    records, points, told = [], [], []
    for cell, values in rows:
        for reading in READINGS:
            plain, ours = (values[method][reading] for method in METHODS)
            step = reached(ours, plain[-1], values["steps"], reading != "test accuracy")
            saved = None if step is None else 1.0 - step / values["steps"][-1]
            records.append({**cell, "reading": reading, "value": saved})
    title = "steps saved until re-weighted training is where plain training ends, %"
    table = pivot(records, title, rows=["set", "noise"], column="reading", scale=100, digits=1)
    for name, noise in dict.fromkeys((cell["set"], cell["noise"]) for cell, _ in rows):
        own = [values for cell, values in rows if (cell["set"], cell["noise"]) == (name, noise)]
        told.append(_told(f"{name}, noise {noise}", records, name, noise))
        points += _points(f"{name}, noise {noise}", own)
    charts = {
        reading.replace(" ", "-"): plots.lines(
            [point for point in points if point["reading"] == reading],
            title=f"{reading.capitalize()} by step", x="step", y=reading, told_apart=METHODS,
        )
        for reading in READINGS
    }  # fmt: skip
    return Report([table], charts, told)


def _told(where: str, records: Sequence[dict[str, Any]], name: str, noise: str) -> str:
    """Say how often plain training's end is reached, by each reading."""
    parts = []
    for reading in READINGS:
        own = [
            record["value"]
            for record in records
            if (record["set"], record["noise"], record["reading"]) == (name, noise, reading)
        ]
        got = [value for value in own if value is not None]
        parts.append(f"{reading} in {len(got)} of {len(own)} trainings")
    return (
        f"{where}: re-weighted training comes to where plain training ends by {', '.join(parts)}."
    )


def _points(panel: str, own: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the means of the curves over seeds, and one standard deviation around them."""
    found = []
    for method in METHODS:
        for reading in READINGS:
            curves = [values[method][reading] for values in own]  # [seeds][points]
            for step, at_step in zip(own[0]["steps"], zip(*curves, strict=True), strict=True):
                mean = Mean.of(at_step)
                half = mean.deviation or 0.0
                found.append(
                    {
                        "x": step, "y": mean.value, "low": mean.value - half,
                        "high": mean.value + half, "name": method, "panel": panel,
                        "reading": reading,
                    }
                )  # fmt: skip
    return found


class _Watch:
    """Measures a model at some of its steps.

    Args:
        case: what it learns.
        at: the steps.
    """

    def __init__(self, case: Case, at: set[int]) -> None:
        self._case, self._at, self._step = case, at, 0
        self._right = case.labels == case.problem.train.labels  # [n]
        self._model: nn.Module | None = None
        self.curves: dict[str, list[float]] = {reading: [] for reading in READINGS}

    def start(self, seed: int) -> nn.Module:
        """Make the model that is then watched."""
        self._model = self._case.problem.start(seed)
        return self._model

    def __call__(self) -> None:
        """Count a step, and measure after it where that is wanted."""
        self._step += 1
        if self._step not in self._at or self._model is None:
            return
        problem = self._case.problem
        of = F.cross_entropy(
            logits(self._model, problem.train.inputs), self._case.labels, reduction="none"
        )
        said = logits(self._model, problem.test.inputs)
        for reading, value in (
            ("training loss", of.mean()),
            ("right labels", of[self._right].mean()),
            ("test loss", F.cross_entropy(said, problem.test.labels)),
            ("test accuracy", (said.argmax(1) == problem.test.labels).float().mean()),
        ):
            self.curves[reading].append(float(value))
