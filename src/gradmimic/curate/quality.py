"""How good a data set is: the share of its samples that are worth learning from.

q̂ = 1 − ρ̂                   ρ̂: the noise rate that the canaries tell (canaries.py)
q̂_c = mean of p_clean_i over the samples i of class c
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradmimic.curate.by_id import ById, aligned
from gradmimic.curate.canaries import Estimate, wilson
from gradmimic.curate.decide import Log, decide
from gradmimic.curate.export import export
from gradmimic.curate.selection import Selection

_TWO_SIDED = 1.96  # standard errors of a class's share within a sure whole: 95 %


@dataclass(frozen=True)
class Quality:
    """An estimate of a data set's quality.

    Attributes:
        quality: the share of useful samples, in [0, 1], higher is better.
        noise_rate: 1 − quality.
        samples: how many samples were judged.
        visits: how often, in all.
        auroc: by kind of canary, how well the mean score tells samples from canaries: 1 is
            perfect, 0.5 is chance.
        auroc_by_visit: the same for each visit.
        by_class: the quality of each class, where labels were given.
        calibrated: false where the log has no canaries: the estimate is then the share that a
            mixture of two Gaussians keeps, and its interval says that nothing is known.
    """

    quality: Estimate
    noise_rate: Estimate
    samples: int
    visits: int
    auroc: Mapping[str, Estimate]
    auroc_by_visit: Sequence[Estimate]
    by_class: Mapping[int | str, Estimate]
    calibrated: bool

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        return asdict(self)


def estimate_quality(
    log: Log, *, scorer: str = "mimic", labels: ById | None = None, backend: Any = None
) -> Quality:
    """Estimate the share of a data set's samples that are worth learning from.

    q̂ = 1 − ρ̂, with ρ̂ from the canaries.

    Args:
        log: a ``ScoreLog``, its folder, or a table with its columns.
        scorer: whose scores.
        labels: the class of every logged sample, as ``{id: class}`` or ``(ids, classes)``, for the
            quality of each class.
        backend: as in ``select``.

    Returns:
        The estimate with its interval. It is wide where errors may or may not be of the kind that
        confuses similar classes, since scores alone cannot tell these from hard samples.

    Raises:
        LogError: as in ``select``.
        DataError: a logged sample has no class, or two.

    Source:
        arXiv 2501.06708 estimates quality by the share of samples that its 1/b vote keeps; this
        replaces it.

    Example:
        >>> import tempfile
        >>> from gradmimic.log import ScoreLog
        >>> good, bad = [1.0 + i / 100 for i in range(90)], [-1.0 + i / 100 for i in range(10)]
        >>> with ScoreLog(tempfile.mkdtemp()) as log:
        ...     log.append(range(100), good + bad, [0.01] * 100, [0.5] * 100, epoch=0, step=0)
        ...     log.append(range(10), bad, [0] * 10, [0.5] * 10, epoch=0, step=0,
        ...                canary=["swapped"] * 10)
        ...     round(estimate_quality(log).quality.value, 2)
        0.9
    """
    selection, calibration = decide(log, None, scorer=scorer, backend=backend)
    p_clean = selection.table["p_clean"].to_numpy()
    visits = int(selection.table["visits"].to_numpy().sum())
    if calibration is None:
        rate = Estimate(1.0 - float(selection.table["keep"].to_numpy().mean()), 0.0, 1.0)
        return Quality(_complement(rate), rate, len(p_clean), visits, {}, [], {}, False)
    rate = calibration.noise_rate
    by_class = {} if labels is None else _by_class(selection, labels, rate)
    return Quality(
        _complement(rate),
        rate,
        len(p_clean),
        visits,
        calibration.auroc,
        calibration.auroc_by_visit,
        by_class,
        True,
    )


def write_qualities(path: str | os.PathLike[str], found: Mapping[str, Quality]) -> None:
    """Write estimates by the name of their log, as JSON."""
    text = json.dumps({name: quality.as_dict() for name, quality in found.items()}, indent=2)
    with export(Path(path)) as file:
        file.write(text.encode())


def better(first: Quality, second: Quality) -> bool | None:
    """Tell which of two data sets is better.

    Returns:
        True for the first, False for the second; None where the intervals overlap, so that neither
        can be said.

    Example:
        >>> def of(low, high):
        ...     quality = Estimate((low + high) / 2, low, high)
        ...     return Quality(quality, _complement(quality), 9, 9, {}, [], {}, True)
        >>> better(of(0.8, 0.9), of(0.5, 0.7)), better(of(0.5, 0.7), of(0.6, 0.8))
        (True, None)
    """
    if first.quality.low > second.quality.high:
        return True
    return False if second.quality.low > first.quality.high else None


def _by_class(selection: Selection, labels: ById, rate: Estimate) -> dict[int | str, Estimate]:
    """Average p_clean by class; an interval widens the whole set's by chance within the class."""
    p_bad = 1.0 - selection.table["p_clean"].to_numpy()
    names, place = np.unique(aligned(selection.table["sample_id"], labels), return_inverse=True)
    counts = np.bincount(place)  # [classes]
    shares = np.bincount(place, weights=p_bad) / counts
    wide, narrow = (bound / rate.value if rate.value else 1.0 for bound in (rate.high, rate.low))
    high = wilson(np.clip(shares * wide, 0.0, 1.0), counts, _TWO_SIDED)
    low = wilson(shares * narrow, counts, -_TWO_SIDED)
    return {
        name: _complement(Estimate(share, min(share, least), max(share, most)))
        for name, share, least, most in zip(
            names.tolist(), shares.tolist(), low.tolist(), high.tolist(), strict=True
        )
    }


def _complement(share: Estimate) -> Estimate:
    """Return one minus a share."""
    return Estimate(1.0 - share.value, 1.0 - share.high, 1.0 - share.low)
