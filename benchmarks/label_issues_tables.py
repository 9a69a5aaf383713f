"""Tables and verdicts of label_issues.py, from medians over seeds.

A row of a table is a method, a column a case, and a cell "AUROC / average precision / F1".
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from label_issues_methods import TOLD

from gradmimic.extras import import_extra

Row = dict[str, Any]
FIGURES = (
    "wrong", "flagged", "precision", "recall", "f1", "auroc", "average_precision",
    "cpu_seconds", "seconds", "peak_mib",
)  # fmt: skip
QUALITY = ("auroc", "average_precision", "f1")
GOALS = ("average_precision", "f1")
# What the goal without trusted rows names.
NAMED = tuple(
    f"cleanlab, cross-validated{strength}: {name}"
    for strength in ("", ", C = 1")
    for name in ("default", "confident learning")
)


def medians(rows: Sequence[Row]) -> list[Row]:
    """Take medians over seeds, in the order of the rows."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["case"], row["method"]), []).append(row)
    return [
        {
            **{key: own[0][key] for key in ("data", "case", "method", "trusted")},
            "seeds": len(own),
            **{name: _median([row[name] for row in own]) for name in FIGURES},
            "estimate": _estimate([row["estimate"] for row in own]),
            "f1_range": [min(row["f1"] for row in own), max(row["f1"] for row in own)],
        }
        for own in found.values()
    ]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _estimate(values: Sequence[Sequence[float] | None]) -> list[float] | None:
    known = [value for value in values if value is not None]
    return [statistics.median(column) for column in zip(*known, strict=True)] if known else None


def markdown(rows: Sequence[Row], data: str) -> str:
    """Lay out the quality of one data set, and the largest CPU seconds and memory of its cases."""
    own = [row for row in rows if row["data"] == data]
    cases = list(dict.fromkeys(row["case"] for row in own))
    lines = []
    for method in dict.fromkeys(row["method"] for row in own):
        here = {row["case"]: row for row in own if row["method"] == method}
        cpu = max(row["cpu_seconds"] for row in here.values())
        peak = max(row["peak_mib"] for row in here.values())
        lines.append([method, *(_cell(here.get(c)) for c in cases), f"{cpu:.1f}", f"{peak:.0f}"])
    headings = [data, *(case.removeprefix(f"{data}, ") for case in cases), "CPU s", "MiB"]
    return _github(lines, headings)


def _cell(row: Row | None) -> str:
    """Write AUROC, average precision and F1; where no label is wrong, what is flagged."""
    if row is None:
        return ""
    if not row["wrong"]:
        return f"{row['flagged']:.1%} flagged"
    return " / ".join(_figure(row[name]) for name in QUALITY)


def verdicts(rows: Sequence[Row]) -> Iterator[Row]:
    """Say for each case, number of trusted rows and goal whether ours is the best.

    Rivals are all methods with as many trusted rows or fewer, but those that are told the rate:
    these stand beside. Without trusted rows, those that the goal names, and all others beside.
    """
    for own in rows:
        if not own["method"].startswith("ours") or not own["wrong"]:
            continue
        others = [
            row
            for row in rows
            if row["case"] == own["case"]
            and not row["method"].startswith("ours")
            and row["trusted"] <= own["trusted"]
        ]
        rivals = [row for row in others if TOLD not in row["method"]]
        goal = rivals if own["trusted"] else [row for row in rivals if row["method"] in NAMED]
        for name in GOALS:
            yield {
                "case": own["case"], "trusted": own["trusted"], "figure": name, "ours": own[name],
                **_best(goal, name, "rival"),
                "met": own[name] >= max((row[name] for row in goal), default=0.0),
                **_best(others, name, "any"),
            }  # fmt: skip


def _best(rows: Sequence[Row], name: str, key: str) -> Row:
    best = max(rows, key=lambda row: row[name], default=None)
    return {key: best and best["method"], f"{key}_value": best and best[name]}


def goals(judged: Sequence[Row]) -> str:
    """Lay out verdicts: ours, the best rival that counts, and the best of all others beside."""
    lines = [
        [
            verdict["case"], f"{verdict['trusted']:,}", verdict["figure"].replace("_", " "),
            _figure(verdict["ours"]), f"{_figure(verdict['rival_value'])} {verdict['rival']}",
            "met" if verdict["met"] else "**not met**",
            f"{_figure(verdict['any_value'])} {verdict['any']}",
        ]
        for verdict in judged
    ]  # fmt: skip
    headings = ["case", "trusted", "figure", "ours", "best rival", "goal", "best of all others"]
    return _github(lines, headings)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}".removeprefix("0")


def _github(lines: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    tabulate = import_extra("tabulate", "reproduce")
    return f"{tabulate.tabulate(lines, headings, tablefmt='github', disable_numparse=True)}\n"
