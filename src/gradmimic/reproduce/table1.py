"""``reproduce table1``: does re-weighting by mimic scores beat plain training, and its rivals?

    accuracy on the test set after the last epoch,
    by set × tuning × noise × method, mean ± standard deviation over seeds

Noise is symmetric, exactly ⌊ρN⌋ labels, drawn anew for each seed. Settings are the paper's: AdamW,
learning rate 1e-4, weight decay 1e-5, batches of 32, 5 epochs, 10 on DTD and Flowers102.

Source: arXiv 2501.06708, table 1.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from gradmimic.errors import ConfigError
from gradmimic.reproduce.cases import Case, Cases, Settings
from gradmimic.reproduce.cells import Cell, Values, key_of, run_cells
from gradmimic.reproduce.plots import dots
from gradmimic.reproduce.problems import Tuning
from gradmimic.reproduce.report import Report, Rows
from gradmimic.reproduce.tables import pivot
from gradmimic.reproduce.training import (
    METHODS,
    OURS,
    PLAIN,
    PUBLISHED,
    needs_reference,
    reads_temperature,
    steps,
)
from gradmimic.run.prepare import Progress
from gradmimic.run.train import accuracy

Means = dict[tuple[str, str, str], dict[str, float]]  # by set, tuning, noise; method; in percent
TUNINGS: tuple[Tuning, ...] = ("probe", "full")
_PLACE = ("set", "tuning", "noise", "seed")
_SHOWN = {"backbone": "", "lr": "lr ", "temperature": "τ ", "epochs": "epochs "}
REFERENCE = "reference"  # a row of its own: what mimic and rho are told by


class Table1:
    """All cells of the table, and what each comes to.

    Args:
        settings: what is asked for; its ``tuning`` is passed over.
        tunings: ``"probe"``, ``"full"`` or both.
        methods: of :data:`METHODS`.
        out: the folder for cells, features and references.
        progress: told of encodings, and of the steps of all trainings.

    Raises:
        ConfigError: a setting cannot be.
        DataError: a set cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        tunings: Sequence[str],
        methods: Sequence[str],
        out: Path,
        progress: Progress,
    ) -> None:
        for what, asked, known in (("method", methods, METHODS), ("tuning", tunings, TUNINGS)):
            if not asked:
                raise ConfigError(f"Expected a {what}, or several; got none.")
            for name in asked:
                if name not in known:
                    raise ConfigError(f"There is no {what} {name!r}; expected {', '.join(known)}.")
        self._out, self._progress = out, progress
        self._cases = {
            tuning: Cases(replace(settings, tuning=tuning), out / "features", progress)
            for tuning in TUNINGS
            if tuning in tunings
        }
        self._counted: dict[tuple[str, str], int] = {}
        self.cells = [
            _without_idle(cell, method)
            for cases in self._cases.values()
            for cell, method in product(cases.cells("table1"), dict.fromkeys(methods))
        ]

    def rows(self) -> Iterator[tuple[Cell, Values]]:
        """Yield every cell with its values; those that are kept already are read."""
        trained: set[str] = set()
        on_step = self._progress("training", sum(self._steps(cell) for cell in self.cells))

        def compute(cell: Cell) -> Values:
            trained.add(key_of(cell))
            return self._compute(cell, on_step)

        for cell, values in run_cells(self.cells, compute, self._out):
            if key_of(cell) not in trained:
                for _ in range(self._steps(cell)):
                    on_step()
            yield cell, values

    def _compute(self, cell: Cell, on_step: Callable[[], None]) -> Values:
        case, method = self._case(cell), cell["method"]
        said = accuracy(case.reference, case.problem.test) if needs_reference(method) else None
        curve = case.fit(method, on_step=on_step).curve
        return {"reference_accuracy": said, **curve.by_epoch()}

    def _case(self, cell: Cell) -> Case:
        return self._cases[cell["tuning"]].open({"temperature": 1.0, **cell})

    def _steps(self, cell: Cell) -> int:
        place = cell["set"], cell["tuning"]
        if place not in self._counted:
            case = self._case(cell)
            self._counted[place] = steps(case.problem, case.recipe)
        return self._counted[place]


def report(rows: Rows) -> Report:
    """Lay out all cells, and say where mimic is ahead and where it is not.

    Args:
        rows: every cell with its values.
    """
    records: list[dict[str, Any]] = []
    for place in dict.fromkeys((cell["tuning"], cell["set"]) for cell, _ in rows):
        here = [row for row in rows if (row[0]["tuning"], row[0]["set"]) == place]
        records += [{**cell, "accuracy": values["accuracy"][-1]} for cell, values in here]
        records += _references(here)
    table = pivot(
        records,
        f"Accuracy in %, {_setting(rows)}; by the share of wrong labels",
        rows=("set", "tuning", "method"),
        column="noise",
        value="accuracy",
        scale=100,
        digits=2,
    )
    means: Means = {}
    for (name, tuning, method), noise, mean in table.means():
        means.setdefault((name, tuning, noise), {})[method] = 100 * mean.value
    rivals = [m for m in PUBLISHED if m not in (PLAIN, "mimic")]
    ahead = [
        _ahead(means, ours, others, called)
        for ours in ("mimic", *OURS)
        for others, called in (([PLAIN], "plain"), (rivals, "the best rival"))
    ]
    points = [
        {
            **{key: point[key] for key in ("low", "high")},
            "x": point["value"],
            "name": point["method"],
            "group": point["column"],
            "panel": f"{point['set']}, {point['tuning']}",
        }
        for point in table.points()
    ]
    chart = dots(points, title="Accuracy under wrong labels", x="test accuracy, %", group="wrong")
    return Report([table], {"accuracy": chart}, [text for text in ahead if text])


def _references(rows: Rows) -> list[dict[str, Any]]:
    """Return a record of each reference for each place where a method is told by it."""
    told = {
        tuple(cell[key] for key in _PLACE): values["reference_accuracy"]
        for cell, values in rows
        if values["reference_accuracy"] is not None
    }
    return [
        {**dict(zip(_PLACE, place, strict=True)), "method": REFERENCE, "accuracy": accuracy}
        for place, accuracy in told.items()
    ]


def _ahead(means: Means, ours: str, others: Sequence[str], called: str) -> str | None:
    """Say in how many places a method is not behind the best of others, and where it is."""
    leads = {
        place: own[ours] - max(own[other] for other in others if other in own)
        for place, own in means.items()
        if ours in own and {*others} & {*own}
    }
    if not leads:
        return None
    ahead = sum(lead >= 0 for lead in leads.values())
    behind = [f"{', '.join(place)}: {lead:+.2f}" for place, lead in leads.items() if lead < 0]
    text = (
        f"{ours} is not behind {called} in {ahead} of {len(leads)} cells; its lead is "
        f"{fmean(leads.values()):+.2f} points on average"
    )
    return text + (f", and it is behind in {'; '.join(behind)}." if behind else ".")


def _setting(rows: Rows) -> str:
    """Name what all cells have in common."""
    common = []
    for key, shown in _SHOWN.items():
        values = dict.fromkeys(str(cell[key]) for cell, _ in rows if key in cell)
        if values:
            common.append(f"{shown}{' or '.join(values)}")
    return ", ".join(common)


def _without_idle(cell: Cell, method: str) -> Cell:
    """Return a method's cell, without a setting that it does not read."""
    idle = () if reads_temperature(method) else ("temperature",)
    return {**{key: own for key, own in cell.items() if key not in idle}, "method": method}
