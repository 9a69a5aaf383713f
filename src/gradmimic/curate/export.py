"""Files that appear whole or not at all, written piece by piece."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write
from gradmimic.errors import DataError


@contextmanager
def export(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file whole or not at all, and say what to do where the disk refuses it.

    Args:
        path: the file's final name.

    Yields:
        The file, open in binary mode under another name.

    Raises:
        DataError: the folder or the disk does not take the file; what stood there before stays.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "ids.txt"
        >>> with export(target) as file:
        ...     _ = file.write(b"7")
        >>> target.read_text()
        '7'
    """
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"cannot write {Path(path)}: {error}. Nothing was left under that name: make room or "
            "choose another folder, then export again."
        ) from error


def write_parquet(
    path: str | os.PathLike[str], batches: Iterable[pa.RecordBatch], columns: pa.Schema
) -> None:
    """Write rows of a selection as one Parquet file."""
    with (
        export(path) as file,
        pq.ParquetWriter(
            file, columns, use_dictionary=["reason"], write_page_checksum=True
        ) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def write_jsonl(path: str | os.PathLike[str], batches: Iterable[pa.RecordBatch]) -> None:
    """Write one JSON object a line, ASCII only, so that no id can break a line."""
    with export(path) as file:
        for batch in batches:
            for start in range(0, len(batch), 65_536):
                rows = batch.slice(start, 65_536).to_pylist()
                file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def write_npy(file: BinaryIO, dtype: np.dtype[Any], pieces: Iterable[npt.NDArray[Any]]) -> int:
    """Write one-dimensional pieces as the ``.npy`` file that ``np.save`` makes of them joined.

    Memory holds one piece at a time. The header states the length, so it is written twice: NumPy
    pads it such that every length takes the same room.

    Args:
        file: open for writing, at its start.
        dtype: of the array; a piece of another one is cast.
        pieces: arrays ``[k]``, in order.

    Returns:
        How many values were written.

    Example:
        >>> from io import BytesIO
        >>> file = BytesIO()
        >>> write_npy(file, np.dtype("i8"), [np.array([3, 1]), np.array([2])])
        3
        >>> np.load(BytesIO(file.getvalue()))
        array([3, 1, 2])
    """
    _write_header(file, dtype, 0)
    n = 0
    for piece in pieces:
        file.write(np.ascontiguousarray(piece, dtype).tobytes())
        n += len(piece)
    end = file.tell()
    file.seek(0)
    _write_header(file, dtype, n)
    file.seek(end)
    return n


def numpy_ids(ids: pa.Array) -> npt.NDArray[Any]:
    """Return int64, or fixed-width strings, which load without pickle."""
    if ids.type == pa.int64():
        return np.array(ids.to_numpy())
    return np.array(ids.to_pylist(), dtype=np.str_)


def _write_header(file: BinaryIO, dtype: np.dtype[Any], n: int) -> None:
    """Write the start of an ``.npy`` file of ``n`` values."""
    descr = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": descr, "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(file, header)
