"""Opening input files: plain arrays, Parquet and text, and one wording for what goes wrong.

Nothing is ever unpickled, so an array file from a stranger can be wrong but cannot run code.
"""

import csv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.errors import DataError

PARQUET = (".parquet", ".pq")


def load_npy(path: Path) -> npt.NDArray[Any]:
    """Map a ``.npy`` array into memory, read-only.

    Args:
        path: the file.

    Returns:
        The array; its rows are read from disk when they are used.

    Raises:
        DataError: no such file, not a ``.npy`` file, or one that holds pickled objects.
    """
    with _readable(path), path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise DataError(f"{path} is not a .npy file; write it with numpy.save")
    with _readable(path):
        array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def npz_keys(path: Path) -> list[str]:
    """Name the arrays of an ``.npz`` file."""
    with _npz(path) as arrays:
        return list(arrays)


def load_npz(path: Path, key: str) -> npt.NDArray[Any]:
    """Read one array of an ``.npz`` file."""
    with _npz(path) as arrays:
        array: npt.NDArray[Any] = arrays[key]
    return array


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file; only its footer is read."""
    with _readable(path):
        return pq.ParquetFile(path)


def read_parquet(path: Path, columns: list[str]) -> pa.Table:
    """Read some columns of a Parquet file."""
    with _readable(path):
        return open_parquet(path).read(columns=columns)


def csv_header(path: Path) -> list[str]:
    """Name the columns of a CSV file by its first row."""
    with _readable(path), path.open(newline="", encoding="utf-8-sig") as lines:
        return next(csv.reader(lines), [])


def read_csv(path: Path, column: str) -> list[str]:
    """Read one column of a CSV file with a header row."""
    with _readable(path), path.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.reader(lines)
        place = next(rows).index(column)
        values = [row[place : place + 1] for row in rows if row]
    if [] in values:
        raise DataError(f"{path}: row {values.index([])} is too short to hold {column!r}")
    return [value for (value,) in values]


def read_lines(path: Path) -> list[str]:
    """Read a text file, one value a line."""
    with _readable(path):
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    if lines[-1] == "":
        lines.pop()  # the newline that ends the last line starts no further one
    return lines


@contextmanager
def _npz(path: Path) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    """Open an ``.npz`` file, whose arrays are read when they are asked for."""
    with _readable(path), path.open("rb") as file:
        if file.read(2) != b"PK":
            raise DataError(f"{path} is not an .npz file; write it with numpy.savez")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            yield arrays


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what can go wrong in reading into one error that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"no file {path} (from {Path.cwd()}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text: {error}") from error
    except ValueError as error:  # numpy's refusals and arrow's ArrowInvalid are ValueErrors
        if isinstance(error, DataError):
            raise
        if "Object arrays" in str(error) or "Python objects" in str(error):
            raise DataError(
                f"{path} holds pickled Python objects, which are never loaded because unpickling "
                "can run code; save a plain array of numbers or of fixed-width strings (dtype str)"
            ) from error
        raise DataError(f"{path} cannot be read: {error}") from error
    except (OSError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
