"""Which scorer to believe on the data at hand, as canaries tell: without a true label.

    A_j   = (1 − λ) AUROC_j(uniform) + λ AUROC_j(confusable)       of mean scores, by kind of canary
    B_j   = AUROC_j of uniform canaries at the first visit
    c     = argmax_j B_j       over scorers j with A_j ≥ low(max_k A_k), that no other one's noise
                               rate contradicts

λ is the share of confusable errors that the canaries find, the median over these scorers. Pooled
canaries choose badly: half of them are confusable, and the scorer that is best at telling those is
often not the best where errors are spread over all classes.

Nor does the highest A_j choose well among those that chance could have put in another order. A
model knows by heart what it was trained on, and no canary: by its own scores canaries look worse
than bad samples do, the more so the more it has seen. At the first visit it has seen least. A
combination of scorers has no first visit: it is chosen where no single scorer is as good.
"""

from collections.abc import Iterable, Mapping
from statistics import median

from gradmimic.curate.canaries import Calibration, Estimate


def canary_areas(
    calibrations: Mapping[str, Calibration], left_out: Iterable[str] = ()
) -> tuple[dict[str, Estimate], float]:
    """Take how well each scorer tells samples from canaries of the kind that errors are.

    Args:
        calibrations: by scorer.
        left_out: scorers that have no part in λ.

    Returns:
        By scorer A_j, in [0, 1], higher is better, with its interval; and λ in [0, 1].
    """
    excluded = set(left_out)
    shares = [own.confusable for name, own in calibrations.items() if name not in excluded]
    share = median(shares) if shares else 0.0
    return {name: _area(own, share) for name, own in calibrations.items()}, share


def chosen(
    areas: Mapping[str, Estimate], first: Mapping[str, float], left_out: Iterable[str] = ()
) -> str:
    """Return the scorer to believe, among those that are not left out.

    Args:
        areas: A_j.
        first: B_j of single scorers.
        left_out: scorers that are not believed.

    Example:
        >>> areas = {
        ...     "loss": Estimate(0.80, 0.78, 0.82),
        ...     "mimic": Estimate(0.79, 0.77, 0.81),
        ...     "grand": Estimate(0.70, 0.68, 0.72),
        ... }
        >>> chosen(areas, {"loss": 0.6, "mimic": 0.75, "grand": 0.9})
        'mimic'
        >>> chosen(areas, {"loss": 0.6, "mimic": 0.75, "grand": 0.9}, left_out=["mimic"])
        'loss'
    """
    excluded = set(left_out)
    believed = {name: area for name, area in areas.items() if name not in excluded}
    best = max(believed.values(), key=lambda area: area.value)
    alike = [name for name, area in believed.items() if area.value >= best.low]
    return max(alike, key=lambda name: first.get(name, 0.0))


def _area(own: Calibration, share: float) -> Estimate:
    """Weigh the kinds; where there is one kind alone, it counts."""
    weights = {kind: share if kind.startswith("confusable/") else 1.0 - share for kind in own.auroc}
    if not sum(weights.values()):
        weights = dict.fromkeys(own.auroc, 1.0)
    total = sum(weights.values())

    def blended(bound: str) -> float:
        parts = [w * float(getattr(own.auroc[kind], bound)) for kind, w in weights.items()]
        return sum(parts) / total

    return Estimate(blended("value"), blended("low"), blended("high"))
