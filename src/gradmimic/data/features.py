"""Features: one row of numbers per sample, from ``.npy``, ``.npz`` or Parquet."""

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gradmimic.data import files
from gradmimic.data.files import PARQUET
from gradmimic.errors import DataError

_NPZ_KEYS = ("features", "X", "x")

Features = npt.NDArray[np.float32]


def read_features(
    path: Path, inputs: Sequence[str] = (), exclude: Collection[str] = ()
) -> Features:
    """Read a matrix of features.

    Args:
        path: a ``.npy`` or ``.npz`` file or a Parquet.
        inputs: where a file holds more than one thing, the array of an ``.npz`` or the columns of a
            Parquet: one column of lists, or several of numbers; patterns such as ``"f*"`` work.
            Left out, it is ``features``, ``X`` or ``x`` of an ``.npz``, and in a Parquet the only
            column of lists or else all columns of floating-point numbers, sorted by name.
        exclude: columns that are something else, such as labels, and are never guessed.

    Returns:
        The features as they stand, ``[n, d]`` float32; the caller checks that they are finite.

    Raises:
        DataError: no such file or column, or something that is no matrix of numbers.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        if inputs:
            raise DataError(f"{path} holds one array; leave the inputs out (got {list(inputs)})")
        return _matrix(files.load_npy(path), str(path))
    if suffix == ".npz":
        key = _npz_key(path, inputs)
        return _matrix(files.load_npz(path, key), f"{path}:{key}")
    if suffix in PARQUET:
        return _parquet_matrix(path, inputs, exclude)
    raise DataError(f"features come as .npy, .npz or .parquet; got {path}")


def _matrix(array: npt.NDArray[Any], where: str) -> Features:
    """Check and convert an array of numbers to ``[n, d]`` float32."""
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(
            f"features must be a matrix of numbers, [samples, features]; {where} holds shape "
            f"{array.shape} of {array.dtype}"
        )
    if array.shape[1] == 0:
        raise DataError(f"{where} holds no features: its shape is {array.shape}")
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported as that
        return np.ascontiguousarray(array, dtype=np.float32)


def _npz_key(path: Path, inputs: Sequence[str]) -> str:
    """Choose the array of an ``.npz`` that holds the features."""
    held = files.npz_keys(path)
    for key in inputs or _NPZ_KEYS:
        if key in held:
            return key
    wanted = " or ".join(inputs or _NPZ_KEYS)
    raise DataError(f"{path} has no array {wanted}; it has {', '.join(held)}")


def _parquet_matrix(path: Path, inputs: Sequence[str], exclude: Collection[str]) -> Features:
    """Read one column of lists, or several columns of numbers."""
    schema = files.open_parquet(path).schema_arrow
    names = _chosen(path, schema, inputs) if inputs else _guessed(path, schema, exclude)
    table = files.read_parquet(path, names)
    for name in names:
        if table.column(name).null_count:
            row = table.column(name).is_null().to_numpy().argmax()
            raise DataError(f"{path}:{name} is empty in row {row}; every sample needs features")
    where = f"{path}:{', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
    if len(names) == 1 and _is_list(schema.field(names[0]).type):
        return _matrix(_stacked(table.column(names[0]), where), where)
    odd = [name for name in names if not _is_number(schema.field(name).type)]
    if odd:
        raise DataError(
            f"features are one column of lists or several of numbers; {path}:{odd[0]} is of type "
            f"{schema.field(odd[0]).type}"
        )
    matrix = np.empty((table.num_rows, len(names)), dtype=np.float32)
    with np.errstate(over="ignore"):
        for place, name in enumerate(names):
            matrix[:, place] = table.column(name).to_numpy()
    return matrix


def _chosen(path: Path, schema: pa.Schema, inputs: Sequence[str]) -> list[str]:
    """Resolve names and patterns; what a pattern matches is sorted, so files agree on the order."""
    names: list[str] = []
    for pattern in inputs:
        exact = [pattern] if pattern in schema.names else []
        found = exact or sorted(name for name in schema.names if fnmatchcase(name, pattern))
        if not found:
            raise DataError(f"no column {pattern!r} in {path}; it has {', '.join(schema.names)}")
        names += [name for name in found if name not in names]
    return names


def _guessed(path: Path, schema: pa.Schema, exclude: Collection[str]) -> list[str]:
    """Choose the only column of lists, or all columns of floats: integers may well be labels."""
    fields = [field for field in schema if field.name not in exclude]
    lists = [field.name for field in fields if _is_list(field.type)]
    if len(lists) == 1:
        return lists
    floats = [] if lists else sorted(f.name for f in fields if pa.types.is_floating(f.type))
    if floats:
        return floats
    listed = ", ".join(f"{field.name} ({field.type})" for field in schema)
    raise DataError(
        f"cannot tell which columns of {path} hold the features; name one column of lists or "
        f"several of numbers as inputs. It has {listed}"
    )


def _stacked(column: pa.ChunkedArray, where: str) -> npt.NDArray[Any]:
    """Turn a column of lists of one length into a matrix."""
    if pa.types.is_fixed_size_list(column.type):
        width = column.type.list_size
    else:
        lengths = np.concatenate([chunk.value_lengths().to_numpy() for chunk in column.chunks])
        width = int(lengths[0]) if len(lengths) else 0
        other = np.flatnonzero(lengths != width)
        if other.size:
            raise DataError(
                f"{where} must hold lists of one length; row 0 has {width} numbers, row "
                f"{other[0]} has {lengths[other[0]]}"
            )
    flat = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return (np.concatenate(flat) if flat else np.empty(0)).reshape(len(column), width)


def _is_list(kind: pa.DataType) -> bool:
    """Tell whether a column holds lists of numbers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool((lists or pa.types.is_fixed_size_list(kind)) and _is_number(kind.value_type))


def _is_number(kind: pa.DataType) -> bool:
    """Tell whether a column holds numbers."""
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))
