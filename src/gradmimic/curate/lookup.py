"""Is this sample kept? Asked one sample at a time, inside a data pipeline.

Only the kept ids are held, sorted, and found by bisection: 8 bytes each as integers, 16 as uids of
32 hexadecimal digits, else their own length and 8. Workers that are forked share them.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.curate.datacomp import UID, ascends, is_uid, parse_uids
from gradmimic.errors import DataError

if TYPE_CHECKING:
    from gradmimic.curate.selection import Selection


class KeptIds:
    """The ids that a selection keeps, to ask ``sample_id in kept``; it can be pickled.

    An id that the selection does not know is not kept. Uids count as equal in upper and lower case.

    Args:
        selection: any.

    Raises:
        DataError: when asked with an integer though the ids are strings, or the other way round.

    Example:
        >>> from gradmimic.curate import Selection
        >>> kept = KeptIds(Selection.from_scores(["a", "b"], [0.5, -0.5]).above(0.0))
        >>> "a" in kept, "b" in kept, "c" in kept
        (True, False, False)
    """

    def __init__(self, selection: "Selection") -> None:
        self.share = 0.0  # of the selection's samples that is kept
        self._ids: _Integers | _Uids | _Strings
        batches = selection.batches(["sample_id", "keep"])
        pieces = [batch["sample_id"].filter(batch["keep"]) for batch in batches]
        pieces = [piece for piece in pieces if len(piece)]
        if selection.id_type == pa.int64():
            self._ids = _Integers(pieces)
        else:
            self._ids = _uids(pieces) or _Strings(pieces)
        if len(selection):
            self.share = len(self._ids) / len(selection)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, sample_id: int | str) -> bool:
        kind = int if isinstance(self._ids, _Integers) else str
        if not isinstance(sample_id, (int, np.integer) if kind is int else str):
            raise DataError(
                f"this selection has {'integer' if kind is int else 'string'} sample ids, but was "
                f"asked for {sample_id!r} ({type(sample_id).__name__}). Pass the id that was "
                "logged, e.g. int(key)."
            )
        return sample_id in self._ids


class _Integers:
    """Sorted int64 ids."""

    def __init__(self, pieces: Iterable[pa.Array]) -> None:
        self._ids: Any = np.concatenate(
            [np.zeros(0, np.int64), *(ids.to_numpy() for ids in pieces)]
        )

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, sample_id: Any) -> bool:
        ids = memoryview(self._ids)  # whose items are Python's exact integers
        row = bisect_left(ids, sample_id)
        return row < len(ids) and bool(ids[row] == sample_id)


class _Uids:
    """Sorted pairs of 64-bit numbers."""

    def __init__(self, pairs: npt.NDArray[Any]) -> None:
        self._high, self._low = pairs["f0"].copy(), pairs["f1"].copy()

    def __len__(self) -> int:
        return len(self._high)

    def __contains__(self, uid: Any) -> bool:
        if not is_uid(uid):
            return False
        high, low = int(uid[:16], 16), int(uid[16:], 16)
        highs, lows = memoryview(self._high), memoryview(self._low)
        first, last = bisect_left(highs, high), bisect_right(highs, high)
        row = bisect_left(lows, low, first, last)
        return row < last and bool(lows[row] == low)


class _Strings(Sequence[bytes]):
    """Sorted strings, as UTF-8 in one array and where each begins."""

    def __init__(self, pieces: Sequence[pa.Array]) -> None:
        ids = pa.chunked_array(pieces, pa.string()).cast(pa.large_string()).combine_chunks()
        self._begins, self._text = np.zeros(1, np.int64), np.zeros(0, np.uint8)
        if len(ids):
            begins = np.frombuffer(ids.buffers()[1], np.int64, len(ids) + 1, 8 * ids.offset)
            self._text = np.frombuffer(ids.buffers()[2], np.uint8)[begins[0] : begins[-1]].copy()
            self._begins = begins - begins[0]

    def __len__(self) -> int:
        return len(self._begins) - 1

    def __getitem__(self, row: Any) -> Any:
        return self._text[self._begins[row] : self._begins[row + 1]].tobytes()

    def __contains__(self, sample_id: Any) -> bool:
        wanted = sample_id.encode(errors="surrogatepass")
        row = bisect_left(self, wanted)
        return row < len(self) and bool(self[row] == wanted)


def _uids(pieces: Sequence[pa.Array]) -> _Uids | None:
    """Return ids as pairs of numbers where all are uids that sort as such."""
    try:
        pairs = np.concatenate([np.zeros(0, UID), *(parse_uids(ids) for ids in pieces)])
    except DataError:
        return None
    return _Uids(pairs) if ascends(pairs) else None
