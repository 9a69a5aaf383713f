"""The subset file of DataComp's resharder: which samples of the pool to train on.

uid = 32 hexadecimal digits = 128 bits  →  (int(uid[:16], 16), int(uid[16:], 16))

as a one-dimensional ``.npy`` of ``np.dtype("u8,u8")`` in lexicographic order. The resharder finds
each sample of the pool in it by bisection and writes it as often as it stands there.

Source: github.com/mlfoundations/datacomp, its README and ``resharder.py``.
"""

import os
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.by_id import ById, pairs
from gradmimic.curate.export import export, write_npy
from gradmimic.curate.rows import some
from gradmimic.errors import DataError

if TYPE_CHECKING:
    from gradmimic.curate.selection import Selection

UID = np.dtype("u8,u8")
_DIGITS = b"0123456789abcdef"
_HEX = frozenset("0123456789abcdefABCDEF")


def write_datacomp(
    selection: "Selection",
    path: str | os.PathLike[str],
    *,
    multiplicity: ById | None = None,
) -> int:
    """Write the kept samples' uids as DataComp's resharder reads them.

    Memory holds a piece at a time where all uids are in lower case, or all in upper case, as
    these sort as the numbers do; with mixed case it holds 16 bytes per kept sample.

    Args:
        selection: its ids are uids of 32 hexadecimal digits.
        path: the ``.npy`` file to write.
        multiplicity: how often each sample is to be seen, at least once: a mapping from uid to a
            whole number, or a pair ``(uids, numbers)``. Kept samples without one are written
            once, and a uid that is not kept is refused. None writes every kept sample once.

    Returns:
        How many uids were written.

    Raises:
        DataError: ids are no such uids, two of them are one number, a multiplicity does not fit,
            or the file cannot be written.

    Example:
        >>> import tempfile
        >>> from gradmimic.curate import Selection
        >>> uids = ["6e356964a967af455c8016b75d691203", "139e4a9b22a614771f06c700a8ebe150"]
        >>> selection = Selection.from_scores(uids, [0.3, 0.2])
        >>> path = tempfile.mkdtemp() + "/subset.npy"
        >>> write_datacomp(selection, path)
        2
        >>> np.load(path)["f0"].tolist() == sorted(int(uid[:16], 16) for uid in uids)
        True
    """
    if selection.id_type != pa.string() and len(selection):
        raise DataError(
            "DataComp knows samples by uids of 32 hexadecimal digits, but this selection has "
            f"{selection.id_type} ids. Train with the uid of each sample's .json as its id, or "
            "export with to_parquet or to_npy."
        )
    times = None if multiplicity is None else _multiplicities(multiplicity)
    with export(path) as file:
        try:
            return write_npy(file, UID, _in_order(_counted(selection, times)))
        except _NotAscendingError:
            file.seek(0)
            file.truncate()
            return write_npy(file, UID, _sorted(_counted(selection, times)))


def read_datacomp(path: str | os.PathLike[str]) -> npt.NDArray[np.str_]:
    """Read the uids of a subset file, in its order, in lower case.

    Args:
        path: an ``.npy`` file for DataComp's resharder.

    Returns:
        Strings of 32 digits ``[n]``.

    Raises:
        DataError: it is no such file.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"cannot read {path}: {error}. Pass a file that to_datacomp wrote; if this one did, it "
            "was damaged or cut short since: write or copy it again."
        ) from error
    if not isinstance(array, np.ndarray) or array.dtype != UID or array.ndim != 1:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "an archive"
        raise DataError(
            f'{path} is no DataComp subset: expected a one-dimensional array of np.dtype("u8,u8"), '
            f"got {found}."
        )
    as_bytes = array.view("u8").astype(">u8").view("u1").reshape(-1, 16)
    digits = np.frombuffer(_DIGITS, "u1")
    text = np.stack([digits[as_bytes >> 4], digits[as_bytes & 15]], axis=-1)  # [n, 16, 2]
    return np.array(text.reshape(-1, 32).view("S32").reshape(-1).astype(np.str_))


def parse_uids(ids: pa.StringArray) -> npt.NDArray[Any]:
    """Return uids as pairs of 64-bit numbers.

    Args:
        ids: strings ``[n]`` of 32 hexadecimal digits, in lower or upper case.

    Returns:
        ``[n]`` of ``np.dtype("u8,u8")``, in the order of the ids.

    Raises:
        DataError: an id has another length, or another character.

    Example:
        >>> parse_uids(pa.array(["0" * 15 + "1" + "f" * 16])).tolist()
        [(1, 18446744073709551615)]
    """
    n = len(ids)
    if n == 0:
        return np.zeros(0, UID)
    odd = pc.not_equal(pc.binary_length(ids), 32)
    if pc.any(odd).as_py():
        raise DataError(_no_uid(ids[odd.index(True).as_py()].as_py()))
    first = int(np.frombuffer(ids.buffers()[1], np.int32, 1, 4 * ids.offset)[0])
    text = np.frombuffer(ids.buffers()[2], np.uint8, 32 * n, first)
    value = _BYTE[text.view(np.uint16)].reshape(n, 16)  # [n, 16], 256 where it is no byte
    if value.max() > 255:
        row = int(np.argmax((value > 255).any(axis=1)))
        raise DataError(_no_uid(ids[row].as_py()))
    return value.astype(np.uint8).view(">u8").astype("u8").view(UID).reshape(n)


def is_uid(sample_id: str) -> bool:
    """Tell whether an id is 32 hexadecimal digits.

    Example:
        >>> is_uid("0x" + "a" * 30)
        False
    """
    return len(sample_id) == 32 and set(sample_id) <= _HEX


def ascends(uids: npt.NDArray[Any]) -> bool:
    """Tell whether every pair of numbers is greater than the one before it.

    Example:
        >>> ascends(np.array([(1, 5), (2, 0), (2, 0)], UID))
        False
    """
    high, low = uids["f0"], uids["f1"]
    more = (high[1:] > high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] > low[:-1]))
    return bool(more.all())


class _NotAscendingError(Exception):
    """The uids do not ascend as numbers although they do as strings: their case is mixed."""


def _counted(
    selection: "Selection", times: tuple[pa.ChunkedArray, npt.NDArray[np.int64]] | None
) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64] | int]]:
    """Yield the kept samples' uids, and how often each is to be written."""
    start = 0
    for batch in selection.batches(["sample_id", "keep"]):
        ids = batch["sample_id"].filter(batch["keep"])
        if times is None:
            yield parse_uids(ids), 1
        elif len(batch):
            named, numbers = times
            last = batch["sample_id"][-1].as_py()
            stop = bisect_right(range(len(named)), last, lo=start, key=lambda i: named[i].as_py())
            wanted = named[start:stop]  # both are sorted, so these can be here only
            _check_kept(wanted, ids)
            rows = pc.index_in(ids, value_set=wanted).fill_null(stop - start).to_numpy()
            yield parse_uids(ids), np.append(numbers[start:stop], 1)[rows]
            start = stop
    if times is not None:
        _check_kept(times[0][start:], pa.array([], pa.string()))


