"""The tables of the CLIP benchmark, from its rows of figures: mean ± deviation over the seeds."""

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

Row = dict[str, Any]
Figure = Callable[[Row], float]
CLEAN = ("held out", "own captions", "correct")


def tables(results: Sequence[Row]) -> Iterator[Table]:
    """Yield all tables."""
    yield retrieval(results)
    yield detection(results)
    yield steps(results)
    yield selected(results)


def retrieval(results: Sequence[Row]) -> Table:
    """R@10 at its best and at the end."""
    columns: dict[str, Figure] = {
        "best": lambda row: 100 * max(row["recall"]),
        "last": lambda row: 100 * row["recall"][-1],
    }
    return _table("R@10, %", results, _named(results), columns, 1)


def detection(results: Sequence[Row]) -> Table:
    """AUROC of whatever tells swapped pairs from the others."""
    lines: dict[str, tuple[str, list[Row]]] = {}
    for name, rows in _named(results).items():
        keys = [key for key in rows[0] if key.endswith("auroc")]
        for key in keys:
            lines[f"{name}: {key.removesuffix('auroc').strip('_') or 'mimic'}"] = (key, rows)
    table = Table("AUROC", *_heads(results, ("",)))
    for name, (key, rows) in lines.items():
        table.add_row(name, *_cells(rows, _of(key), 3))
    return table


def steps(results: Sequence[Row]) -> Table:
    """Share of the plain run's steps to its final loss on clean pairs, and to its best."""
    plain = {_cell(row): row["losses"] for row in results if row["what"] == "plain"}

    def reached(clean: str) -> Figure:
        return lambda row: 100 * reaches(row, plain[_cell(row)][clean][-1], clean)

    def best(row: Row) -> float:
        own = plain[_cell(row)]["held out"]
        steps_of_plain = row["steps"][own.index(min(own))] / row["steps"][-1]
        return 100 * reaches(row, min(own), "held out") / float(steps_of_plain)

    named = {n: rows for n, rows in _named(results).items() if rows[0]["what"] != "reference"}
    columns = {clean: reached(clean) for clean in CLEAN} | {"held out, plain's best": best}
    return _table("% of plain's steps to its loss", results, named, columns, 0)


def selected(results: Sequence[Row]) -> Table:
    """What was selected of the 500 pairs."""
    named = {name: rows for name, rows in _named(results).items() if "kept" in rows[0]}
    columns: dict[str, Figure] = {
        "kept": lambda row: row["kept"],
        "of them swapped": lambda row: row["kept_wrong"],
    }
    return _table("pairs selected", results, named, columns, 0)


def reaches(row: Row, loss: float, clean: str) -> float:
    """Return the share of the steps to a loss on clean pairs; NaN where it is not reached."""
    for step, own in zip(row["steps"], row["losses"][clean], strict=True):
        if own <= loss:
            return float(step / row["steps"][-1])
    return math.nan


def mean_and_deviation(values: Sequence[float], digits: int) -> str:
    """Write both; where some runs never got there, how many did."""
    there = [value for value in values if not math.isnan(value)]
    if len(there) < len(values):
        return f"{len(there)} of {len(values)}"
    spread = statistics.stdev(there) if len(there) > 1 else 0.0
    return f"{statistics.mean(there):.{digits}f} ± {spread:.{digits}f}"


def _table(
    title: str,
    results: Sequence[Row],
    named: Mapping[str, Sequence[Row]],
    columns: Mapping[str, Figure],
    digits: int,
) -> Table:
    table = Table(title, *_heads(results, list(columns)))
    for name, rows in named.items():
        cells = [cell for of in columns.values() for cell in _cells(rows, of, digits)]
        table.add_row(name, *cells)
    return table


def _heads(results: Sequence[Row], columns: Sequence[str]) -> list[str]:
    return [f"{column} {share:.0%}".strip() for column in columns for share in _shares(results)]


def _cells(rows: Sequence[Row], of: Figure, digits: int) -> list[str]:
    shares = _shares(rows)
    return [
        mean_and_deviation([of(row) for row in rows if row["share"] == share], digits)
        for share in shares
    ]


def _shares(results: Sequence[Row]) -> list[float]:
    return sorted({row["share"] for row in results})


def _of(key: str) -> Figure:
    return lambda row: float(row[key])


def _cell(row: Row) -> tuple[float, int]:
    return row["share"], row["seed"]


def _named(results: Sequence[Row]) -> dict[str, list[Row]]:
    """Return rows by what was done, and toward which reference."""
    named: dict[str, list[Row]] = {}
    for row in results:
        tau = f", τ {row['temperature']}" if "temperature" in row else ""
        way = f" ({row['way']}{tau})" if row["way"] else ""
        named.setdefault(row["what"] + way, []).append(row)
    return named
