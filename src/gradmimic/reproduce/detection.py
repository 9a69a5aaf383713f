"""``reproduce detection``: which wrong labels does each rule and each scorer find?

    AUROC = P(x̄_wrong < x̄_right) + ½ P(=)         of the mean scores x̄, by the truth
    F1    = 2 |removed ∧ wrong| / (|removed| + |wrong|)     of what a rule removes
    gap   = max_j AUROC_j − AUROC_c,  c = argmax_j AUROC of the canaries of scorer j

The truth enters the tables only. Candidates for c, and for the best in hindsight, are all scorers
and their combination.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.curate.decide import Aggregate, Rule
from gradmimic.curate.select import select
from gradmimic.extras import import_extra
from gradmimic.reproduce.means import STACKED, Means, mean_scores
from gradmimic.run.metrics import detection
from gradmimic.separation import auroc

Bools = npt.NDArray[np.bool_]
RULES: tuple[Rule, ...] = ("one_over_b", "two_means", "mixture", "calibrated")
FOR_ALL: tuple[Rule, ...] = ("mixture", "calibrated")  # rules that any scorer's scores are given to
AGGREGATES: tuple[Aggregate, ...] = ("mean", "majority", "dawid_skene")
GOAL = 0.005  # how far below the best in hindsight the chosen one may be


def judged(log: Path, names: Sequence[str], wrong: Bools) -> dict[str, Any]:
    """Tell how well everything that reads a log finds the wrong labels.

    Args:
        log: its folder; ids are the numbers 0 … n − 1.
        names: of the scorers to judge, ``"mimic"`` among them.
        wrong: ``[n]``, which labels are wrong, and some are.

    Returns:
        By scorer and for their combination ``auroc``, ``average_precision``, ``canary_auroc`` and
        by rule ``f1``; by rule and aggregate the ``f1`` of mimic's votes; what canaries ``chose``.
    """
    means = mean_scores(log, names)
    options: dict[str, dict[str, Any]] = {name: {"scorer": name} for name in names}
    options[STACKED] = {"scorer": list(names), "aggregate": "stacked"}
    found = {
        name: _ranked(means, name, wrong)
        | {"f1": {rule: _f1(log, rule, wrong, **own) for rule in FOR_ALL}}
        for name, own in options.items()
    }
    votes = {
        rule: {how: _f1(log, rule, wrong, aggregate=how) for how in AGGREGATES} for rule in RULES
    }
    return {
        "noise": float(wrong.mean()),
        "scorers": found,
        "votes": votes,
        "chosen": means.chosen,
        "left_out": list(means.stack.left_out),
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


def _ranked(means: Means, name: str, wrong: Bools) -> dict[str, float]:
    metrics = import_extra("sklearn.metrics", "reproduce")
    scores = means.of(name)
    area = auroc(scores, wrong)
    assert area is not None  # noqa: S101  some are wrong
    return {
        "auroc": area,
        "average_precision": float(metrics.average_precision_score(wrong, -scores)),
        "canary_auroc": means.told[name],
    }


def _f1(log: Path, rule: Rule, wrong: Bools, **options: Any) -> float:
    selection = select(log, rule, **options)
    removed = ~selection.mask(np.arange(len(wrong)))
    return detection(removed, wrong)["f1"]
