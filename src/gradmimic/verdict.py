"""What a check of a reference came to, and whether to use it.

    usable      A ≥ FLOOR and A_low > ½
    inverted    A ≤ 1 − FLOOR: bad samples score higher than good ones
    useless     anything between
    best        the first usable alignment whose A lies within the interval of the highest

with A the AUROC of samples over canaries of the plainest kind, and A_low the lower end of its 95 %
interval, which is narrow where there are many. References that know nothing (random weights, 30 for
each of 2, 3 and 10 classes of CIFAR-10 features) came to 0.25 – 0.53 after 100 plain steps of the
model or more, and by luck to as much as 0.57 before any.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gradmimic.errors import UselessReferenceError
from gradmimic.separation import Area
from gradmimic.trial import preferred

FLOOR = 0.55  # a good reference comes to 0.59 where 70 % of the labels of ten classes are wrong
LEAST = 100  # canaries: fewer tell little
SEGMENT = (0.0, 0.25, 0.5, 0.75, 1.0)

_EXPECTED = (
    "Expected a model of the same task, with the same classes in the same order, that is better "
    "than the one being trained."
)
_INVERTED = (
    "Scores are inverted where the reference started from other initial weights, or knows less "
    "than the model: random weights, outputs of other samples, classes in another order."
)


@dataclass(frozen=True)
class AlignmentCheck:
    """What one alignment of a reference came to.

    Attributes:
        cosine: of the weights and where the reference lies, in [−1, 1]; None where a side is zero,
            and for ``"outputs"``, which lies in no place among the weights; so are the next two.
        distance: ‖v‖ / ‖θ_S‖, ≥ 0; None where the weights are zero.
        losses: the mean loss on the way from the weights to the reference, at 0, ¼, ½, ¾ and 1;
            None where it overflows. It falls where the reference is better at these labels; a sharp
            reference and wrong labels let it rise towards the end.
        positive: the share of samples that score above 0, in [0, 1].
        spread: the standard deviation of the samples' scores, in loss per unit of weight distance.
        canaries: by kind, how many were scored.
        auroc: by kind, how well scores tell samples from canaries: 1 is perfect, 0.5 is chance, and
            below that they are inverted. Where a share ρ of the samples is bad itself, 1 − ρ/2 is
            the most there can be.
        usable: whether the reference is, aligned like this; None where that cannot be told.
        reason: why.
    """

    cosine: float | None
    distance: float | None
    losses: tuple[float | None, ...]
    positive: float
    spread: float
    canaries: Mapping[str, int]
    auroc: Mapping[str, Area]
    usable: bool | None
    reason: str

    @property
    def area(self) -> Area | None:
        """The AUROC that decides: of the plainest kind of canary."""
        kind = plainest(self.auroc)
        return None if kind is None else self.auroc[kind]


@dataclass(frozen=True)
class ReferenceCheck:
    """What a check of a reference came to.

    Attributes:
        alignments: what each came to, the simplest first.
        impossible: the alignments that do not fit, with the reason.
        best: the one to use, for ``GradMimic(…, align=best)``; None where there is none.
        usable: whether there is one; None where that cannot be told.
        reason: why.
        samples: how many were scored.
        missing: how many a table of outputs did not know.
    """

    alignments: Mapping[str, AlignmentCheck]
    impossible: Mapping[str, str]
    best: str | None
    usable: bool | None
    reason: str
    samples: int
    missing: int

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON."""
        values = asdict(self)
        for name, own in self.alignments.items():
            areas = {kind: area._asdict() for kind, area in own.auroc.items()}
            values["alignments"][name] |= {"auroc": areas, "losses": list(own.losses)}
        return values

    def raise_if_useless(self) -> None:
        """Raise where the reference is known to be of no use.

        Raises:
            UselessReferenceError: it is; the message says why.
        """
        if self.usable is False:
            raise UselessReferenceError(self.reason)

    def __str__(self) -> str:
        told = {True: "usable", False: "useless", None: "unknown"}
        lines = [f"{told[self.usable]}: {self.reason}"]
        for name, own in self.alignments.items():
            way = ", ".join(map(shown, own.losses))
            place = f"cosine {shown(own.cosine)}, distance {shown(own.distance)}; loss on the way"
            scores = f"{own.positive:.0%} of the scores positive, spread {shown(own.spread)}"
            lines += [f"  {name}: {own.reason}", f"    {place} {way}; {scores}"]
        lines += [f"  {name}: does not fit, {why}" for name, why in self.impossible.items()]
        return "\n".join(lines)


def concluded(
    found: Mapping[str, AlignmentCheck],
    impossible: Mapping[str, str],
    *,
    samples: int,
    missing: int,
) -> ReferenceCheck:
    """Conclude from what every alignment came to.

    Args:
        found: by name, the simplest first.
        impossible: why others do not fit.
        samples: how many were scored.
        missing: how many were not, since the reference does not know them.
    """
    usable, best = None, None
    good = {name: own.area for name, own in found.items() if own.usable and own.area}
    unknown = [own.reason for own in found.values() if own.usable is None]
    if not found:
        usable = False
        whys = " ".join(f"{name}: {why}" for name, why in impossible.items())
        reason = f"no alignment fits. {whys}"
    elif unknown:
        reason = unknown[0]
    elif good:
        usable, best = True, [*good][preferred([*good.values()], "")]
        reason = f"with align={best!r}, {found[best].reason}."
    else:
        usable = False
        whys = "; ".join(f"with align={name!r}, {own.reason}" for name, own in found.items())
        inverted = any(own.area and own.area.value <= 1 - FLOOR for own in found.values())
        reason = f"{whys}. {f'{_INVERTED} ' if inverted else ''}{_EXPECTED}"
    return ReferenceCheck(found, impossible, best, usable, reason, samples, missing)


def judged(auroc: Mapping[str, Area], canaries: Mapping[str, int]) -> tuple[bool | None, str]:
    """Say whether scores are of use, and why.

    Args:
        auroc: of samples over canaries, by kind.
        canaries: how many there were.

    Example:
        >>> judged({"swapped": Area(0.5, 0.45, 0.55)}, {"swapped": 900})[0]
        False
    """
    kind = plainest(auroc)
    if kind is None:
        return None, (
            "nothing can be told without canaries. Let losses return, beside the losses, what "
            "Canaries(rate=1.0).labels or .pairs drew from the same forward pass."
        )
    area, number, name = auroc[kind], canaries[kind], kind.partition("/")[0]
    if number < LEAST:
        return None, (
            f"nothing can be told by {number} {name} canaries, expected {LEAST} or more. Pass more "
            "batches, or Canaries(rate=1.0)."
        )
    told = (
        f"AUROC of samples over {name} canaries is {area.value:.3f} ({area.low:.3f} to "
        f"{area.high:.3f}, where 0.5 is chance)"
    )
    if area.value <= 1 - FLOOR:
        return False, f"{told}, inverted: bad samples score higher than good ones"
    if area.low <= 0.5:
        return False, f"{told}: the scores know nothing of good and bad samples"
    if area.value < FLOOR:
        return False, f"{told}: references that know nothing come to as much by luck"
    return True, told


def plainest(kinds: Mapping[str, object]) -> str | None:
    """Return the kind of canary that makes the fewest assumptions, if there is any."""
    plain = (kind for kind in kinds if not kind.startswith("confusable/"))
    return next(plain, next(iter(kinds), None))


def shown(value: float | None) -> str:
    """Return a number as people read it."""
    return "unknown" if value is None else f"{value:.3g}"
