"""Histograms of samples and canaries, put together as what canaries are calibrated with."""

from collections.abc import Mapping, Sequence

import numpy as np

from gradmimic.curate.canaries import Distribution, Seen
from gradmimic.curate.histogram import Histogram

BinsSeen = tuple[Histogram, Mapping[str, Histogram]]  # of samples, and by kind of canaries


def by_visit(found: Mapping[tuple[int, str | None], Histogram]) -> list[BinsSeen]:
    """Put the samples' and the canaries' histograms of each voter together, in order."""
    seen: dict[int, BinsSeen] = {}
    for voter in sorted({voter for voter, _ in found}):
        seen[voter] = (
            found[voter, None],
            {kind: own for (other, kind), own in found.items() if other == voter and kind},
        )
    return list(seen.values())


def distributions(visits: Sequence[BinsSeen]) -> list[Seen]:
    """Return histograms as distributions of their bins' numbers, with losses where there are any.

    Not of their values: what shares a bin is a tie.
    """
    return [
        Seen(_distribution(real), {kind: _distribution(own) for kind, own in canaries.items()})
        for real, canaries in visits
    ]


def _distribution(found: Histogram) -> Distribution:
    losses = np.zeros(len(found.bins)) if found.losses is None else found.losses
    return Distribution(found.bins.astype(np.float64), found.counts.astype(np.float64), losses)
