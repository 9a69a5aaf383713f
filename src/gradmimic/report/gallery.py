"""The gallery: samples to look through and to decide on, as columns of a page.

    lowest        the first k by (score, sample_id)
    highest       the last k
    borderline    the k of the smallest |score_i − t|, t the lowest score that is kept; where no
                  score divides kept from removed, of the smallest |p_clean_i − ½|

Every sample up to a limit is there by its numbers, so that searching and sorting find it; pictures
and texts only as far as their bytes allow, the ends first. The page says how many are shown.
Nothing here is trusted: the columns enter the page as JSON in which no text can close the element,
and the script writes them as text alone.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.report.inline import json_block
from gradmimic.report.numbers import short
from gradmimic.report.pictures import data_uri

MOST = 100_000  # samples on a page
END = 200  # samples at each end and at the border, which have a picture first
LOWEST = 1_000  # samples that have one next, from the lowest up
PICTURE_BYTES = 8_000_000  # of all pictures of a page together, as they stand in it
TEXT_BYTES = 6_000_000  # likewise of all texts
PLAIN = 50  # rows of the table that is read without JavaScript

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Arranged:
    """The rows of a selection that a page shows, lowest score first.

    Args:
        table: the selection's columns ``[m]``, by (score, sample_id).
        ends: for ``"lowest"``, ``"borderline"`` and ``"highest"`` the rows of ``table`` there.
        total: how many samples the selection has; more than ``m`` where they are too many.
        threshold: the lowest score that is kept, where nothing above it is removed.
    """

    table: pa.Table
    ends: Mapping[str, Rows]
    total: int
    threshold: float | None

    @property
    def wanted(self) -> list[int]:
        """Rows whose pictures are wanted, the most wanted first: in turns from each end."""
        ends = [rows.tolist() for rows in self.ends.values()]
        turns = (row for turn in zip_longest(*ends) for row in turn if row is not None)
        return list(dict.fromkeys(turns))


@dataclass(frozen=True, eq=False)
class Gallery:
    """The columns of a gallery; rows are those of ``arranged.table``, ``[m]``.

    Args:
        run: the run's name.
        log: names the score log, so that decisions are not taken for another one's.
        arranged: what ``arrange`` returned.
        classes: names of the classes.
        given: the class each sample was given, int ``[m]``, a place in ``classes``.
        suggested: the class that the reference would give it, likewise.
        true: its true class, where that is known.
        bad: which samples are known to be bad, bool ``[m]``; made of ``true`` where that is given.
        text: returns what is shown of a row's text.
        image: returns a row's encoded picture as it came; it is decoded and encoded anew.
        facts: more numbers about some rows: name → row → number.
        noun: what the samples are called.
    """

    run: str
    log: str
    arranged: Arranged
    classes: Sequence[str] = ()
    given: Rows | None = None
    suggested: Rows | None = None
    true: Rows | None = None
    bad: npt.NDArray[np.bool_] | None = None
    text: Callable[[int], str | None] = lambda _: None
    image: Callable[[int], bytes | None] = lambda _: None
    facts: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    noun: str = "samples"


def arrange(
    table: pa.Table, threshold: float | None, *, end: int = END, most: int = MOST
) -> Arranged:
    """Sort a selection's rows by score and find its ends and its border.

    Args:
        table: a selection's columns ``[n]``.
        threshold: the lowest score that is kept; None where no score divides kept from removed.
        end: how many samples an end has, and the border; at an end at most half of all.
        most: how many samples fit a page. Of more, the lowest and the highest two fifths of
            that number are taken, and the rest of them is nearest to the border.

    Returns:
        The rows of the page, and which stand where; a sample may be both at an end and at the
        border.

    Example:
        >>> table = pa.table({"sample_id": [3, 1, 2], "score": [0.1, 0.9, 0.5],
        ...                   "p_clean": [0.0, 1.0, 0.6], "keep": [False, True, True]})
        >>> arranged = arrange(table, 0.5, end=1)
        >>> arranged.table["sample_id"].to_pylist(), arranged.ends["borderline"].tolist()
        ([3, 2, 1], [1])
    """
    ranked = table.sort_by([("score", "ascending"), ("sample_id", "ascending")])
    n = len(ranked)
    nearest = _nearest_to_the_border(ranked, threshold)
    if n > most:
        side = 2 * most // 5
        outer = np.r_[:side, n - side : n]
        inner = nearest[~np.isin(nearest, outer)][: most - 2 * side]
        rows = np.union1d(outer, inner)
        ranked = ranked.take(pa.array(rows))
        nearest = np.searchsorted(rows, nearest[np.isin(nearest, rows)])
    m = len(ranked)
    k = min(end, (m + 1) // 2)
    ends = {
        "lowest": np.arange(k),
        "borderline": nearest[:end],
        "highest": np.arange(m - 1, m - 1 - k, -1),
    }
    return Arranged(ranked, ends, n, threshold)


def _nearest_to_the_border(ranked: pa.Table, threshold: float | None) -> Rows:
    """Return all rows that have a distance to the border, the nearest first."""
    keep = ranked["keep"].to_numpy(zero_copy_only=False)
    if keep.all() or not keep.any():
        return np.zeros(0, np.int64)
    name, border = ("p_clean", 0.5) if threshold is None else ("score", threshold)
    distance = np.abs(ranked[name].to_numpy() - border)
    order = np.argsort(distance, kind="stable")
    return order[: int(np.isfinite(distance).sum())]


def gallery_values(gallery: Gallery) -> dict[str, Any]:
    """Return a gallery as its template asks for it.

    Args:
        gallery: the columns.

    Returns:
        ``data``, the columns for the script; ``head`` and ``plain``, the table that is read
        without it; ``notes``, how much of everything is on the page; and ``noun``.

    Raises:
        MissingExtraError: jinja2 or Pillow is not installed.
    """
    columns = _columns(gallery)
    head, plain = _plain(gallery)
    return {
        "data": json_block("gallery-data", columns),
        "noun": gallery.noun,
        "labelled": gallery.given is not None,
        "head": head,
        "plain": plain,
        "notes": list(_notes(gallery, columns)),
    }


def _columns(gallery: Gallery) -> dict[str, Any]:
    """Lay the columns out for the script; ids are texts, since its numbers end at 2⁵³."""
    arranged, table = gallery.arranged, gallery.arranged.table
    m, ids, wanted = len(table), table["sample_id"], arranged.wanted
    pictured = [*wanted, *range(min(m, LOWEST))]
    reasons = table["reason"].combine_chunks()
    if not pa.types.is_dictionary(reasons.type):
        reasons = reasons.dictionary_encode()
    bad = gallery.bad
    if bad is None and gallery.true is not None and gallery.given is not None:
        bad = gallery.true != gallery.given
    return {
        "run": gallery.run,
        "log": gallery.log,
        "noun": gallery.noun,
        "total": arranged.total,
        "threshold": arranged.threshold,
        "integers": pa.types.is_integer(ids.type),
        "ids": ids.cast(pa.string()).to_pylist(),
        "score": _rounded(table["score"], 5),
        "p": _rounded(table["p_clean"], 3),
        "keep": _bits(table["keep"].to_numpy(zero_copy_only=False)),
        "reasons": reasons.dictionary.to_pylist(),
        "reason": reasons.indices.to_pylist(),
        "classes": list(gallery.classes),
        **{
            name: None if column is None else column.tolist()
            for name in ("given", "suggested", "true")
            for column in [getattr(gallery, name)]
        },
        "bad": None if bad is None else _bits(bad),
        "ends": {name: rows.tolist() for name, rows in arranged.ends.items()},
        "texts": _within(TEXT_BYTES, [*wanted, *range(m)], gallery.text),
        "pictures": _within(PICTURE_BYTES, pictured, lambda row: _picture(gallery.image(row))),
        "facts": {
            name: {row: float(f"{value:.3g}") for row, value in values.items()}
            for name, values in gallery.facts.items()
        },
    }


def _within(budget: int, rows: Iterable[int], read: Callable[[int], str | None]) -> dict[int, str]:
    """Read what belongs to rows, in their order, until the bytes are spent; None is left out."""
    found: dict[int, str] = {}
    for row in dict.fromkeys(rows):
        value = read(row)
        if value is None:
            continue
        budget -= len(value.encode("utf-8", errors="replace"))
        if budget < 0:
            break
        found[row] = value
    return found


def _picture(content: bytes | None) -> str | None:
    """Return a picture for the page: empty where it cannot be decoded, None where there is none."""
    return None if content is None else data_uri(content) or ""


def _rounded(column: pa.ChunkedArray, digits: int) -> list[float | None]:
    """Return numbers of a few digits, None where there is none."""
    return [
        None if value is None or not isfinite(value) else float(f"{value:.{digits}g}")
        for value in column.to_pylist()
    ]


def _bits(flags: npt.NDArray[Any]) -> str:
    return "".join("1" if flag else "0" for flag in flags.tolist())


def _plain(gallery: Gallery) -> tuple[list[str], list[list[str]]]:
    """Lay out the lowest rows: the head, and as many cells a row."""
    head, columns = ["id"], []
    for name in ("given", "suggested", "true"):
        if (places := getattr(gallery, name)) is not None:
            head.append(name)
            columns.append([gallery.classes[place] for place in places[:PLAIN].tolist()])
    rows = gallery.arranged.table.slice(0, PLAIN).to_pylist()
    cells = []
    for row, entry in enumerate(rows):
        score = "–" if entry["score"] is None else short(entry["score"])
        own = [column[row] for column in columns]
        cells.append([str(entry["sample_id"]), *own, score, entry["reason"]])
    return [*head, "score", "decision"], cells


def _notes(gallery: Gallery, columns: Mapping[str, Any]) -> Iterator[str]:
    """Say what the page does not show."""
    m, n = len(gallery.arranged.table), gallery.arranged.total
    if m < n:
        yield (
            f"{m:,} of {n:,} {gallery.noun} are on this page: the lowest, the highest, and those "
            "nearest to the border."
        )
    for what in ("pictures", "texts"):
        if 0 < (there := len(columns[what])) < m:
            yield (
                f"The {what} of {there:,} of {m:,} {gallery.noun} are on this page, those at the "
                "ends and at the border first."
            )
