"""Tables of figures over seeds, as Markdown, as CSV and in a terminal.

    x̄ = (1/n) Σ_s x_s,   deviation = √( Σ_s (x_s − x̄)² / (n − 1) )     over the n seeds s of a place

A record is one figure of one training; a table is what all records of a place come to.
"""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gradmimic.atomic import atomic_write
from gradmimic.errors import DataError
from gradmimic.extras import import_extra

if TYPE_CHECKING:
    from rich.table import Table as Shown

Record = Mapping[str, Any]


class Mean(NamedTuple):
    """What several seeds came to.

    Attributes:
        value: their mean.
        deviation: their standard deviation; None for one seed.
        seeds: how many there were.
    """

    value: float
    deviation: float | None
    seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        """Average figures ``[n]``, n ≥ 1.

        Example:
            >>> Mean.of([1.0, 2.0, 3.0])
            Mean(value=2.0, deviation=1.0, seeds=3)
        """
        spread = statistics.stdev(values) if len(values) > 1 else None
        return cls(statistics.fmean(values), spread, len(values))


@dataclass(frozen=True)
class Table:
    """Means by row and column.

    Attributes:
        title: what the figures are, with their unit.
        keys: headings of what names a row.
        columns: headings of the figures.
        rows: by what names a row, a mean for each column; None where there is none.
        scale: what figures are multiplied by where they are shown, say 100 for percents.
        digits: after the point, where they are shown.
    """

    title: str
    keys: tuple[str, ...]
    columns: tuple[str, ...]
    rows: Mapping[tuple[str, ...], tuple[Mean | None, ...]]
    scale: float = 1.0
    digits: int = 3

    def headings(self) -> list[str]:
        """Return the headings of all columns."""
        return [*self.keys, *self.columns]

    def lines(self) -> list[list[str]]:
        """Return every row as it is shown."""
        return [
            [*names, *(self._shown(mean) for mean in means)] for names, means in self.rows.items()
        ]

    def points(self) -> list[dict[str, Any]]:
        """Return every mean as plain data: its place, ``value``, ``low``, ``high`` and ``seeds``.

        ``low`` and ``high`` are one standard deviation away; scaled as shown.
        """
        found = []
        for names, column, mean in self.means():
            half = self.scale * (mean.deviation or 0.0)
            value = self.scale * mean.value
            found.append(
                {
                    **dict(zip(self.keys, names, strict=True)),
                    "column": column,
                    "value": value,
                    "low": value - half,
                    "high": value + half,
                    "seeds": mean.seeds,
                }
            )
        return found

    def markdown(self) -> str:
        """Return title and table as Markdown, with a newline at its end."""
        tabulate = import_extra("tabulate", "reproduce")
        text = tabulate.tabulate(
            [list(map(_plain, line)) for line in self.lines()],
            list(map(_plain, self.headings())),
            tablefmt="github",
            disable_numparse=True,
        )
        return f"**{_plain(self.title)}**\n\n{text}\n"

    def shown(self) -> "Shown":
        """Return the table for a terminal."""
        from rich.table import Column
        from rich.table import Table as Shown
        from rich.text import Text

        right = [Column(Text(name), justify="right", overflow="fold") for name in self.columns]
        left = [Column(Text(name), overflow="fold") for name in self.keys]
        table = Shown(*left, *right, title=Text(self.title), title_justify="left")
        for line in self.lines():
            table.add_row(*map(Text, line))
        return table

    def means(self) -> Iterator[tuple[tuple[str, ...], str, Mean]]:
        """Yield what there is: the names of its row, its column, the mean."""
        for names, means in self.rows.items():
            for column, mean in zip(self.columns, means, strict=True):
                if mean is not None:
                    yield names, column, mean

    def _shown(self, mean: Mean | None) -> str:
        if mean is None:
            return ""
        text = f"{self.scale * mean.value:.{self.digits}f}"
        if mean.deviation is None:
            return text
        return f"{text} ± {self.scale * mean.deviation:.{self.digits}f}"


