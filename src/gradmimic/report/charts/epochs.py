"""How the mimic scores are distributed in each epoch: one ridge each, the first on top.

ridge_e(x) = −place_e + 1.3 · smoothed count_e(x) / its maximum
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.report.charts.chart import BLUE, INK, ONE, ORANGE, Chart, altair, spec_of, table
from gradmimic.report.charts.histogram import counts, edges
from gradmimic.report.numbers import short

_MOST = 8
_BINS = 80
_HEIGHT = 1.3  # of a ridge; 1 is the distance to the next
_PIXELS = 34  # from one ridge to the next
_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def epoch_chart(
    scores: Mapping[int, npt.NDArray[Any]],
    bad: npt.NDArray[np.bool_] | None = None,
    names: tuple[str, str] = ("right label", "wrong label"),
) -> Chart | None:
    """Draw how the scores are distributed in each epoch.

    Args:
        scores: for each epoch the mimic score of every sample, ``[n]``; NaN where not visited.
        bad: which samples are known to be bad, ``[n]`` bool; they get a ridge of their own, of the
            area of their share.
        names: what samples are called that are known to be good, and bad.

    Returns:
        The chart, None where there is no score; of more than eight epochs eight are drawn, first
        and last included, and the table has all.
    """
    finite = {epoch: np.isfinite(values) for epoch, values in sorted(scores.items())}
    epochs = [epoch for epoch, seen in finite.items() if seen.any()]
    if not epochs:
        return None
    groups = {
        epoch: _groups(scores[epoch], finite[epoch], bad, names) for epoch in epochs
    }  # epoch → name → scores
    drawn = epochs
    if len(epochs) > _MOST:
        drawn = [epochs[at] for at in np.linspace(0, len(epochs) - 1, _MOST).round().astype(int)]
    bounds = edges([own for epoch in drawn for own in groups[epoch].values()], _BINS)
    rows = []
    for place, epoch in enumerate(drawn):
        heights = {name: _smooth(counts(own, bounds)) for name, own in groups[epoch].items()}
        top = max(float(own.max()) for own in heights.values()) or 1.0
        rows += [
            {
                "score": score,
                "base": -place,
                "ridge": round(_HEIGHT * height / top - place, 4),
                "which": name,
                "line": f"{epoch} {name}",
            }
            for name, own in heights.items()
            for score, height in zip(
                ((bounds[:-1] + bounds[1:]) / 2).tolist(), own.tolist(), strict=True
            )
        ]
    first, last = (_median(scores[epochs[at]]) for at in (0, -1))
    summary = (
        f"Distribution of the mimic scores in {len(drawn)} of {len(epochs)} epochs: the median "
        f"goes from {first} to {last}."
    )
    caption = "Mimic scores of each epoch alone, the first on top; the thin line is 0." + (
        "" if bad is None else " The areas of the two colours are as their numbers."
    )
    columns = ["epoch", "samples", *(f"{100 * q:.0f} % are below" for q in _QUANTILES)]
    if bad is not None:
        columns.insert(1, "of")
    return Chart(
        "epochs",
        "Scores by epoch",
        summary,
        caption,
        _spec(rows, drawn, bounds, [] if bad is None else list(names)),
        columns,
        [
            [str(epoch), *([] if bad is None else [name]), f"{len(own):,}", *_quantiles(own)]
            for epoch in epochs
            for name, own in groups[epoch].items()
        ],
    )


def _groups(
    scores: npt.NDArray[Any],
    seen: npt.NDArray[np.bool_],
    bad: npt.NDArray[np.bool_] | None,
    names: tuple[str, str],
) -> dict[str, npt.NDArray[Any]]:
    """Tell known good from known bad, where that is known."""
    if bad is None:
        return {"samples": scores[seen]}
    found = {names[0]: scores[seen & ~bad], names[1]: scores[seen & bad]}
    return {name: own for name, own in found.items() if len(own)}


def _quantiles(scores: npt.NDArray[Any]) -> list[str]:
    return [short(value) for value in np.quantile(scores, _QUANTILES).tolist()]


def _median(scores: npt.NDArray[Any]) -> str:
    return short(float(np.nanmedian(scores)))


def _smooth(heights: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Smooth a histogram with a narrow kernel that keeps its area."""
    kernel = np.array([1, 4, 6, 4, 1]) / 16
    smooth: npt.NDArray[np.float64] = np.convolve(heights, kernel, mode="same")
    return smooth


def _spec(
    rows: list[dict[str, Any]],
    drawn: list[int],
    bounds: npt.NDArray[np.float64],
    names: list[str],
) -> dict[str, Any]:
    alt = altair()
    labels = ", ".join(f"'epoch {epoch}'" for epoch in drawn)
    axis = alt.Axis(
        values=[-place for place in range(len(drawn))],
        labelExpr=f"[{labels}][-datum.value]",
        labelBaseline="bottom",
        tickCount=len(drawn),
        grid=False,
        title=None,
    )
    scale = alt.Scale(domain=[0.45 - len(drawn), 1.4], nice=False, zero=False)
    shared = {
        "x": alt.X(
            "score:Q",
            title="mimic score",
            scale=alt.Scale(domain=[bounds[0], bounds[-1]], nice=False, zero=False),
        ),
        "y": alt.Y("ridge:Q", axis=axis, scale=scale),
        "detail": "line:N",
        "color": alt.Color(
            "which:N",
            title=None,
            legend=alt.Legend() if names else None,
            scale=alt.Scale(domain=names or ["samples"], range=[BLUE, ORANGE][: len(names) or 1]),
        ),
    }
    chart = alt.layer(
        alt.Chart(table("rows")).mark_area(opacity=0.4, clip=True).encode(**shared, y2="base:Q"),
        alt.Chart(table("rows")).mark_line(strokeWidth=1.2, clip=True).encode(**shared),
        alt.Chart(table(ONE))
        .mark_rule(color=INK, opacity=0.35, clip=True)
        .encode(x=alt.datum(0, type="quantitative")),
    )
    return spec_of(chart.properties(width="container", height=60 + _PIXELS * len(drawn)), rows=rows)
