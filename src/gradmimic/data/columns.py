"""One value per sample, from any of the files people keep them in.

A *column spec* is a string, read in this order:

    "label"                   a column of the data's own Parquet (or an array of its ``.npz``)
    "labels.npy"              a one-dimensional array
    "labels.txt"              one value a line
    "labels.csv"              a table with a header row and a single column
    "train.parquet:label"     a column of another Parquet, ``.csv`` or ``.npz``

A path is looked for beside the data first, then from the working directory.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.data import files
from gradmimic.data.files import PARQUET
from gradmimic.data.table import Shown
from gradmimic.errors import DataError

_FILES = (*PARQUET, ".npz", ".npy", ".csv", ".txt")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]{0,17})")  # "007" is a name; 18 digits always fit int64


@dataclass(frozen=True)
class Column:
    """Values as they were read, ``[n]`` int64 or str, and the file and column they came from."""

    values: npt.NDArray[Any]
    where: str


def read_column(spec: str, data: Path) -> Column:
    """Read one whole number or name per sample.

    Args:
        spec: a column spec, see the top of this file.
        data: the file or folder that holds the inputs.

    Returns:
        The values: int64 where all are whole numbers, else str.

    Raises:
        DataError: no such file or column, or values that are neither whole numbers nor names.
    """
    path, key = locate(spec, data)
    where = _where(path, key)
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        raw = _parquet_values(path, key, where)
    elif suffix == ".npz":
        raw = files.load_npz(path, key)
    elif suffix == ".npy":
        raw = files.load_npy(path)
    elif suffix == ".csv":
        raw = np.array(files.read_csv(path, key), dtype=str)
    else:
        raw = np.array(files.read_lines(path), dtype=str)
    return Column(whole_or_names(raw, where), where)


def read_shown(spec: str, data: Path) -> Shown:
    """Prepare to show one text or picture per row of a file, each read when it is asked for.

    Args:
        spec: a column spec of texts, or of encoded pictures in a Parquet.
        data: the file or folder that holds the inputs.

    Returns:
        One text or picture per row of the file.

    Raises:
        DataError: no such file or column, or one that holds neither texts nor pictures.
    """
    path, key = locate(spec, data)
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        return parquet_shown(path, key)
    if suffix in {".csv", ".txt"}:  # as it stands: "007" and blank lines are texts like any other
        texts = files.read_csv(path, key) if suffix == ".csv" else files.read_lines(path)
    else:
        texts = [str(value) for value in read_column(spec, data).values.tolist()]
    return Shown("text", texts.__getitem__, np.arange(len(texts)))


def parquet_shown(path: Path, key: str) -> Shown:
    """Show a column of a Parquet: pictures where it holds bytes, else texts."""
    file = files.open_parquet(path)
    kind = file.schema_arrow.field(key).type
    if pa.types.is_nested(kind) and not is_encoded(kind):
        raise DataError(
            f"{_where(path, key)} is of type {kind}; only texts or encoded pictures can be shown"
        )
    rows = np.arange(file.metadata.num_rows)
    return Shown("image" if is_encoded(kind) else "text", _ParquetCells(path, key), rows)


def is_encoded(kind: pa.DataType) -> bool:
    """Tell whether a Parquet column holds encoded pictures: bytes, or a struct {bytes, path}."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and is_encoded(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def encoded_bytes(cell: object) -> bytes | None:
    """Return the bytes of a cell of such a column, or None where it is empty."""
    if isinstance(cell, dict):
        cell = cell.get("bytes")
    return cell if isinstance(cell, bytes) and cell else None


def locate(spec: str, data: Path) -> tuple[Path, str]:
    """Find the file and the column that a spec means; the column is "" where a file has but one."""
    own = column_names(data)
    if spec in own:
        return data, spec
    name, colon, key = spec.rpartition(":")
    if not (colon and Path(name).suffix.lower() in _FILES):
        name, key = spec, ""
    if Path(name).suffix.lower() not in _FILES:
        held = f"{data} has the columns {', '.join(own)}" if own else f"{data} has no named columns"
        raise DataError(
            f"no column {spec!r}: {held}. Name one of its columns, or a file ({', '.join(_FILES)}),"
            " or a column of another file as 'other.parquet:column'"
        )
    path = _find(name, data)
    keys = column_names(path)
    if not key and len(keys) == 1:
        return path, keys[0]
    if keys and key not in keys:
        asked = f"no column {key!r} in {path}" if key else f"{path} has several columns"
        raise DataError(f"{asked}; it has {', '.join(keys)}. Write '{name}:column'")
    if key and not keys:
        raise DataError(f"{path} has no named columns, so none called {key!r}; write '{name}'")
    return path, key


