"""Which pairs are trusted: a range of rows, ids, or other pairs."""

import re
from dataclasses import dataclass
from pathlib import Path

from gradmimic.data.columns import read_column

_RANGE = re.compile(r"(\d*):(\d*)")


@dataclass(frozen=True)
class Trusted:
    """One of three ways to name them; nothing at all without any.

    Args:
        ids: sample ids.
        rows: a range of the readable pairs, in the order of the data.
        data: another data set.
    """

    ids: frozenset[str] = frozenset()
    rows: slice | None = None
    data: str | None = None


def find_trusted(given: str | tuple[int | str, ...] | None) -> Trusted:
    """Tell the three apart.

    Args:
        given: the key ``trusted`` of a run.

    Raises:
        DataError: a list of ids cannot be read.

    Example:
        >>> find_trusted("0:200").rows
        slice(0, 200, None)
        >>> find_trusted("pool/{00..03}.tar").data
        'pool/{00..03}.tar'
    """
    if given is None:
        return Trusted()
    if not isinstance(given, str):
        return Trusted(ids=frozenset(map(str, given)))
    if span := _RANGE.fullmatch(given):
        first, stop = (int(part) if part else None for part in span.groups())
        return Trusted(rows=slice(first or 0, stop))
    path = Path(given)
    if path.suffix in (".txt", ".npy"):
        return Trusted(ids=frozenset(map(str, read_column(path.name, path).values.tolist())))
    return Trusted(data=given)
