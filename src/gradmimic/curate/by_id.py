"""Values from elsewhere that belong to samples by their ids: scores, labels, multiplicities.

An id may come again where its value is the same; two values for one id are refused, since either
choice would depend on the order of a file.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.rows import some
from gradmimic.errors import DataError, listed
from gradmimic.ids import as_ids

ById = Mapping[Any, Any] | tuple[Any, Any]  # {id: value}, or (ids, values)

_WHOLE = r"^(0|-?[1-9][0-9]{0,17})$"  # "007" is a name; 18 digits always fit int64
_CHUNK = 1 << 20


def scored(ids: Any, scores: Any) -> pa.Table:
    """Return the rows of a selection that keeps every sample, with scores from elsewhere.

    Args:
        ids: sample ids ``[n]``, in any order.
        scores: finite numbers ``[n]``, higher is better.

    Raises:
        DataError: numbers and ids do not fit each other, or a score is not finite.

    Example:
        >>> scored(["b", "a", "b"], [0.5, 0.25, 0.5])["sample_id"].to_pylist()
        ['a', 'b']
    """
    known = as_id_array(ids)
    values = _numbers(scores)
    _check_lengths(known, values, "scores")
    broken = pc.invert(pc.fill_null(pc.is_finite(values), False))
    if pc.any(broken, min_count=0).as_py():
        culprits = known.filter(broken)
        raise DataError(
            f"{len(culprits)} scores are missing or not finite, those of the samples "
            f"{some(culprits)}. Leave these samples out, or score them again."
        )
    known, values = unique(known, values, "scores")
    n = len(known)
    text = "kept: no ranking has decided yet, see top(), above() and per_class()"
    reason = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), n), [text])
    return pa.table(
        {
            "sample_id": known,
            "keep": pa.repeat(True, n),
            "p_clean": pa.nulls(n, pa.float64()),
            "score": values,
            "visits": pa.repeat(pa.scalar(1, pa.int64()), n),
            "reason": reason,
        }
    )


def aligned(ids: pa.ChunkedArray, values: ById) -> pa.ChunkedArray:
    """Return the value of every id, in the order of the ids.

    Args:
        ids: sample ids ``[n]``.
        values: a mapping, or a pair ``(ids, values)``; ids beyond those asked for are ignored.

    Raises:
        DataError: an id has no value, or two.

    Example:
        >>> aligned(pa.chunked_array([["a", "b"]]), {"b": 1, "a": 0}).to_pylist()
        [0, 1]
    """
    known, column = pairs(values, "labels")
    known = _same_type(known, ids.type, "labels")
    if ids.equals(known):
        return column
    rows = pc.index_in(ids, value_set=known)
    if rows.null_count:
        missing = ids.filter(pc.is_null(rows))
        raise DataError(
            f"{len(missing)} samples have no label: {some(missing)}. Pass a label for every sample "
            "of the selection."
        )
    return column.take(rows)


def pairs(values: ById, what: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Return ids, sorted and each once, and their values.

    Args:
        values: a mapping, or a pair ``(ids, values)``.
        what: what the values are, for messages.

    Raises:
        DataError: lengths differ, a value is null, or an id has two values.

    Example:
        >>> ids, labels = pairs({2: "dog", 1: "cat"}, "labels")
        >>> labels.to_pylist()
        ['cat', 'dog']
    """
    if isinstance(values, Mapping):
        values = (list(values), list(values.values()))
    if not isinstance(values, tuple) or len(values) != 2:
        raise DataError(
            f"expected {what} as a mapping from id, or as a pair (ids, {what}), got "
            f"{type(values).__name__}."
        )
    known, column = as_id_array(values[0]), _column(values[1], what)
    _check_lengths(known, column, what)
    if column.null_count:
        missing = known.filter(pc.is_null(column))
        raise DataError(f"{what} are null for {len(missing)} samples: {some(missing)}.")
    return unique(known, column, what)


def as_id_array(ids: Any) -> pa.ChunkedArray:
    """Return ids as int64 or strings, without a loop where they come from Arrow.

    Raises:
        DataError: an id is neither integer nor string, or null.

    Example:
        >>> as_id_array([3, 1]).type
        DataType(int64)
    """
    if not isinstance(ids, pa.Array | pa.ChunkedArray):
        return pa.chunked_array([pa.array(as_ids(ids))])
    column = pa.chunked_array([ids]) if isinstance(ids, pa.Array) else ids
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if column.null_count:
        raise DataError(f"{column.null_count} sample ids are null. Remove those rows.")
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid as error:
            raise DataError(f"sample ids do not fit int64 ({error}). Use strings.") from error
    if column.type in (pa.string(), pa.large_string()):
        return _short(column)
    raise DataError(f"sample ids must be ints or strings, but came as {column.type}.")