def _in_order(
    pieces: Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64] | int]],
) -> Iterator[npt.NDArray[Any]]:
    """Pass on uids as often as they are wanted, as long as they ascend."""
    last = np.zeros(0, UID)
    for uids, counts in pieces:
        if not ascends(np.concatenate([last, uids[:1]])) or not ascends(uids):
            raise _NotAscendingError
        last = uids[-1:] if len(uids) else last
        yield uids if isinstance(counts, int) else np.repeat(uids, counts)


def _sorted(
    pieces: Iterator[tuple[npt.NDArray[Any], npt.NDArray[np.int64] | int]],
) -> Iterator[npt.NDArray[Any]]:
    """Return all uids in order, refusing two that are one number."""
    parts, counts = [], []
    for uids, count in pieces:
        parts.append(uids)
        counts.append(np.broadcast_to(count, len(uids)))
    joined, times = np.concatenate(parts), np.concatenate(counts)
    order = np.lexsort((joined["f1"], joined["f0"]))
    joined, times = joined[order], times[order]
    same = joined[1:] == joined[:-1]
    if same.any():
        high, low = joined[int(np.argmax(same))].tolist()
        raise DataError(
            f"{int(same.sum())} uids collide: they differ in upper and lower case only, which "
            f"DataComp's numbers do not, the first are those of {high:016x}{low:016x}. Give every "
            "sample one spelling of its uid, e.g. uid.lower(), when it is scored."
        )
    yield np.repeat(joined, times)


def _multiplicities(values: ById) -> tuple[pa.ChunkedArray, npt.NDArray[np.int64]]:
    """Return uids, sorted, and how often each is to be written."""
    uids, numbers = pairs(values, "multiplicities")
    if len(uids) and (uids.type != pa.string() or not pa.types.is_integer(numbers.type)):
        raise DataError(
            "multiplicities are whole numbers by uid, but came as "
            f"{numbers.type} by {uids.type} id."
        )
    counts = np.array(numbers.to_numpy(), dtype=np.int64)
    if len(counts) and counts.min() < 1:
        row = int(np.argmin(counts))
        raise DataError(
            f"a multiplicity is at least 1, but {uids[row].as_py()!r} has {counts[row]}. To leave "
            "a sample out, take it away from the selection."
        )
    return uids.cast(pa.string()), counts


def _check_kept(wanted: pa.ChunkedArray, kept: pa.Array) -> None:
    """Refuse multiplicities of samples that are not written at all."""
    strangers = wanted.filter(pc.invert(pc.is_in(wanted, value_set=kept)))
    if len(strangers):
        raise DataError(
            f"multiplicities name samples that are not kept: {some(strangers)}. Pass those of kept "
            "samples only."
        )


def _no_uid(sample_id: str) -> str:
    """Say that an id is no uid."""
    return (
        f"DataComp knows samples by uids of 32 hexadecimal digits, but {sample_id!r} is none. "
        "Train with the uid of each sample's .json as its id, or export with to_parquet or to_npy."
    )


def _byte_table() -> npt.NDArray[np.uint16]:
    """Return the byte that two characters spell, by their own two bytes; 256 where they do not."""
    table = np.full(1 << 16, 256, np.uint16)
    digits = (_DIGITS + _DIGITS[10:].upper()).decode()
    pairs_of_digits = [high + low for high in digits for low in digits]
    keys = np.frombuffer("".join(pairs_of_digits).encode(), np.uint16)
    table[keys] = [int(pair, 16) for pair in pairs_of_digits]
    return table


_BYTE = _byte_table()
