"""What a command of ``gradmimic reproduce`` shows: tables, pictures, and sentences about both."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gradmimic.reproduce.cells import Cell, Values
from gradmimic.reproduce.tables import Table

Rows = Sequence[tuple[Cell, Values]]  # every cell with what it came to


class Report(NamedTuple):
    """What all cells came to.

    Attributes:
        tables: the figures.
        charts: the pictures by name, for ``plots.save``.
        told: what the figures say, a sentence each.
    """

    tables: Sequence[Table]
    charts: Mapping[str, Any]
    told: Sequence[str]