def unique(
    ids: pa.ChunkedArray, values: pa.ChunkedArray, what: str
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Sort by id, and leave out what is said twice.

    Raises:
        DataError: an id has two values.
    """
    if pc.all(pc.less(ids[:-1], ids[1:]), min_count=0).as_py():
        return ids, values
    order = pc.sort_indices(ids)
    # Joined strings may pass 2 GB, which only long strings can index.
    long = ids.cast(pa.large_string()) if ids.type == pa.string() else ids
    ids, values = long.take(order), values.take(order)
    again = pc.equal(ids[:-1], ids[1:])
    conflict = pc.and_(again, pc.not_equal(values[:-1], values[1:]))
    if pc.any(conflict, min_count=0).as_py():
        culprits = pc.unique(ids[1:].filter(conflict))
        row = pc.index(ids, culprits[0]).as_py()
        raise DataError(
            f"{len(culprits)} samples come with two different {what}: {some(culprits)}; "
            f"{culprits[0].as_py()!r} has {values[row].as_py()!r} and {values[row + 1].as_py()!r}, "
            "perhaps more. Decide which counts, e.g. the mean, and pass each id once."
        )
    first = pa.chunked_array([pa.array([True] * min(len(ids), 1)), *pc.invert(again).chunks])
    ids, values = ids.filter(first), values.filter(first)
    return (_short(ids) if ids.type == pa.large_string() else ids), values


def read_columns(
    table: pa.Table | str | os.PathLike[str],
    id_column: str,
    value_column: str,
    *,
    numbers: bool = True,
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Read two columns, by their names, from a table or a file.

    Args:
        table: a table; or the path of a ``.parquet`` file, a folder of them, or a ``.csv`` file.
        id_column: the name of the column of ids.
        value_column: the name of the column of values.
        numbers: whether the values are scores; else a ``.csv`` file's are read as written.

    Raises:
        DataError: there is no such file or column, or it cannot be read.
    """
    if isinstance(table, pa.Table):
        _check_named(table.schema.names, [id_column, value_column], "the table")
        return table[id_column], table[value_column]
    from pyarrow import dataset  # 0.2 s, for these files only

    path = Path(table)
    try:
        rows = dataset.dataset(path, format=_format(path, id_column, value_column, numbers))
        _check_named(rows.schema.names, [id_column, value_column], str(path))
        read = rows.to_table(columns=[id_column, value_column])
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"cannot read {path}: {error}. It needs a header and a column of "
            f"{'numbers for the scores' if numbers else 'classes'}; if it has them, it is damaged: "
            "write or copy it again."
        ) from error
    ids = read[id_column]
    if path.suffix.lower() == ".csv":
        whole = pc.all(pc.match_substring_regex(ids, _WHOLE), min_count=0).as_py()
        ids = ids.cast(pa.int64()) if whole else ids
    return ids, read[value_column]


def _format(path: Path, id_column: str, value_column: str, numbers: bool) -> Any:
    """Tell the format of a file by its name."""
    if path.is_dir() or path.suffix.lower() in (".parquet", ".pq"):
        return "parquet"
    if path.suffix.lower() == ".csv":
        from pyarrow import csv, dataset

        # Ids are read as they are written: "007" and "7" are two samples.
        types = {id_column: pa.string(), value_column: pa.float64() if numbers else pa.string()}
        return dataset.CsvFileFormat(
            parse_options=csv.ParseOptions(newlines_in_values=True),
            convert_options=csv.ConvertOptions(column_types=types),
        )
    raise DataError(
        f"expected a .parquet or a .csv file, or a folder of .parquet files, got {path}. Read it "
        "yourself and pass a pyarrow.Table, or ids and scores to Selection.from_scores."
    )


def _check_named(names: list[str], wanted: list[str], where: str) -> None:
    """Refuse a column that is not there, or there twice."""
    for name in wanted:
        if names.count(name) != 1:
            times = "no column" if name not in names else f"{names.count(name)} columns"
            raise DataError(
                f"{where} has {times} {name!r}. There are {listed(map(repr, names), most=20)}."
            )


def _numbers(values: Any) -> pa.ChunkedArray:
    """Return numbers as float64."""
    column = _column(values, "scores")
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        empty = len(column) == 0 or column.null_count == len(column)
        if not empty:
            raise DataError(f"scores must be numbers, but came as {column.type}.")
    return column.cast(pa.float64(), safe=False)


def _column(values: Any, what: str) -> pa.ChunkedArray:
    """Return values as one column."""
    if isinstance(values, pa.ChunkedArray):
        return values
    if not isinstance(values, pa.Array):
        try:
            values = pa.array(values.tolist() if _is_text(values) else values)
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(
                f"{what} must be one list or array of one kind of values ({error})."
            ) from error
    return pa.chunked_array([values])


def _is_text(values: Any) -> bool:
    """Tell whether this is an array of strings, which Arrow takes as a list only."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "UO"


def _same_type(known: pa.ChunkedArray, wanted: pa.DataType, what: str) -> pa.ChunkedArray:
    """Refuse integer ids where strings are meant, and the other way round."""
    if len(known) and known.type != wanted:
        raise DataError(
            f"the selection has {wanted} sample ids, but the {what} came with {known.type} ids. "
            "Pass the ids that were logged."
        )
    return known.cast(wanted)  # none at all are of either type


def _check_lengths(ids: pa.ChunkedArray, values: pa.ChunkedArray, what: str) -> None:
    """Refuse columns of different lengths."""
    if len(ids) != len(values):
        raise DataError(f"{len(ids)} sample ids came with {len(values)} {what}. Pass one for each.")


def _short(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return strings with 32-bit offsets, in pieces that these can reach."""
    if ids.type == pa.string():
        return ids
    pieces = [ids.slice(start, _CHUNK) for start in range(0, len(ids), _CHUNK)]
    chunks = [chunk.cast(pa.string()) for piece in pieces for chunk in piece.chunks]
    return pa.chunked_array(chunks, pa.string())
