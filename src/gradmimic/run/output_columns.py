"""Outputs that a table already holds: one column of lists, or a column for each of K classes.

The order of the columns is the order of the classes. Columns found by a pattern are put in the
order in which ``gradmimic run`` numbers classes: numbers by value (p_2 before p_10), names by the
alphabet.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.data.columns import column_names
from gradmimic.data.files import PARQUET, load_npy, load_npz, npz_keys, open_parquet
from gradmimic.errors import DataError, listed

Matrix = npt.NDArray[Any]

_AT_ONCE = 1 << 22  # values that are read at once


@dataclass(frozen=True)
class Columns:
    """Outputs that are read piece by piece.

    Args:
        rows: how many there are.
        batches: the number of pieces.
        order: the names of the columns, one for each class, or "" where they have none.
        read: gives the pieces, ``[b, K]`` each.
    """

    rows: int
    batches: int
    order: str
    read: Callable[[], Iterator[Matrix]]


def open_columns(path: Path, wanted: Sequence[str], exclude: Sequence[str] = ()) -> Columns:
    """Find the outputs in a table.

    Args:
        path: a ``.parquet``, ``.csv``, ``.npy`` or ``.npz`` file.
        wanted: names or patterns such as ``"p_*"``: one column of lists (one array of an ``.npz``),
            or several of numbers. May be left out where there is only one column of lists or one
            array.
        exclude: columns that a pattern or a guess must not take.

    Raises:
        DataError: no such file or column, or columns of another type.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"no file {path} (from {Path.cwd()}); check the path")
    if suffix == ".npy":
        if wanted:
            raise DataError(f"{path} holds one array; leave --outputs out (got {list(wanted)}).")
        return _of_array(load_npy(path), str(path))
    if suffix == ".npz":
        keys = npz_keys(path)
        found = _matching(path, keys, wanted, exclude) or [k for k in keys if k not in exclude]
        if len(found) != 1:
            raise DataError(f"expected one array in {path}, got {listed(found)}. Give --outputs.")
        return _of_array(load_npz(path, found[0]), f"{path}:{found[0]}")
    if suffix == ".csv":
        names = _matching(path, column_names(path), wanted, exclude)
        if not names:
            raise DataError(f"name the columns of {path} that hold the outputs with --outputs.")
        return _of_csv(path, names)
    if suffix in PARQUET:
        return _of_parquet(path, wanted, exclude)
    raise DataError(f"expected a .parquet, .csv, .npy or .npz file, got {path}.")


def _of_array(array: Matrix, where: str) -> Columns:
    """Read an array, a file that is mapped into memory among others, by rows."""
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not array.size:
        raise DataError(f"{where} must hold numbers [n, K]; it is {array.shape} of {array.dtype}.")
    step = max(1, _AT_ONCE // array.shape[1])

    def read() -> Iterator[Matrix]:
        for start in range(0, len(array), step):
            yield array[start : start + step].astype(np.float32)

    return Columns(len(array), ceil(len(array) / step), "", read)


def _of_csv(path: Path, names: list[str]) -> Columns:
    """Read a CSV, which tells its number of rows only when it is read."""
    from pyarrow import csv

    types = {name: pa.float64() for name in names}
    options = csv.ConvertOptions(include_columns=names, column_types=types)
    parse = csv.ParseOptions(newlines_in_values=True)
    try:
        table = csv.read_csv(path, convert_options=options, parse_options=parse)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    batches = table.to_batches(max_chunksize=max(1, _AT_ONCE // len(names)))

    def read() -> Iterator[Matrix]:
        return (_matrix(batch, str(path), 0) for batch in batches)

    return Columns(table.num_rows, len(batches), _order(names), read)


def _of_parquet(path: Path, wanted: Sequence[str], exclude: Sequence[str]) -> Columns:
    """Read a Parquet by batches."""
    file = open_parquet(path)
    schema = file.schema_arrow
    names = _matching(path, schema.names, wanted, exclude)
    if not wanted:
        names = [field.name for field in schema if _is_list(field.type)]
        if len(names) != 1:
            held = listed(f"{field.name} ({field.type})" for field in schema)
            raise DataError(f"name the outputs in {path} with --outputs; it has {held}.")
    types = [schema.field(name).type for name in names]
    if not (all(map(_is_number, types)) or (len(types) == 1 and _is_list(types[0]))):
        odd = next((i for i, kind in enumerate(types) if not _is_number(kind)), 0)
        raise DataError(
            f"expected one column of lists or several of numbers; {path}:{names[odd]} is of type "
            f"{types[odd]}."
        )
    rows = file.metadata.num_rows
    width = len(names)
    if _is_list(types[0]) and rows:
        width = len(next(file.iter_batches(1, columns=names)).column(0)[0].as_py() or ())
    step = max(1, _AT_ONCE // max(width, 1))

    def read() -> Iterator[Matrix]:
        start = 0
        try:
            for batch in file.iter_batches(step, columns=names):
                yield _matrix(batch.select(names), f"{path}:{listed(names, 3)}", start)
                start += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read: {error}") from error

    return Columns(rows, ceil(rows / step), _order(names), read)


def _matrix(batch: pa.RecordBatch, where: str, start: int) -> Matrix:
    """Return ``[b, K]``; missing numbers become NaN, which is refused by the sample's id."""
    if not _is_list(batch.schema.field(0).type):
        columns = [column.to_numpy(zero_copy_only=False) for column in batch.columns]
        return np.column_stack(columns).astype(np.float32)
    lists = batch.column(0)
    if lists.null_count:
        row = start + int(lists.is_null().to_numpy(zero_copy_only=False).argmax())
        raise DataError(f"{where} is empty in row {row}; every sample needs its outputs.")
    flat = lists.flatten().to_numpy(zero_copy_only=False)
    if not pa.types.is_fixed_size_list(lists.type):
        lengths = lists.value_lengths().to_numpy()
        other = np.flatnonzero(lengths != lengths[0])
        if other.size:
            raise DataError(
                f"{where} must hold lists of one length; row {start} has {lengths[0]} numbers, row "
                f"{start + other[0]} has {lengths[other[0]]}."
            )
    matrix: Matrix = flat.reshape(len(lists), -1).astype(np.float32)
    return matrix


def _matching(
    path: Path, names: Sequence[str], wanted: Sequence[str], exclude: Sequence[str]
) -> list[str]:
    """Resolve names and patterns."""
    found: list[str] = []
    for pattern in wanted:
        matches = [pattern] if pattern in names else []
        if not matches:
            fitting = (n for n in names if fnmatchcase(n, pattern) and n not in exclude)
            matches = sorted(fitting, key=_by_number)
        if not matches:
            raise DataError(f"no column {pattern!r} in {path}; it has {listed(names, 20)}.")
        found += [name for name in matches if name not in found]
    return found


def _by_number(name: str) -> list[tuple[int, str]]:
    """Compare the numbers in a name by their value, and the rest as text."""
    parts = re.split(r"(\d+)", name)  # text and digits in turn
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _order(names: list[str]) -> str:
    return listed(names, 20) if len(names) > 1 else ""


def _is_list(kind: pa.DataType) -> bool:
    """Tell whether a column holds lists of numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool((lists or pa.types.is_fixed_size_list(kind)) and _is_number(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
