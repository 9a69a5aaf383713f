"""Curves by epoch or visit: how training went, and how well scores tell canaries from samples."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gradmimic.report.charts.chart import (
    ACROSS,
    BLUE,
    DASH,
    GREEN,
    INK,
    ONE,
    ORANGE,
    Chart,
    altair,
    spec_of,
    table,
)
from gradmimic.report.numbers import Interval, percent

Kind = Literal["accuracy", "recall", "loss"]
_TITLES = {"accuracy": "Test accuracy", "recall": "Retrieval", "loss": "Training loss"}
_AXES = {"accuracy": "test accuracy", "recall": "R@10", "loss": "training loss"}
_COLOURS = [BLUE, ORANGE, GREEN, "#cc79a7", "#b59f00"]
_MARGIN = 0.08


def curve_chart(
    curves: Mapping[str, Mapping[int, float]],
    kind: Kind,
    caption: str,
    reference_level: float | None = None,
) -> Chart | None:
    """Draw a learning curve for each way of training, and the reference as a dashed line.

    Args:
        curves: for each way of training, a value per epoch.
        kind: what the values are: shares in [0, 1], or losses.
        caption: how to read it.
        reference_level: the same quantity of the reference.

    Returns:
        The chart, None where there is no value.
    """
    drawn = {name: dict(sorted(curve.items())) for name, curve in curves.items() if curve}
    if not drawn:
        return None
    level = {} if reference_level is None else {"reference": reference_level}
    said = (lambda value: f"{value:.4g}") if kind == "loss" else percent
    summary = f"{_TITLES[kind]} by epoch: " + "; ".join(
        f"{name} from {said(next(iter(curve.values())))} to {said(list(curve.values())[-1])}"
        for name, curve in drawn.items()
    )
    summary += "".join(f"; the {name} {said(value)}" for name, value in level.items()) + "."
    epochs = sorted({epoch for curve in drawn.values() for epoch in curve})
    return Chart(
        f"curves-{kind}",
        _TITLES[kind],
        summary,
        caption,
        _curves(drawn, level, kind, epochs),
        ["epoch", *drawn, *level],
        [
            [
                str(epoch),
                *(said(own[epoch]) if epoch in own else "–" for own in drawn.values()),
                *map(said, level.values()),
            ]
            for epoch in epochs
        ],
    )


def _curves(
    drawn: Mapping[str, Mapping[int, float]],
    level: Mapping[str, float],
    kind: Kind,
    epochs: Sequence[int],
) -> dict[str, Any]:
    alt = altair()
    rows = [
        {"epoch": epoch, "value": value, "which": name}
        for name, own in drawn.items()
        for epoch, value in own.items()
    ]
    values = [row["value"] for row in rows] + list(level.values())
    form = ".3~g" if kind == "loss" else ".1~%"
    shared = {
        "x": alt.X("epoch:Q", scale=_inside(epochs), axis=_whole(epochs, "epoch")),
        "y": alt.Y("value:Q", title=_AXES[kind], scale=_inside(values), axis=alt.Axis(format=form)),
        "color": alt.Color(
            "which:N",
            title=None,
            scale=alt.Scale(
                domain=[*drawn, *level],
                range=[*(_COLOURS[j % 5] for j in range(len(drawn))), *(INK for _ in level)],
            ),
        ),
    }
    lines = [
        alt.Chart(table("rows"))
        .mark_line(strokeWidth=2, point=alt.OverlayMarkDef(size=36))
        .encode(
            **shared,
            tooltip=[
                alt.Tooltip("which:N", title="training"),
                "epoch:Q",
                alt.Tooltip("value:Q", title=_AXES[kind], format=form),
            ],
        )
    ]
    levels = [{"value": value, "which": name} for name, value in level.items()]
    if levels:
        lines.append(
            alt.Chart(table("levels"))
            .mark_rule(strokeDash=DASH, strokeWidth=1.2)
            .encode(y="value:Q", color="which:N")
        )
    return spec_of(alt.layer(*lines).properties(**ACROSS), rows=rows, levels=levels)


def visit_chart(areas: Sequence[Interval], kind: str) -> Chart | None:
    """Draw how well the scores of each visit tell canaries from samples.

    AUROC = P(canary scores below sample) + ½ P(equal)

    Args:
        areas: the AUROC of each visit with its interval, in [0, 1].
        kind: which kind of canary.

    Returns:
        The chart, None where there is one visit or none.
    """
    if len(areas) < 2:
        return None
    alt = altair()
    rows = [
        {"visit": visit, "auroc": own.value, "low": own.low, "high": own.high}
        for visit, own in enumerate(areas)
    ]
    bounds = [0.5, *(own.low for own in areas), *(own.high for own in areas)]
    visits = range(len(areas))
    base = alt.Chart(table("rows")).encode(
        x=alt.X("visit:Q", scale=_inside(visits), axis=_whole(visits, "visit")),
        tooltip=[
            "visit:Q",
            *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("auroc", "low", "high")),
        ],
    )
    y = alt.Y("auroc:Q", title="AUROC", scale=_inside(bounds), axis=alt.Axis(format=".2f"))
    chart = alt.layer(
        base.mark_rule(color=BLUE, strokeWidth=3, opacity=0.4).encode(
            y=alt.Y("low:Q", title="AUROC"), y2="high:Q"
        ),
        base.mark_line(color=BLUE, strokeWidth=2, point=alt.OverlayMarkDef(size=36, color=BLUE))
        .encode(y=y),
        alt.Chart(table(ONE))
        .mark_rule(strokeDash=DASH, color=INK, opacity=0.6)
        .encode(y=alt.datum(0.5, type="quantitative")),
    )  # fmt: skip
    first, last = areas[0], areas[-1]
    return Chart(
        "visits",
        "Can the scores be trusted?",
        f"AUROC of {kind} canaries by visit: from {first.value:.3f} to {last.value:.3f}.",
        f"How well the scores of each visit tell {kind} canaries from samples, with 95 % "
        "intervals: 0.5, dashed, is chance. Later visits tend to know less.",
        spec_of(chart.properties(**ACROSS), rows=rows),
        ["visit", "AUROC", "at least", "at most"],
        [[str(visit), *(f"{number:.3f}" for number in own)] for visit, own in enumerate(areas)],
    )


def _inside(values: Any) -> Any:
    """Return a scale a little wider than the values."""
    low, high = min(values), max(values)
    margin = _MARGIN * (high - low) or 0.5 * max(abs(low), 1e-3)
    return altair().Scale(domain=[low - margin, high + margin], nice=False, zero=False)


def _whole(numbers: Sequence[int], title: str) -> Any:
    """Return an axis that names whole numbers alone."""
    return altair().Axis(title=title, format="d", tickMinStep=1, tickCount=min(len(numbers), 10))
