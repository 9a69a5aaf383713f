"""At which row does a sample id stand? Asked for a whole batch at every step of a training."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError
from gradmimic.ids import Ids

Rows = npt.NDArray[np.int64]


class IdRows(Protocol):
    """The rows of known ids."""

    def find(self, ids: Any) -> Rows:
        """Return the row of each id ``[b]``, −1 where it is unknown."""


def id_rows(ids: Ids) -> IdRows:
    """Prepare to find rows by id.

    Integers are looked up in a table where they lie close together, as row numbers do (32 bytes an
    id at most), else by bisection; strings by their hash.

    Args:
        ids: ``[n]`` with n ≥ 1, as ``ids.as_ids`` returns them.

    Raises:
        DataError: an id comes twice.

    Example:
        >>> id_rows(["a", "b"]).find(["b", "c"])
        array([ 1, -1])
    """
    if isinstance(ids, list):
        return _ByHash(ids)
    order = np.argsort(ids, kind="stable")
    ascending = ids[order]  # [n]
    again = np.flatnonzero(ascending[1:] == ascending[:-1])
    if len(again):
        raise _repeated(int(ascending[again[0]]), *order[again[0] : again[0] + 2].tolist())
    first, last = int(ascending[0]), int(ascending[-1])
    return _ByTable(ids, first, last) if last - first < 4 * len(ids) else _ByOrder(ascending, order)


class _ByTable:
    """A place for every integer from the least id to the greatest."""

    def __init__(self, ids: Rows, first: int, last: int) -> None:
        self._first, self._last = first, last
        self._table = np.full(last - first + 1, -1, np.int64)
        self._table[ids - first] = np.arange(len(ids))

    def find(self, ids: Any) -> Rows:
        inside = (ids >= self._first) & (ids <= self._last)
        places = np.where(inside, ids, self._first) - self._first  # outside it might wrap around
        rows: Rows = np.where(inside, self._table[places], -1)
        return rows


class _ByOrder:
    """Sorted integers, and the row of each."""

    def __init__(self, ascending: Rows, order: Rows) -> None:
        self._ascending, self._order = ascending, order

    def find(self, ids: Any) -> Rows:
        places = np.searchsorted(self._ascending, ids).clip(max=len(self._ascending) - 1)
        rows: Rows = np.where(self._ascending[places] == ids, self._order[places], -1)
        return rows


class _ByHash:
    """Strings."""

    def __init__(self, ids: list[str]) -> None:
        self._rows = {name: row for row, name in enumerate(ids)}
        if len(self._rows) < len(ids):  # a repeated id is found at its last row
            first = next(row for row, name in enumerate(ids) if self._rows[name] != row)
            raise _repeated(ids[first], first, ids.index(ids[first], first + 1))

    def find(self, ids: Any) -> Rows:
        get = self._rows.get
        return np.array([get(name, -1) for name in ids], dtype=np.int64)


def _repeated(sample_id: int | str, one: int, other: int) -> DataError:
    return DataError(
        f"the sample id {sample_id!r} stands in rows {one} and {other}. Give every sample an id of "
        "its own, once."
    )
