"""What the pages of several tasks show alike."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.curate import Selection
from gradmimic.curate.backends import connect
from gradmimic.curate.visits import Visits
from gradmimic.log_reader import LogReader
from gradmimic.report.charts.chart import Chart
from gradmimic.report.charts.curves import visit_chart
from gradmimic.report.charts.histogram import score_chart
from gradmimic.report.charts.threshold import thresholds
from gradmimic.report.gallery import END, Arranged, arrange
from gradmimic.report.grids import Grid
from gradmimic.report.numbers import Interval
from gradmimic.run.outcome import Outcome
from gradmimic.run.verdict import told_apart
from gradmimic.verdict import plainest


def census_grid(outcome: Outcome, title: str, remark: str) -> Grid:
    """Lay out what became of everything that was read."""
    rows = [
        [row.what, "unknown" if row.count is None else f"{row.count:,}", row.example]
        for row in outcome.census
    ]
    return Grid(title, remark, ["", outcome.counted, "the first"], rows)


def lowest_kept(selection: Selection, scores: npt.NDArray[np.floating]) -> float | None:
    """Return the lowest score ``[n]`` that is kept, where nothing above it is removed."""
    keep = selection.table["keep"].to_numpy(zero_copy_only=False)
    if keep.all() or not keep.any() or scores[~keep].max() > scores[keep].min():
        return None
    return float(scores[keep].min())


def arranged(selection: Selection, end: int = END) -> Arranged:
    """Return the rows of a gallery, with so many samples at each end and at the border."""
    scores = selection.table["score"].to_numpy()
    return arrange(selection.table, lowest_kept(selection, scores), end=end)


def score_charts(
    selection: Selection,
    log: LogReader,
    quality: Mapping[str, Any] | None,
    *,
    rule: str,
    aggregate: str,
    other_scores: npt.NDArray[np.floating] | None = None,
    bad: npt.NDArray[np.bool_] | None = None,
    names: tuple[str, str] = ("right label", "wrong label"),
    noun: str = "samples",
    canaries_are: str,
) -> list[Chart | None]:
    """Draw how the mean scores lie to the canaries', and how far they can be trusted.

    Args:
        selection: what stage 2 decided.
        log: every score.
        quality: what the canaries say, as ``Quality.as_dict``; None where there are none.
        rule: how the selection was made.
        aggregate: likewise; where votes were counted, ``p_clean`` is no matter of canaries.
        other_scores: ``[n]``, the mean mimic scores, where those of the selection are of another
            kind; None takes the selection's.
        bad: ``[n]``, which samples are known to be bad.
        names: what samples are called that are known to be good, and bad.
        noun: what samples are called.
        canaries_are: what canaries are.
    """
    scores = selection.table["score"].to_numpy() if other_scores is None else other_scores
    if not len(scores):
        return []
    by_kind = _canary_means(log)
    kind = next(iter((quality or {}).get("auroc", ())), None) or plainest(by_kind) or ""
    canaries = by_kind.get(kind, np.zeros(0))
    p_clean = selection.table["p_clean"].to_numpy()
    calibrated = (
        rule in ("auto", "calibrated")
        and aggregate in ("mean", "stacked")
        and told_apart(quality)
        and not np.isnan(p_clean).any()
    )
    every = len(selection.removed) == 0
    found = thresholds(
        scores,
        own=float(scores.min()) if every else lowest_kept(selection, scores),
        removed=len(selection.removed),
        p_clean=p_clean if calibrated else None,
        wrong=bad,
        selects=other_scores is None,
        noun=noun,
    )
    visits = (quality or {}).get("auroc_by_visit", ())
    return [
        score_chart(
            scores, canaries, bad=bad, thresholds=found, names=names, canaries_are=canaries_are
        ),
        visit_chart([Interval(**own) for own in visits], kind.partition("/")[0]),
    ]


def _canary_means(log: LogReader) -> dict[str, npt.NDArray[np.float64]]:
    """Return by kind the mean mimic scores of the canaries, of the visits that stage 2 uses."""
    with connect(None, None, None) as engine:
        visits = Visits(engine, log, ["mimic"], relative=False, edge=None)
        with visits.blaming_parts():
            means = engine.fetch(visits.canary_means())
    kinds, scores = means["canary"].to_pylist(), means["x"].to_numpy()
    return {
        kind: np.sort(scores[np.array([own == kind for own in kinds])])
        for kind in sorted(set(kinds))
    }
