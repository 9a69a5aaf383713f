"""Which classes carry wrong labels, and which are taken for which.

noise rate_c       mean of 1 − p_clean_i over the samples of class c, by the canaries
confused(g, s)     #{i removed : given_i = g, suggested_i = s}
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gradmimic.report.charts.chart import (
    BLUE,
    INK,
    ORANGE,
    Chart,
    altair,
    spec_of,
    table,
)
from gradmimic.report.numbers import Interval, percent

_MOST_CLASSES = 30  # bars
_MOST_CELLS = 16  # classes of a heat map; of more the pairs are listed
_MOST_PAIRS = 25
_MOST_ROWS = 500  # of the table
_ROW = 20  # pixels
_LABEL = 120  # pixels of a class's name


def class_chart(
    rates: Mapping[str, Interval], known: Mapping[str, float] | None = None
) -> Chart | None:
    """Draw the noise rate of each class with its interval, the noisiest first.

    Args:
        rates: for each class the share of its samples that are expected to be bad, in [0, 1];
            lower is better.
        known: the true shares, where they are known.

    Returns:
        The chart, None where there are fewer than two classes.
    """
    if len(rates) < 2:
        return None
    alt = altair()
    order = sorted(rates, key=lambda name: (-rates[name].value, name))
    drawn = order[:_MOST_CLASSES]
    rows = [
        {"class": name, **rates[name]._asdict()}
        | ({} if known is None else {"known": known.get(name)})
        for name in drawn
    ]
    base = alt.Chart(table("rows")).encode(
        y=alt.Y(
            "class:N",
            title=None,
            sort=None,
            scale=alt.Scale(domain=drawn),
            axis=alt.Axis(labelLimit=_LABEL),
        ),
        tooltip=[
            "class:N",
            *(
                alt.Tooltip(f"{field}:Q", title=title, format=".1%")
                for field, title in (("value", "estimated"), ("low", "at least"), ("high", "most"))
            ),
            *([] if known is None else [alt.Tooltip("known:Q", format=".1%")]),
        ],
    )
    x = alt.X(
        "low:Q",
        title="share of wrong labels",
        axis=alt.Axis(format="%", tickCount=5),
        scale=alt.Scale(domain=[0, 1]),
    )
    layers = [
        base.mark_rule(color=BLUE, strokeWidth=3, opacity=0.45).encode(x=x, x2="high:Q"),
        base.mark_point(color=BLUE, filled=True, size=60, opacity=1).encode(x="value:Q"),
    ]
    if known is not None:
        layers.append(
            base.mark_tick(color=ORANGE, thickness=3, size=14, opacity=1).encode(x="known:Q")
        )
    caption = (
        "The share of each class’s labels that are likely wrong, by what the canaries score, with "
        "its interval."
    )
    if known is not None:
        caption += " The orange strokes are the shares that are known."
    if len(order) > len(drawn):
        caption += f" The {len(drawn)} noisiest of {len(order)} classes."
    best, worst = order[-1], order[0]
    columns = ["class", "estimated", "at least", "at most"]
    return Chart(
        "classes",
        "Noise by class",
        f"Estimated share of wrong labels of {len(order)} classes: highest for {worst} with "
        f"{percent(rates[worst].value)}, lowest for {best} with {percent(rates[best].value)}.",
        caption,
        spec_of(
            alt.layer(*layers).properties(width="container", height=_ROW * len(drawn)), rows=rows
        ),
        columns if known is None else [*columns, "known"],
        [
            [
                name,
                *map(percent, rates[name]),
                *([] if known is None else [percent(known[name]) if name in known else "–"]),
            ]
            for name in order[:_MOST_ROWS]
        ],
    )


def confusion_chart(
    classes: Sequence[str],
    given: npt.NDArray[np.integer[Any]],
    suggested: npt.NDArray[np.integer[Any]],
    removed: npt.NDArray[np.bool_],
) -> Chart | None:
    """Draw which class is taken for which among the removed samples.

    Args:
        classes: the names.
        given: ``[n]``, the number of the class that each sample was given.
        suggested: ``[n]``, that the reference would give it.
        removed: ``[n]``, which samples the selection does not keep.

    Returns:
        The chart: a heat map of up to 16 classes, else bars of the most frequent pairs. None where
        no removed sample would get another class.
    """
    counts: dict[tuple[int, int], int] = {}
    other = removed & (given != suggested)
    pairs, frequent = np.unique(
        np.stack([given[other], suggested[other]], 1), axis=0, return_counts=True
    )  # [p, 2], [p]
    for (g, s), count in zip(pairs.tolist(), frequent.tolist(), strict=True):
        counts[g, s] = count
    if not counts:
        return None
    order = sorted(counts, key=lambda pair: (-counts[pair], pair))
    (g, s), total = order[0], sum(counts.values())
    rows = [
        {"given": classes[a], "suggested": classes[b], "samples": counts[a, b]} for a, b in order
    ]
    small = len(classes) <= _MOST_CELLS
    caption = (
        f"Of {int(removed.sum()):,} removed samples, {total:,} would get another label from the "
        "reference: the label given, and the label suggested."
    )
    if not small and len(order) > _MOST_PAIRS:
        caption += f" The {_MOST_PAIRS} most frequent of {len(order):,} pairs."
    return Chart(
        "confusion",
        "Which class is confused with which",
        f"{total:,} removed samples would get another label; most often {classes[g]} is given "
        f"where {classes[s]} is suggested, {counts[g, s]:,} times.",
        caption,
        _heat(rows, classes) if small else _bars(rows[:_MOST_PAIRS]),
        ["given", "suggested", "samples"],
        [
            [row["given"], row["suggested"], f"{row['samples']:,}"]  # type: ignore[list-item]
            for row in rows[:_MOST_ROWS]
        ],
    )


def _heat(rows: Sequence[Mapping[str, Any]], classes: Sequence[str]) -> dict[str, Any]:
    alt = altair()
    present = {row[side] for row in rows for side in ("given", "suggested")}
    scale = alt.Scale(domain=[name for name in classes if name in present])
    most = max(row["samples"] for row in rows)
    angle = 0 if max(map(len, present)) <= 2 else -45
    tooltip = ["given:N", "suggested:N", alt.Tooltip("samples:Q", format=",")]
    cells = (
        alt.Chart(table("rows"))
        .mark_rect(color=ORANGE)
        .encode(
            x=alt.X(
                "suggested:N",
                sort=None,
                scale=scale,
                axis=alt.Axis(labelAngle=angle, labelLimit=_LABEL, title="suggested"),
            ),
            y=alt.Y(
                "given:N",
                sort=None,
                scale=scale,
                axis=alt.Axis(labelLimit=_LABEL, title="given"),
            ),
            opacity=alt.Opacity(
                "samples:Q",
                scale=alt.Scale(domain=[0, most], range=[0.06, 0.85]),
                legend=None,
            ),
            tooltip=tooltip,
        )
    )
    text = (
        alt.Chart(table("rows"))
        .mark_text(color=INK, fontSize=10)
        .encode(
            x=alt.X("suggested:N", sort=None),
            y=alt.Y("given:N", sort=None),
            text=alt.Text("samples:Q", format=".2~s" if most > 999 else "d"),
            tooltip=tooltip,
        )
    )
    height = (_ROW + 4) * len(scale.domain)
    return spec_of(alt.layer(cells, text).properties(width="container", height=height), rows=rows)


def _bars(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    alt = altair()
    pairs = [{**row, "pair": f"{row['given']} → {row['suggested']}"} for row in rows]
    chart = (
        alt.Chart(table("rows"))
        .mark_bar(color=ORANGE, opacity=0.75)
        .encode(
            x=alt.X("samples:Q", axis=alt.Axis(tickMinStep=1, format=",d")),
            y=alt.Y("pair:N", sort=None, title=None, axis=alt.Axis(labelLimit=2 * _LABEL)),
            tooltip=["given:N", "suggested:N", alt.Tooltip("samples:Q", format=",")],
        )
    )
    return spec_of(chart.properties(width="container", height=_ROW * len(pairs)), rows=pairs)
