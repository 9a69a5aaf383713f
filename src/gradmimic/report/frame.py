"""What the pages of all tasks hold, in the order in which they show it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradmimic.report.charts.chart import Chart, shown_chart
from gradmimic.report.gallery import Gallery, gallery_values
from gradmimic.report.grids import Grid, cells_of
from gradmimic.report.numbers import Metric, setting


@dataclass(frozen=True)
class Frame:
    """A page; what is empty or None is left out of it.

    Args:
        title: the run's name.
        verdict: what came of it, in a sentence or two.
        tiles: the headline numbers: label, number, remark.
        notes: warnings that the reader must know of.
        charts: charts; those that are None had nothing to show.
        gallery: samples to look through and to decide on.
        grids: tables.
        metrics: rows of the table of metrics.
        config: the resolved configuration, key → value.
        versions: library → version.
    """

    title: str
    verdict: str
    tiles: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    charts: Sequence[Chart | None] = ()
    gallery: Gallery | None = None
    grids: Sequence[Grid] = ()
    metrics: Sequence[Metric] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return it as the templates ask for it.

        Raises:
            MissingExtraError: jinja2, altair or vl-convert is not installed.
        """
        return {
            "title": self.title,
            "verdict": self.verdict,
            "tiles": self.tiles,
            "notes": self.notes,
            "charts": [shown_chart(chart) for chart in self.charts if chart is not None],
            "gallery_shown": None if self.gallery is None else gallery_values(self.gallery),
            "grids": [cells_of(grid) for grid in self.grids if grid.rows],
            "metrics": [(row.name, row.printed, row.meaning) for row in self.metrics],
            "config": [(key, setting(value)) for key, value in self.config.items()],
            "versions": list(self.versions.items()),
        }
