"""Which scorer to believe on the data at hand, as canaries tell: without a true label.

    A_j   = (1 − λ) AUROC_j(uniform) + λ AUROC_j(confusable)       of mean scores, by kind of canary
    B_j   the same of the scores of the first visit
    c     = argmax_j A_j       over scorers j with A_j ≥ low(max_k A_k), of these with
                               B_j ≥ low(max_k B_k), and that no other one's noise rate contradicts

λ is the share of confusable errors that the canaries find, the median over these scorers. Pooled
canaries choose badly: half of them are confusable, and the scorer that is best at telling those is
often not the best where errors are spread over all classes.

Nor does the highest A_j alone choose well among those that chance could have put in another order.
A model knows by heart what it was trained on, and no canary: by its own scores canaries look worse
than bad samples do, the more so the more it has seen. At the first visit it has seen least: who is
surely worse there is not taken. The combination of all scorers, learned from their means, takes
part with its score of the first visit.
"""

from collections.abc import Iterable, Mapping
from statistics import median

from gradmimic.curate.canaries import Calibration, Estimate
from gradmimic.curate.stack import Stack
from gradmimic.reproduce.means import STACKED, Means
from gradmimic.separation import Area, separation


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
    return {name: _blended(own.auroc, share) for name, own in calibrations.items()}, share


def first_areas(first: Means, stack: Stack, share: float) -> dict[str, Estimate]:
    """Take how well each scorer tells samples from canaries when it first sees them.

    Args:
        first: the scores of the first visit.
        stack: how the means over all visits are combined.
        share: λ.

    Returns:
        By scorer, and for the combination, B_j in [0, 1], higher is better, with its interval.
    """
    columns = {name: (first.of(name), first.drawn(name)) for name in first.names}
    columns[STACKED] = stack(first.scores), stack(first.canaries)
    kinds = set(first.kinds.tolist())
    return {
        name: _blended({kind: separation(real, bad[first.kinds == kind]) for kind in kinds}, share)
        for name, (real, bad) in columns.items()
    }


def chosen(
    areas: Mapping[str, Estimate], first: Mapping[str, Estimate], left_out: Iterable[str] = ()
) -> str:
    """Return the scorer to believe, among those that are not left out.

    Args:
        areas: A_j.
        first: B_j.
        left_out: scorers that are not believed.

    Example:
        >>> areas = {"loss": Estimate(0.80, 0.78, 0.82), "mimic": Estimate(0.79, 0.77, 0.81)}
        >>> first = {"loss": Estimate(0.60, 0.58, 0.62), "mimic": Estimate(0.75, 0.73, 0.77)}
        >>> chosen(areas, first)
        'mimic'
        >>> chosen(areas, first, left_out=["mimic"])
        'loss'
    """
    excluded = set(left_out)
    believed = [name for name in areas if name not in excluded]
    for told in (areas, first):
        best = max((told[name] for name in believed), key=lambda area: area.value)
        believed = [name for name in believed if told[name].value >= best.low]
    return max(believed, key=lambda name: areas[name].value)


def _blended(by_kind: Mapping[str, Estimate | Area], share: float) -> Estimate:
    """Weigh the kinds; where there is one kind alone, it counts."""
    weights = {kind: share if kind.startswith("confusable/") else 1.0 - share for kind in by_kind}
    if not sum(weights.values()):
        weights = dict.fromkeys(by_kind, 1.0)

    def blended(bound: str) -> float:
        parts = [w * float(getattr(by_kind[kind], bound)) for kind, w in weights.items()]
        return sum(parts) / sum(weights.values())

    return Estimate(blended("value"), blended("low"), blended("high"))
