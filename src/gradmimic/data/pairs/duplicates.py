"""Sample ids that stand in several shards, and the first shard that holds each.

    digest(id) = 128 bits of BLAKE2b        one pass over the ids, 20 bytes of memory an id

The first shard in order keeps the sample, whatever process reads which shard when. It does so even
where the sample turns out to be unusable there, since nobody decodes pictures to find out.
"""

import os
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gradmimic.atomic import atomic_write
from gradmimic.data.pairs.source import PairSource
from gradmimic.errors import DataError

_SEEN = np.dtype([("high", "<u8"), ("low", "<u8"), ("shard", "<i4")])


class Duplicates:
    """Ids that stand in several shards.

    Args:
        ids: their digests and first shards ``[n]``, sorted.
    """

    def __init__(self, ids: npt.NDArray[np.void]) -> None:
        self._ids = ids
        self._high = np.ascontiguousarray(ids["high"])

    def __len__(self) -> int:
        return len(self._ids)

    def elsewhere(self, sample_id: str, shard: int) -> bool:
        """Tell whether an earlier shard than this one holds the id."""
        if not len(self._ids):
            return False
        digest = _digest(sample_id)
        high, low = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")
        row = int(np.searchsorted(self._high, np.uint64(high)))
        while row < len(self._ids) and int(self._high[row]) == high:
            if int(self._ids["low"][row]) == low:
                return int(self._ids["shard"][row]) < shard
            row += 1
        return False

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ids to an ``.npy`` file, for other processes."""
        with atomic_write(path) as file:
            np.save(file, self._ids, allow_pickle=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Duplicates":
        """Read what ``save`` wrote.

        Raises:
            DataError: it is no such file.
        """
        try:
            ids = np.load(Path(path), allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"cannot read {path}: {error}. Delete it to have it made anew."
            ) from error
        if not isinstance(ids, np.ndarray) or ids.dtype != _SEEN or ids.ndim != 1:
            raise DataError(f"{path} holds no duplicate ids. Delete it to have it made anew.")
        return cls(ids)


def find_duplicates(source: PairSource) -> Duplicates:
    """Find the ids that stand in several shards of a data set.

    Ids are read from the Parquet beside a shard, else from its .json files; no picture is decoded.
    Memory holds 20 bytes an id, and a few more while they are sorted.

    Args:
        source: the data set.

    Returns:
        The ids; pass them to ``PairReader(…, skip=…)``.

    Example:
        >>> len(Duplicates(np.zeros(0, _SEEN)))
        0
    """
    if source.unique or len(source) < 2:
        return Duplicates(np.zeros(0, _SEEN))
    seen, count = np.empty(1 << 16, _SEEN), 0
    for shard in range(len(source)):
        own = b"".join({_digest(one) for one in source.ids(shard)})
        digests = np.frombuffer(own, "<u8").reshape(-1, 2)  # [n, 2]
        while count + len(digests) > len(seen):
            seen.resize(2 * len(seen), refcheck=False)
        part = seen[count : count + len(digests)]
        part["high"], part["low"], part["shard"] = digests[:, 0], digests[:, 1], shard
        count += len(digests)
    return Duplicates(_several(seen[:count]))


def _several(seen: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Return the first of every digest that occurs more than once; shards ascend before."""
    top = seen.view(np.uint8).reshape(-1, _SEEN.itemsize)[:, 7] >> 4  # [n], of the high number
    return np.concatenate([_first(seen[top == sixteenth]) for sixteenth in range(16)])


def _first(seen: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
    """Sort a sixteenth, since sorting needs twice its room again."""
    order = np.lexsort((seen["low"], seen["high"]))  # stable, so the first shard stays first
    high, low = seen["high"][order], seen["low"][order]
    again = (high[1:] == high[:-1]) & (low[1:] == low[:-1])  # [n − 1], equal to the one before
    first = np.flatnonzero(again & ~np.concatenate([[False], again[:-1]]))
    several: npt.NDArray[np.void] = seen[order[first]]
    return several


def _digest(sample_id: str) -> bytes:
    return blake2b(sample_id.encode(), digest_size=16).digest()
