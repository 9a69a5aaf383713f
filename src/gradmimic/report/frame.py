"""What the pages of all tasks have around their samples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradmimic.extras import import_extra
from gradmimic.report.grids import Grid, cells_of
from gradmimic.report.numbers import Metric
from gradmimic.report.page import setting


@dataclass(frozen=True)
class Frame:
    """All of a page but the samples.

    Args:
        title: the run's name.
        verdict: what came of it, in a sentence or two.
        tiles: the headline numbers: label, number, remark.
        notes: warnings that the reader must know of.
        figures: ``<svg>`` elements of ours, each with its caption.
        grids: tables.
        metrics: rows of the table of metrics.
        config: the resolved configuration, key → value.
        versions: library → version.
    """

    title: str
    verdict: str
    tiles: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()
    figures: Sequence[tuple[str, str]] = ()
    grids: Sequence[Grid] = ()
    metrics: Sequence[Metric] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def shown(self) -> dict[str, Any]:
        """Return it as the templates ask for it.

        Raises:
            MissingExtraError: jinja2 is not installed.
        """
        markup = import_extra("markupsafe", "report").Markup
        return {
            "title": self.title,
            "verdict": self.verdict,
            "tiles": self.tiles,
            "notes": self.notes,
            "figures": [(markup(svg), caption) for svg, caption in self.figures if svg],
            "grids": [cells_of(grid) for grid in self.grids if grid.rows],
            "metrics": [(row.name, row.printed, row.meaning) for row in self.metrics],
            "config": [(key, setting(value)) for key, value in self.config.items()],
            "versions": list(self.versions.items()),
        }