def column_names(path: Path) -> list[str]:
    """Name the columns of a Parquet or CSV, or the arrays of an ``.npz``; other files have none."""
    suffix = path.suffix.lower()
    if suffix in PARQUET:
        return [str(name) for name in files.open_parquet(path).schema_arrow.names]
    if suffix == ".npz":
        return files.npz_keys(path)
    if suffix == ".csv":
        return files.csv_header(path)
    return []


def whole_or_names(raw: npt.NDArray[Any], where: str) -> npt.NDArray[Any]:
    """Return int64 where all values are whole numbers, str where they are names.

    Args:
        raw: bools, integers, floats without a fraction, or strings, ``[n]``.
        where: file and column, for messages.

    Returns:
        ``[n]``, int64 or str.

    Raises:
        DataError: another shape or type, numbers with a fraction, or empty names.

    Example:
        >>> whole_or_names(np.array(["3", "12"]), "labels.txt")
        array([ 3, 12])
    """
    if raw.ndim == 2 and raw.shape[1] == 1:
        raw = raw[:, 0]
    if raw.ndim != 1:
        raise DataError(f"{where} must hold one value per sample, [n]; its shape is {raw.shape}")
    if raw.dtype.kind == "U":
        empty = np.flatnonzero(np.char.str_len(np.char.strip(raw)) == 0)
        if empty.size:
            raise DataError(f"{where} is empty in row {empty[0]}; every sample needs a value")
        values = raw.tolist()
        if all(map(_INTEGER.fullmatch, values)):
            return np.array([int(value) for value in values], dtype=np.int64)
        return np.array(raw)
    if raw.dtype.kind not in "biuf":
        raise DataError(f"{where} must hold whole numbers or names; its type is {raw.dtype}")
    with np.errstate(invalid="ignore"):  # NaN has no int64; the comparison below finds it
        whole = raw.astype(np.int64)
    other = np.flatnonzero(whole != raw)
    if other.size:
        raise DataError(
            f"{where} must hold whole numbers or names; row {other[0]} holds {raw[other[0]]}"
        )
    return whole


class _ParquetCells:
    """Single cells of a Parquet column; the row group last read is kept."""

    def __init__(self, path: Path, key: str) -> None:
        file = files.open_parquet(path)
        groups = [file.metadata.row_group(g).num_rows for g in range(file.num_row_groups)]
        self._path, self._key = path, key
        self._starts = np.concatenate([[0], np.cumsum(groups)])  # [groups + 1]
        self._group, self._cells = -1, pa.chunked_array([], pa.null())

    def __call__(self, row: int) -> str | bytes:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group:
            with files.open_parquet(self._path) as file:
                self._cells = file.read_row_group(group, columns=[self._key]).column(self._key)
            self._group = group
        cell = self._cells[row - int(self._starts[group])].as_py()
        picture = encoded_bytes(cell)
        if picture is not None:
            return picture
        return "" if cell is None or isinstance(cell, (dict, bytes)) else str(cell)


def _parquet_values(path: Path, key: str, where: str) -> npt.NDArray[Any]:
    """Read a Parquet column of numbers or strings."""
    column = files.read_parquet(path, [key]).column(key)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    if not (text or number):
        raise DataError(f"{where} must hold whole numbers or names; its type is {kind}")
    if column.null_count:
        row = column.is_null().to_numpy().argmax()
        raise DataError(f"{where} is empty in row {row}; every sample needs a value")
    values: npt.NDArray[Any] = column.to_numpy()
    return values.astype(str) if text else values


def _find(name: str, data: Path) -> Path:
    """Find a file beside the data, or else from the working directory."""
    folder = data if data.is_dir() else data.parent
    for path in (folder / name, Path(name)):
        if path.is_file():
            return path
    raise DataError(f"no file {name}, neither in {folder} nor in {Path.cwd()}; check the path")


def _where(path: Path, key: str) -> str:
    """Name a column for a message."""
    return f"{path}:{key}" if key else str(path)
