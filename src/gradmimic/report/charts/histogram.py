"""How the mean scores of samples lie to those of canaries, and where a threshold cuts.

    count(bin) = #{i : e_j ≤ s_i < e_{j+1}}      canaries: n/c · their count, the same area

The bins divide the range that holds all but the outermost 0.2 % on either side; what lies beyond is
counted in the first and the last.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.report.charts.chart import (
    ACROSS,
    BLUE,
    DASH,
    INK,
    ONE,
    ORANGE,
    Chart,
    altair,
    spec_of,
    table,
)
from gradmimic.report.charts.threshold import OUTSIDE, Thresholds
from gradmimic.report.numbers import short

BINS = 60


def edges(scores: Sequence[npt.NDArray[Any]], bins: int = BINS) -> npt.NDArray[np.float64]:
    """Divide the range that holds all but the outermost 0.2 % of the scores on either side.

    Args:
        scores: arrays of finite numbers, not all empty.
        bins: how many.

    Returns:
        ``[bins + 1]``, ascending.

    Example:
        >>> edges([np.zeros(3)], bins=2)
        array([-0.5,  0. ,  0.5])
    """
    low, high = np.quantile(np.concatenate(scores).astype(np.float64), [OUTSIDE, 1 - OUTSIDE])
    margin = 0.01 * (high - low)
    # A range so narrow that its bins would be no numbers of their own gets a wider one.
    if not margin > 1e-12 * max(abs(low), abs(high)):
        margin = 0.5 * max(abs(low), 1.0)
    found: npt.NDArray[np.float64] = np.linspace(low - margin, high + margin, bins + 1)
    return found


def counts(scores: npt.NDArray[Any], bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Count the scores of each bin; those beyond the bounds are in the first and the last."""
    found: npt.NDArray[np.int64] = np.histogram(np.clip(scores, bounds[0], bounds[-1]), bounds)[0]
    return found


def score_chart(
    scores: npt.NDArray[Any],
    canaries: npt.NDArray[Any],
    *,
    bad: npt.NDArray[np.bool_] | None = None,
    thresholds: Thresholds | None = None,
    names: tuple[str, str] = ("right label", "wrong label"),
    canaries_are: str = "samples that were made wrong on purpose",
) -> Chart | None:
    """Draw the histogram of the mean scores, with a threshold that can be moved.

    Args:
        scores: ``[n]``, the mean score of each sample; higher is better.
        canaries: ``[c]``, of each canary.
        bad: ``[n]``, which samples are known to be bad; they get a colour of their own.
        thresholds: what each threshold removes.
        names: what samples are called that are known to be good, and bad.
        canaries_are: what canaries are, for the caption.

    Returns:
        The chart; None where there is no sample.
    """
    if not len(scores):
        return None
    bounds = edges([scores, canaries])
    groups = {"samples": scores}
    if bad is not None:
        groups = {names[1]: scores[bad], names[0]: scores[~bad]}
    heights = {name: counts(own, bounds) for name, own in groups.items()}
    outline = (counts(canaries, bounds) * len(scores) / max(len(canaries), 1)).tolist()
    spec = _spec(bounds, heights, outline if len(canaries) else [], thresholds)
    columns = ["from", "to", *heights, *(["canaries"] if len(canaries) else [])]
    cells = [*heights.values(), *([counts(canaries, bounds)] if len(canaries) else [])]
    rows = [
        [short(low), short(high), *(f"{own[j]:,}" for own in cells)]
        for j, (low, high) in enumerate(pairwise(bounds.tolist()))
    ]
    caption = "Mean mimic scores of the samples; higher ones pull toward the reference."
    if len(canaries):
        caption += f" Dashed: canaries, {canaries_are}, drawn with the same area."
    caption += " The outermost 0.2 % on either side are counted in the first and the last bar."
    if thresholds is not None and not thresholds.own:
        caption += (
            " The run did not decide by a threshold on this score; the line begins where one would "
            "remove about as many samples."
        )
    summary = (
        f"Histogram of {len(scores):,} mean scores from {short(float(np.min(scores)))} to "
        f"{short(float(np.max(scores)))}."
    )
    if thresholds is not None:
        summary += f" {thresholds.said(thresholds.start)}"
    return Chart("scores", "Scores", summary, caption, spec, columns, rows, thresholds)


def _spec(
    bounds: npt.NDArray[np.float64],
    heights: dict[str, npt.NDArray[np.int64]],
    canaries: list[float],
    thresholds: Thresholds | None,
) -> dict[str, Any]:
    """Build bars, the canaries' outline, and the line that can be moved."""
    alt = altair()
    lows, highs = bounds[:-1].tolist(), bounds[1:].tolist()
    bars = [
        {"from": low, "to": high, "samples": count, "which": name}
        for name, own in heights.items()
        for low, high, count in zip(lows, highs, own.tolist(), strict=True)
    ]
    colours = dict(zip(heights, [ORANGE, BLUE] if len(heights) == 2 else [BLUE], strict=True))
    if canaries:
        colours["canaries"] = INK
    x = alt.X(
        "from:Q",
        bin="binned",
        title="mean mimic score",
        scale=alt.Scale(domain=[lows[0], highs[-1]], nice=False, zero=False),
    )
    layers = [
        alt.Chart(table("bars"))
        .mark_bar(binSpacing=0, opacity=0.75)
        .encode(
            x=x,
            x2="to:Q",
            y=alt.Y("samples:Q", title="samples", stack="zero"),
            color=alt.Color(
                "which:N",
                title=None,
                scale=alt.Scale(domain=list(colours), range=list(colours.values())),
            ),
            tooltip=[
                alt.Tooltip("which:N", title="of"),
                alt.Tooltip("samples:Q", format=","),
                alt.Tooltip("from:Q", format=".3g"),
                alt.Tooltip("to:Q", format=".3g"),
            ],
        )
    ]
    outline = []
    if canaries:
        outline = [
            {"from": low, "height": height, "which": "canaries"}
            for low, height in zip([*lows, highs[-1]], [*canaries, 0.0], strict=True)
        ]
        layers.append(
            alt.Chart(table("outline"))
            .mark_line(interpolate="step-after", strokeDash=DASH, strokeWidth=1.2)
            .encode(x="from:Q", y=alt.Y("height:Q"), color="which:N")
        )
    if thresholds is not None:
        at = alt.datum(alt.ExprRef("threshold"), type="quantitative")
        layers += [
            alt.Chart(table(ONE))
            .mark_rect(opacity=0.12, color=INK, clip=True, tooltip=None)
            .encode(x=alt.datum(lows[0], type="quantitative"), x2=at),
            alt.Chart(table(ONE)).mark_rule(strokeWidth=2, color=INK, clip=True).encode(x=at),
        ]
    chart = alt.layer(*layers).properties(**ACROSS)
    if thresholds is not None:
        start = thresholds.at[thresholds.start]
        chart = chart.add_params(alt.param(name="threshold", value=start))
    return spec_of(chart, bars=bars, outline=outline)
