"""Tables of words and numbers in a report."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_NUMBER = re.compile("[-+−–0-9.,%\N{NO-BREAK SPACE}]*")


@dataclass(frozen=True)
class Grid:
    """A table of words and numbers.

    Args:
        title: its heading.
        remark: how to read it.
        columns: the head.
        rows: as many cells each, the first one a name.
    """

    title: str
    remark: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def cells_of(grid: Grid) -> dict[str, Any]:
    """Tell words from numbers, which stand to the right."""
    rows = [
        (row[0], [(cell, _NUMBER.fullmatch(cell) is not None) for cell in row[1:]])
        for row in grid.rows
    ]
    kinds = zip(*([number for _, number in cells] for _, cells in rows), strict=True)
    columns = list(zip(grid.columns, [False, *map(all, kinds)], strict=True))
    return {"title": grid.title, "remark": grid.remark, "columns": columns, "rows": rows}