def pivot(
    records: Iterable[Record],
    title: str,
    *,
    rows: Sequence[str],
    column: str,
    value: str = "value",
    scale: float = 1.0,
    digits: int = 3,
) -> Table:
    """Lay out records as a table, averaged over all that agree on row and column.

    Args:
        records: each with all of ``rows``, ``column`` and ``value``; a value of None is no figure.
        title: of the table.
        rows: keys whose values name a row.
        column: the key whose value names a column.
        value: the key of the figure.
        scale: as of :class:`Table`.
        digits: as of :class:`Table`.

    Returns:
        Rows and columns in the order in which the records bring them.

    Raises:
        DataError: there are no records.

    Example:
        >>> records = [{"noise": 0.4, "method": "plain", "value": x} for x in (0.7, 0.9)]
        >>> print(pivot(records, "accuracy", rows=["noise"], column="method").markdown())
        **accuracy**
        <BLANKLINE>
        | noise   | plain         |
        |---------|---------------|
        | 0.4     | 0.800 ± 0.141 |
        <BLANKLINE>
    """
    found: dict[tuple[str, ...], dict[str, list[float]]] = {}
    columns: dict[str, None] = {}
    for record in records:
        name = str(record[column])
        columns.setdefault(name)
        own = found.setdefault(tuple(str(record[key]) for key in rows), {})
        if record[value] is not None:
            own.setdefault(name, []).append(float(record[value]))
    if not found:
        raise DataError(f"the table {title!r} has no figures; expected one record or more.")
    means = {
        names: tuple(Mean.of(own[name]) if name in own else None for name in columns)
        for names, own in found.items()
    }
    return Table(title, tuple(rows), tuple(columns), means, scale, digits)


def csv_text(tables: Sequence[Table]) -> str:
    """Return a line for each mean of all tables, unscaled and unrounded, under one of headings."""
    keys = dict.fromkeys(key for table in tables for key in table.keys)
    text = io.StringIO(newline="")
    names = ["table", *keys, "column", "mean", "deviation", "seeds"]
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    for table in tables:
        for row, column, mean in table.means():
            writer.writerow(
                {
                    "table": table.title,
                    **dict(zip(table.keys, row, strict=True)),
                    "column": column,
                    "mean": mean.value,
                    "deviation": mean.deviation,
                    "seeds": mean.seeds,
                }
            )
    return text.getvalue()


def write_tables(
    out: Path,
    name: str,
    tables: Sequence[Table],
    *,
    command: str,
    machine: Mapping[str, Any],
    told: Sequence[str] = (),
) -> dict[str, Path]:
    """Write tables as Markdown, CSV and JSON, each whole or not at all.

    Args:
        out: the folder.
        name: of the files.
        tables: what to write.
        command: that made them.
        machine: versions and hardware, for the JSON.
        told: sentences for the Markdown's end, and for the JSON.

    Returns:
        The files by what they are.
    """
    sentences = "".join(f"- {text}\n" for text in told)
    parts = [f"```sh\n{command}\n```\n", *(table.markdown() for table in tables)]
    content = {
        "command": command,
        "machine": dict(machine),
        "told": list(told),
        "tables": [{"title": table.title, "points": table.points()} for table in tables],
    }
    texts = {
        "Markdown": "\n".join([*parts, sentences] if told else parts),
        "CSV": csv_text(tables),
        "JSON": json.dumps(content, indent=1) + "\n",
    }
    endings = {"Markdown": "md", "CSV": "csv", "JSON": "json"}
    out.mkdir(parents=True, exist_ok=True)
    files = {}
    for what, text in texts.items():
        files[what] = out / f"{name}.{endings[what]}"
        with atomic_write(files[what]) as file:
            file.write(text.encode())
    return files


def _plain(text: str) -> str:
    """Return text that stays in its cell, and is no markup there."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
