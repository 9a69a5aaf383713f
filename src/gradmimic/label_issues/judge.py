"""Cross-fitting: every label is judged by a probe that never saw it, by way of log and canaries."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from gradmimic.canaries import Canaries
from gradmimic.cross_fit import deal
from gradmimic.curate import Selection
from gradmimic.curate.canaries import Calibration
from gradmimic.curate.decide import decide
from gradmimic.data.scale import Scale
from gradmimic.label_issues.inputs import BLOCK, BoolArray, IntArray
from gradmimic.label_issues.probe import Data, Probe, fit
from gradmimic.log import ScoreLog

_SCORER = "mimic_path"
_FOLDS = 5
_LOGITS = 2**22  # in memory at a time
_CANARIES = 50_000  # samples that serve as canaries, at most; below, all of them do


class Judgement(NamedTuple):
    """What stage 2 says of the judged samples, and the reference's best class but the given."""

    selection: Selection
    calibration: Calibration
    suggested: IntArray  # [n]


def cross_fitted(data: Data, known: BoolArray, judged: IntArray) -> Judgement:
    """Judge twice: by probes of the labels as they are, then by probes of what seems right."""
    scale = Scale(data.features)
    fold = deal(len(data.labels), _FOLDS, seed=data.seed, labels=data.labels)[judged]
    trusting = bool(known.any())

    def probes(weights: npt.NDArray[np.float32], folds: int) -> Iterator[tuple[Probe, IntArray]]:
        for k in range(folds):
            own = judged[fold % folds == k]
            learning = weights > 0
            learning[own] = False
            yield fit(data, scale, np.flatnonzero(learning), weights), own

    weights = known.astype(np.float32) if trusting else np.ones(len(known), dtype=np.float32)
    first = judge(data, probes(weights, 1 if trusting else _FOLDS))
    if first.calibration.auroc_by_visit[0].low <= 0.5 and not trusting:
        return first  # nothing was learned that could help
    weights[judged] = first.selection.table["p_clean"].to_numpy()
    return judge(data, probes(weights, _FOLDS))


def judge(data: Data, probes: Iterable[tuple[Probe, IntArray]]) -> Judgement:
    """Log the scores of all samples and of their canaries, and decide."""
    n, chance = len(data.labels), math.log(data.classes)
    canaries = Canaries(min(1.0, _CANARIES / n), seed=data.seed)
    block = max(1, min(BLOCK, _LOGITS // data.classes))
    suggested = np.zeros(n, dtype=np.int64)
    with tempfile.TemporaryDirectory(prefix="gradmimic-") as folder:
        with ScoreLog(folder, seed=data.seed) as log:
            for step, (probe, own) in enumerate(probes):
                for rows in np.array_split(own, math.ceil(len(own) / block) or 1):
                    labels = data.labels[rows]
                    logits = probe(data.inputs(rows))  # [b, K]
                    losses = F.cross_entropy(logits, labels, reduction="none")
                    drawn = canaries.labels(logits, labels, rows)
                    for ids, own_losses, kinds in (
                        (rows, losses, None),
                        (drawn.ids, drawn.losses, drawn.kinds),
                    ):
                        scores, none = chance - own_losses, torch.zeros(len(ids))
                        log.append(
                            ids, scores, none, own_losses,
                            epoch=0, step=step, scorer=_SCORER, canary=kinds,
                        )  # fmt: skip
                    best = logits.topk(2).indices  # [b, 2]
                    suggested[rows] = torch.where(best[:, 0] == labels, best[:, 1], best[:, 0])
        selection, calibration = decide(folder, "calibrated", scorer=_SCORER)
    assert calibration is not None  # noqa: S101
    return Judgement(selection, calibration, suggested)
