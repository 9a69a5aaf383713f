"""One chart of a page: a Vega-Lite specification, and the same numbers as words and as a table.

Ink is ``currentColor``, which follows the page into light and dark mode; fonts and the strength of
lines are the same in all charts and stand in ``charts.js``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradmimic.extras import import_extra
from gradmimic.report.charts.threshold import Thresholds
from gradmimic.report.grids import Grid, cells_of
from gradmimic.report.inline import json_block

# Okabe and Ito's colours, told apart with every kind of colour vision, on white and on near-black.
BLUE, ORANGE, GREEN = "#0085c7", "#e8710a", "#009e73"
INK = "currentColor"
DASH = [5, 4]
ONE = "one"  # the table of one row, for what is drawn once
ACROSS = {"width": "container", "height": 220}  # as wide as the page allows


@dataclass(frozen=True)
class Chart:
    """A chart with its text alternative.

    Args:
        name: letters and hyphens, unique in its page; ours, never from data.
        title: its heading.
        summary: what it shows, in a sentence, for those who do not see it.
        caption: how to read it.
        spec: the Vega-Lite specification, with its data.
        columns: the head of the table of its numbers.
        rows: as many cells each.
        thresholds: where it can be moved, what each position removes.
    """

    name: str
    title: str
    summary: str
    caption: str
    spec: Mapping[str, Any]
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    thresholds: Thresholds | None = None


def altair() -> Any:
    """Return the library that builds specifications.

    Raises:
        MissingExtraError: it is not installed.
    """
    return import_extra("altair", "report")


def table(name: str) -> Any:
    """Return what stands for one of a chart's tables, which ``spec_of`` takes."""
    return altair().NamedData(name=name)


def spec_of(chart: Any, **tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a chart's specification, checked, with its tables and without Altair's own style.

    Args:
        chart: a chart of Altair's.
        tables: the rows of each ``table(name)`` in it.
    """
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)
    found = {name: list(rows) for name, rows in tables.items()}
    return {**spec, "datasets": {**found, ONE: [{}]}}


def shown_chart(chart: Chart) -> dict[str, Any]:
    """Return a chart as the templates ask for it."""
    own = chart.thresholds
    return {
        "name": chart.name,
        "title": chart.title,
        "summary": chart.summary,
        "caption": chart.caption,
        "spec": json_block(f"spec-{chart.name}", chart.spec),
        "table": cells_of(Grid("", "", chart.columns, chart.rows)),
        "thresholds": own and json_block(f"thresholds-{chart.name}", own.as_dict()),
        "steps": own and len(own.at) - 1,
        "start": own and own.start,
        "at": own and own.selects and repr(own.at[own.start]),
        "said": own and own.said(own.start),
    }
