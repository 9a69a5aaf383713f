"""Cells of a table: each is what one configuration came to, computed once and kept as a file.

    <folder>/cells/<hash of the configuration>.json     {"cell": {…}, "values": {…}}

A table that was stopped anywhere goes on where it was; one that asks for more computes the rest.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradmimic.atomic import atomic_write

Cell = Mapping[str, Any]  # plain data: text, numbers, None, lists and mappings of them
Values = Mapping[str, Any]


def key_of(cell: Cell) -> str:
    """Return the hash of a configuration, whatever the order of its keys.

    Example:
        >>> key_of({"noise": 0.4, "seed": 0}) == key_of({"seed": 0, "noise": 0.4})
        True
    """
    text = json.dumps(cell, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_cells(
    cells: Sequence[Cell],
    compute: Callable[[Cell], Values],
    folder: Path,
    on_cell: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Cell, Values]]:
    """Yield every cell with its values; those that are kept already are read.

    Args:
        cells: the configurations.
        compute: what a configuration comes to, as plain data.
        folder: where values are kept.
        on_cell: told after each.
    """
    kept = folder / "cells"
    kept.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        path = kept / f"{key_of(cell)}.json"
        values = _read(path, cell)
        if values is None:
            values = compute(cell)
            with atomic_write(path) as file:
                file.write(json.dumps({"cell": cell, "values": values}, indent=1).encode())
        on_cell()
        yield cell, values


def _read(path: Path, cell: Cell) -> Values | None:
    """Return what is kept of a cell; None where there is nothing, or no whole file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return found["values"] if found["cell"] == json.loads(json.dumps(cell)) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
