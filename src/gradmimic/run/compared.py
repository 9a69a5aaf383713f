"""How well each logged scorer finds what is wrong, by canaries and by labels known to be right.

AUROC of the mean over a sample's visits, with P(wrong scores lower) = 1 at best and 0.5 by chance
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from gradmimic.curate.decide import decide
from gradmimic.log_reader import LogReader
from gradmimic.report import Metric
from gradmimic.run.inputs import Inputs
from gradmimic.separation import auroc


def compare_scorers(
    log: LogReader, scorers: Sequence[str], inputs: Inputs
) -> dict[str, dict[str, Any]]:
    """Take the AUROC of each scorer.

    Args:
        log: of the run.
        scorers: their names.
        inputs: the tables; true labels, where known, are compared with.

    Returns:
        By scorer ``canaries``, by their kind with value, low and high of a 95 % interval, where
        there are any; and ``labels``, the AUROC of labels known to be wrong, None where none are.
    """
    ids, wrong = inputs.train.ids, inputs.wrong
    found = {}
    for name in scorers:
        selection, calibration = decide(log, None, scorer=name)
        by_labels = None
        if wrong is not None:
            judged = np.isin(ids, selection.table["sample_id"].to_numpy())  # [n]
            order = np.argsort(ids[judged])  # the selection is sorted by id
            by_labels = auroc(selection.table["score"].to_numpy(), wrong[judged][order])
        areas = {} if calibration is None else calibration.auroc
        found[name] = {
            "canaries": {kind: asdict(area) for kind, area in areas.items()},
            "labels": by_labels,
        }
    return found


def scorer_metrics(found: Mapping[str, Mapping[str, Any]]) -> list[Metric]:
    """Make a row of each scorer: the AUROC of wrong labels where they are known, else of canaries.

    Example:
        >>> area = {"value": 0.9, "low": 0.8, "high": 1.0}
        >>> for labels in (0.7, None):
        ...     own = {"loss": {"canaries": {"uniform/3": area}, "labels": labels}}
        ...     for row in scorer_metrics(own):
        ...         print(row.name, row.value, row.meaning, sep=" | ")
        AUROC of loss | 0.7 | of wrong labels; uniform canaries 0.900 (0.800 to 1.000)
        AUROC of loss | 0.9 | uniform canaries 0.900 (0.800 to 1.000)
    """
    rows = []
    for name, own in found.items():
        told = [] if own["labels"] is None else ["of wrong labels"]
        areas = list(own["canaries"].items())[:1]
        told += [f"{kind.partition('/')[0]} canaries {_interval(area)}" for kind, area in areas]
        value = own["labels"] if own["labels"] is not None else _first(areas)
        rows.append(Metric(f"AUROC of {name}", value, "; ".join(told)))
    return rows


def _interval(area: Mapping[str, float]) -> str:
    return f"{area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f})"


def _first(areas: Sequence[tuple[str, Mapping[str, float]]]) -> float | None:
    return areas[0][1]["value"] if areas else None
