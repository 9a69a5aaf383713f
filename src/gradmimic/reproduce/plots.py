"""Pictures of tables, drawn by Altair and saved without a browser or a network.

    points (plain data: x, y, low, high, name, panel)  →  chart  →  .svg or .png

The paper is white whatever surrounds it, so that a picture is readable on light and on dark pages.
Names come from data; they are values of a chart, never parts of its formulas.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradmimic.errors import ConfigError
from gradmimic.extras import import_extra

Point = Mapping[str, Any]

# Okabe and Ito's colours, told apart with every kind of colour vision, on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#000000")
_OTHERS = "#b8bcc2"
_INK, _SOFT, _GRID = "#1f2328", "#57606a", "#e4e7eb"
_WIDTH, _HEIGHT, _PER_ROW = 300, 210, 3
_FORMATS = (".svg", ".png")


def lines(points: Sequence[Point], *, title: str, x: str, y: str, told_apart: Sequence[str]) -> Any:
    """Draw a line for each ``name``, with a band from ``low`` to ``high``, in a box each ``panel``.

    Args:
        points: with ``x`` (a number), ``y``, ``low``, ``high``, ``name`` and ``panel``.
        title: of the picture.
        x: title of the axis.
        y: title of the axis.
        told_apart: the names that get a colour each, at most seven; the others are grey together.

    Returns:
        An ``altair`` chart, for :func:`save`.
    """
    alt = import_extra("altair", "report")
    shown = [{**p, "told": p["name"] if p["name"] in told_apart else "others"} for p in points]
    names = [name for name in told_apart if any(p["told"] == name for p in shown)]
    colours = list(COLOURS[: len(names)])
    if any(p["told"] == "others" for p in shown):
        names, colours = ["others", *names], [_OTHERS, *colours]
    base = alt.Chart().encode(
        x=alt.X("x:Q", title=x, scale=alt.Scale(zero=False, nice=False, padding=6)),
        color=alt.Color("told:N", title=None, scale=alt.Scale(domain=names, range=colours)),
        detail="name:N",
    )
    coloured = alt.datum.told != "others"
    line = alt.Y("y:Q", title=y, scale=alt.Scale(zero=False))
    band = base.transform_filter(coloured).mark_area(opacity=0.15)
    layers = alt.layer(
        base.transform_filter(~coloured).mark_line(strokeWidth=1).encode(y=line),
        band.encode(y=alt.Y("low:Q", title=y), y2="high:Q"),
        base.transform_filter(coloured).mark_line(strokeWidth=2).encode(y=line),
    )
    return _panels(alt, layers, shown, title)


def dots(points: Sequence[Point], *, title: str, x: str, group: str) -> Any:
    """Draw a dot for each ``name`` and ``group``, with a bar from ``low`` to ``high``.

    Args:
        points: with ``x``, ``low``, ``high``, ``name``, ``group`` and ``panel``.
        title: of the picture.
        x: title of the axis.
        group: what colours tell apart; at most seven of them.

    Returns:
        An ``altair`` chart, for :func:`save`.
    """
    alt = import_extra("altair", "report")
    groups = list(dict.fromkeys(str(p["group"]) for p in points))
    shown = [{**p, "group": str(p["group"])} for p in points]
    height = max(_HEIGHT, 15 * len({p["name"] for p in shown}))
    base = alt.Chart(height=height).encode(
        y=alt.Y("name:N", title=None, sort=None, axis=alt.Axis(grid=True)),
        color=alt.Color(
            "group:N", title=group, scale=alt.Scale(domain=groups, range=COLOURS[: len(groups)])
        ),
    )
    axis = alt.Scale(zero=False, padding=8)
    layers = alt.layer(
        base.mark_rule(strokeWidth=1.5).encode(x=alt.X("low:Q", title=x, scale=axis), x2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(
            x=alt.X("x:Q", title=x, scale=axis),
            shape=alt.Shape("group:N", title=group, scale=alt.Scale(domain=groups)),
        ),
    )
    return _panels(alt, layers, shown, title)


def against(points: Sequence[Point], *, title: str, x: str, y: str) -> Any:
    """Draw points with a bar from ``low`` to ``high``, and the diagonal where x and y agree.

    Args:
        points: with ``x``, ``y``, ``low`` and ``high``, all in [0, 1], ``name`` and ``panel``.
        title: of the picture.
        x: title of the axis.
        y: title of the axis.

    Returns:
        An ``altair`` chart, for :func:`save`.
    """
    alt = import_extra("altair", "report")
    names = list(dict.fromkeys(p["name"] for p in points))
    unit = alt.Scale(domain=[0, 1])
    base = alt.Chart(width=_HEIGHT, height=_HEIGHT).encode(
        x=alt.X("x:Q", title=x, scale=unit),
        color=alt.Color(
            "name:N", title=None, scale=alt.Scale(domain=names, range=COLOURS[: len(names)])
        ),
    )
    y_axis = alt.Y("y:Q", title=y, scale=unit)
    corners = [{"x": 0, "y": 0}, {"x": 1, "y": 1}]
    diagonal = alt.Chart(alt.Data(values=corners)).mark_line(color=_SOFT, strokeDash=[4, 3])
    layers = alt.layer(
        base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(
            y=alt.Y("low:Q", title=y, scale=unit), y2="high:Q"
        ),
        base.mark_point(filled=True, size=40, opacity=1).encode(
            y=y_axis, shape=alt.Shape("name:N", title=None, scale=alt.Scale(domain=names))
        ),
        diagonal.encode(x=alt.X("x:Q", scale=unit), y=alt.Y("y:Q", scale=unit)),
    )
    return _panels(alt, layers, [dict(p) for p in points], title)


def save(chart: Any, path: Path) -> Path:
    """Save a chart as a picture, by vl-convert.

    Args:
        chart: an ``altair`` chart.
        path: its file, ``.svg`` or ``.png``.

    Returns:
        The path.

    Raises:
        ConfigError: another ending.
        MissingExtraError: vl-convert is not installed.
    """
    if path.suffix not in _FORMATS:
        raise ConfigError(f"expected a picture ending in .svg or .png, got {path.name!r}.")
    import_extra("vl_convert", "report")
    path.parent.mkdir(parents=True, exist_ok=True)
    chart.save(str(path), **({"ppi": 144} if path.suffix == ".png" else {}))
    return path


def _panels(alt: Any, layers: Any, points: list[dict[str, Any]], title: str) -> Any:
    """Put a chart into a box for each panel, on white paper."""
    panels = list(dict.fromkeys(str(p["panel"]) for p in points))
    data = alt.Data(values=[{**p, "panel": str(p["panel"])} for p in points])
    chart = layers.properties(data=data)
    if len(panels) > 1:
        chart = layers.facet(
            facet=alt.Facet("panel:N", title=None, sort=panels), columns=_PER_ROW, data=data
        ).resolve_scale(y="shared")
    return (
        chart.properties(title=title, background="#ffffff", padding=12)
        .configure(font="sans-serif")
        .configure_view(stroke=None, continuousWidth=_WIDTH, continuousHeight=_HEIGHT)
        .configure_axis(
            labelColor=_INK, titleColor=_INK, gridColor=_GRID, domainColor=_SOFT, tickColor=_SOFT,
            titleFontWeight="normal",
        )
        .configure_title(color=_INK, anchor="start", fontSize=13)
        .configure_legend(labelColor=_INK, titleColor=_INK, orient="right", symbolOpacity=1)
        .configure_header(labelColor=_INK, labelFontSize=12)
    )  # fmt: skip
