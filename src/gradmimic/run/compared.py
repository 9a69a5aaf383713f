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
    """Pick what a person wants to read: for each scorer the first kind of canary, and the labels.

    Example:
        >>> area = {"value": 0.9, "low": 0.8, "high": 1.0}
        >>> for row in scorer_metrics({"loss": {"canaries": {"uniform/3": area}, "labels": 0.7}}):
        ...     print(row.name, row.value, row.meaning, sep=" | ")
        AUROC of loss | 0.9 | of uniform canaries, 95 % interval 0.800 to 1.000
        AUROC of loss | 0.7 | of wrong labels; 0.5 is chance, 1 is perfect
    """
    rows = []
    for name, own in found.items():
        for kind, area in list(own["canaries"].items())[:1]:
            interval = f"95 % interval {area['low']:.3f} to {area['high']:.3f}"
            told = f"of {kind.partition('/')[0]} canaries, {interval}"
            rows.append(Metric(f"AUROC of {name}", area["value"], told))
        if own["labels"] is not None:
            told = "of wrong labels; 0.5 is chance, 1 is perfect"
            rows.append(Metric(f"AUROC of {name}", own["labels"], told))
    return rows
