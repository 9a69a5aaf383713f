"""``reproduce detection``: which wrong labels does each rule and each scorer find?

    AUROC = P(x̄_wrong < x̄_right) + ½ P(=)         of the mean scores x̄, by the truth
    F1    = 2 |removed ∧ wrong| / (|removed| + |wrong|)     of what a rule removes
    gap   = max_j AUROC_j − AUROC_c       c: what canaries choose, see reproduce/choice.py

The truth enters the tables only. Candidates for c, and for the best in hindsight, are all scorers
and their combination. All of them are logged in one pass, beside training re-weighted by mimic.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from gradmimic.curate.decide import Aggregate, Rule, decide
from gradmimic.curate.select import select
from gradmimic.curate.selection import Selection
from gradmimic.curate.votes import RULES as RULE_OF
from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra
from gradmimic.log_reader import LogReader
from gradmimic.reproduce import plots
from gradmimic.reproduce.cases import LOGGED, NAMES, Cases
from gradmimic.reproduce.cells import Cell, Values
from gradmimic.reproduce.choice import canary_areas, chosen, first_areas
from gradmimic.reproduce.means import STACKED, mean_scores
from gradmimic.reproduce.report import Report, Rows
from gradmimic.reproduce.tables import pivot
from gradmimic.run.metrics import detection
from gradmimic.separation import auroc

Bools = npt.NDArray[np.bool_]
RULES: tuple[Rule, ...] = ("one_over_b", "two_means", "mixture", "calibrated")
AGGREGATES: tuple[Aggregate, ...] = ("mean", "majority", "dawid_skene")
# Where many samples are bad, all scorers tell canaries from samples about alike: it takes many.
CANARY_RATE = 0.2
GOAL = 0.005  # how far below the best in hindsight the chosen one may be
_FIGURES = {"auroc": "AUROC", "average_precision": "average precision"}


def cells(cases: Cases) -> list[Cell]:
    """Return a cell for each set, noise and seed."""
    options = {"scorers": list(NAMES), "canary_rate": CANARY_RATE, "ties": "first visit"}
    return cases.cells("detection", **options)


def compute(cases: Cases, cell: Cell) -> Values:
    """Log all scorers beside re-weighted training, and judge the log.

    Raises:
        ConfigError: no label is wrong, so that nothing can be found.
    """
    case = cases.open(cell)
    if not case.wrong.any():
        raise ConfigError(
            f"noise {cell['noise']} leaves all labels of {cell['set']} as they are, so there is "
            "nothing to find. Expected a rate above 0; see reproduce quality for clean data."
        )
    with case.logged(LOGGED, cell["canary_rate"]) as (log, _):
        return judged(log, NAMES, case.wrong)


def judged(log: Path, names: Sequence[str], wrong: Bools) -> dict[str, Any]:
    """Tell how well everything that reads a log finds the wrong labels.

    Args:
        log: its folder; ids are the numbers 0 … n − 1.
        names: of the scorers to judge, ``"mimic"`` among them.
        wrong: ``[n]``, which labels are wrong, and some are.

    Returns:
        By scorer and for their combination ``auroc``, ``average_precision``, ``canary_auroc``,
        ``first_canary_auroc`` of the first visit alone, and by rule ``f1``; by rule and aggregate
        the ``f1`` of mimic's votes; what canaries ``chose``.
    """
    means = mean_scores(log, names)
    left_out = list(means.stack.left_out)
    options: dict[str, dict[str, Any]] = {name: {"scorer": name} for name in names}
    options[STACKED] = {"scorer": list(names), "aggregate": "stacked"}
    found, calibrations = {}, {}
    for name, own in options.items():
        calibrated, calibration = decide(log, "calibrated", **own)
        assert calibration is not None  # noqa: S101  what that rule goes by
        calibrations[name] = calibration
        f1 = {"calibrated": _f1(calibrated, wrong)}
        f1["mixture"] = detection(_removed_by_mixture(means.of(name)), wrong)["f1"]
        found[name] = _ranked(means.of(name), wrong) | {"f1": f1}
    areas, share = canary_areas(calibrations, [*left_out, STACKED])  # which has no losses
    for name, area in areas.items():
        found[name]["canary_auroc"] = area.value
    visit = LogReader(log).scan(filter=pc.field("epoch") == 0)
    first = first_areas(mean_scores(visit, names), means.stack, share)
    for name, area in first.items():
        found[name]["first_canary_auroc"] = area.value
    done = {(rule, "mean"): f1 for rule, f1 in found["mimic"]["f1"].items()}
    votes: dict[str, dict[str, float]] = {
        rule: {
            how: done.get((rule, how)) or _f1(select(log, rule, aggregate=how), wrong)
            for how in AGGREGATES
        }
        for rule in RULES
    }
    return {
        "noise": float(wrong.mean()),
        "scorers": found,
        "votes": votes,
        "chosen": chosen(areas, first, left_out),
        "confusable": share,
        "left_out": left_out,
    }


def gaps(values: Mapping[str, Any]) -> dict[str, float]:
    """Tell how far below the best in hindsight lie what canaries chose and the combination.

    Args:
        values: what :func:`judged` returned.

    Returns:
        ``chosen`` and ``stacked``, both 0 or more, in AUROC; lower is better.

    Example:
        >>> own = {"mimic": {"auroc": 0.9}, "loss": {"auroc": 0.8}, "stacked": {"auroc": 0.875}}
        >>> gaps({"scorers": own, "chosen": "mimic"})
        {'chosen': 0.0, 'stacked': 0.025}
    """
    areas = {name: own["auroc"] for name, own in values["scorers"].items()}
    best = max(areas.values())
    gap = {"chosen": areas[values["chosen"]], "stacked": areas[STACKED]}
    return {name: round(best - area, 12) for name, area in gap.items()}


def report(rows: Rows) -> Report:
    """Lay out what each scorer and each rule finds, and what canaries choose."""
    tables, points, told, within = [], [], [], 0
    for name in dict.fromkeys(cell["set"] for cell, _ in rows):
        own = [(cell, values) for cell, values in rows if cell["set"] == name]
        for figure, shown in _FIGURES.items():
            tables.append(_by_scorer(f"{shown}: {name}", own, lambda v, f=figure: v[f]))
        points += [
            {
                "x": p["value"], "low": p["low"], "high": p["high"], "name": p["scorer"],
                "group": p["column"], "panel": name,
            }
            for p in tables[-len(_FIGURES)].points()
        ]  # fmt: skip
        for rule in ("mixture", "calibrated"):
            title = f"F1 of the rule {rule}: {name}"
            tables.append(_by_scorer(title, own, lambda v, r=rule: v["f1"][r]))
        votes = [
            {**cell, "rule": rule, "aggregate": how, "value": f1}
            for cell, values in own
            for rule, by in values["votes"].items()
            for how, f1 in by.items()
        ]
        title = f"F1 of mimic's scores by rule and aggregate: {name}"
        tables.append(pivot(votes, title, rows=["rule", "aggregate"], column="noise"))
    choices = []
    for cell, values in rows:
        gap = gaps(values)
        within += gap["chosen"] <= GOAL
        best = max(own["auroc"] for own in values["scorers"].values())
        figures = {"best in hindsight": best, "chosen by canaries": best - gap["chosen"]}
        figures |= {"gap": gap["chosen"], "gap of stacked": gap["stacked"]}
        figures["confusable"] = values["confusable"]
        choices += [{**cell, "what": what, "value": value} for what, value in figures.items()]
    title = "AUROC of the scorer that canaries choose"
    tables.append(pivot(choices, title, rows=["set", "noise"], column="what"))
    told.append(
        f"The scorer chosen by canaries is within {GOAL} AUROC of the best in hindsight in "
        f"{within} of {len(rows)} trainings; the largest gap is "
        f"{max(gaps(values)['chosen'] for _, values in rows):.4f}."
    )
    told += _chosen(rows)
    chart = plots.dots(
        points, title="AUROC of the mean scores, by the truth", x="AUROC", group="noise"
    )
    return Report(tables, {"auroc": chart}, told)


def _by_scorer(title: str, rows: Rows, figure: Any) -> Any:
    records = [
        {**cell, "scorer": scorer, "value": figure(own)}
        for cell, values in rows
        for scorer, own in values["scorers"].items()
    ]
    return pivot(records, title, rows=["scorer"], column="noise")


def _chosen(rows: Rows) -> list[str]:
    """Say of each set and noise what canaries chose, and what would have been best."""
    told = []
    for name, noise in dict.fromkeys((cell["set"], cell["noise"]) for cell, _ in rows):
        own = [v for cell, v in rows if (cell["set"], cell["noise"]) == (name, noise)]
        picked = _counted(values["chosen"] for values in own)
        best = _counted(_best(values) for values in own)
        told.append(f"{name}, noise {noise}: canaries chose {picked}; the best was {best}.")
    return told


def _best(values: Mapping[str, Any]) -> str:
    """Return the scorer of the highest AUROC by the truth."""
    areas: dict[str, float] = {name: own["auroc"] for name, own in values["scorers"].items()}
    return max(areas, key=lambda name: areas[name])


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in Counter(names).most_common())


def _ranked(scores: npt.NDArray[np.float64], wrong: Bools) -> dict[str, Any]:
    metrics = import_extra("sklearn.metrics", "reproduce")
    area = auroc(scores, wrong)
    precision = float(metrics.average_precision_score(wrong, -scores))
    return {"auroc": area, "average_precision": precision}


def _removed_by_mixture(scores: npt.NDArray[np.float64]) -> Bools:
    """Return ``[n]``, what the rule removes of mean scores: as select does, without its bins."""
    values, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    removed: Bools = ~RULE_OF["mixture"](values, counts).keep[place]
    return removed


def _f1(selection: Selection, wrong: Bools) -> float:
    return detection(~selection.mask(np.arange(len(wrong))), wrong)["f1"]
