"""What measured engines look like in a terminal and in files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from gradmimic.atomic import atomic_write
from gradmimic.bench.abilities import table
from gradmimic.bench.engines import Row
from gradmimic.bench.page import HEADINGS, by_model, cells, title


def print_abilities() -> None:
    """Print what each engine can do."""
    rows = table()
    shown = Table(*(Column(heading, overflow="fold") for heading in rows[0]))
    for row in rows:
        shown.add_row(*map(Text, row.values()))
    Console().print(shown)


def print_rows(rows: Sequence[Row]) -> None:
    """Print a table for each model."""
    console = Console()
    for name, own in by_model(rows).items():
        right = (Column(heading, justify="right", overflow="fold") for heading in HEADINGS[1:])
        shown = Table(HEADINGS[0], *right, title=Text(title(name, own)), title_justify="left")
        for row in own:
            shown.add_row(*map(Text, cells(row)))
        console.print(shown)


def write_json(path: Path, rows: Sequence[Row], machine: Mapping[str, Any]) -> None:
    """Write what was measured, what the engines can do, and on what machine."""
    content = {
        "machine": dict(machine),
        "abilities": table(),
        "results": [row.as_json() for row in rows],
    }
    write(path, json.dumps(content, indent=2) + "\n")


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(text.encode())
