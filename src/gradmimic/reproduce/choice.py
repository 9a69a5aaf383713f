"""Which scorer to believe on the data at hand, as canaries tell: without a true label.

    A_j   = (1 − λ) AUROC_j(uniform) + λ AUROC_j(confusable)       of mean scores, by kind of canary
    c     = argmax_j A_j       over scorers that no other one's noise rate contradicts

λ is the share of confusable errors that the canaries find, the median over these scorers. Pooled
canaries choose badly: half of them are confusable, and the scorer that is best at telling those is
often not the best where errors are spread over all classes.
"""

from collections.abc import Iterable, Mapping
from statistics import median

from gradmimic.curate.canaries import Calibration


def canary_areas(
    calibrations: Mapping[str, Calibration], left_out: Iterable[str] = ()
) -> tuple[dict[str, float], float]:
    """Take how well each scorer tells samples from canaries of the kind that errors are.

    Args:
        calibrations: by scorer.
        left_out: scorers that have no part in λ.

    Returns:
        By scorer A_j, in [0, 1], higher is better; and λ in [0, 1].
    """
    excluded = set(left_out)
    shares = [own.confusable for name, own in calibrations.items() if name not in excluded]
    share = median(shares) if shares else 0.0
    return {name: _area(own, share) for name, own in calibrations.items()}, share


def chosen(areas: Mapping[str, float], left_out: Iterable[str] = ()) -> str:
    """Return the scorer with the highest area, among those that are not left out.

    Example:
        >>> chosen({"mimic": 0.8, "loss": 0.7, "grad_match": 0.9}, ["grad_match"])
        'mimic'
    """
    excluded = set(left_out)
    return max((name for name in areas if name not in excluded), key=lambda name: areas[name])


def _area(own: Calibration, share: float) -> float:
    """Weigh the kinds; where there is one kind alone, it counts."""
    weights = {kind: share if kind.startswith("confusable/") else 1.0 - share for kind in own.auroc}
    total = sum(weights.values())
    if not total:
        return sum(area.value for area in own.auroc.values()) / len(own.auroc)
    return sum(weights[kind] * area.value for kind, area in own.auroc.items()) / total
