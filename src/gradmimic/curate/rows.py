"""The rows of a selection: their columns, their order, and reading them in bounded memory.

sample_id_0 < sample_id_1 < …        so every sample stands there once, and two selections merge
                                     without looking anything up
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradmimic.errors import DataError, listed

REASON = pa.dictionary(pa.int32(), pa.string())
_COLUMNS = {
    "keep": pa.bool_(),
    "p_clean": pa.float64(),
    "score": pa.float64(),
    "visits": pa.int64(),
    "reason": REASON,
}
NAMES = ("sample_id", *_COLUMNS)
_BATCH = 1 << 18  # rows: some 20 MB, and row groups that other programs skip by
_STRINGS = (pa.string(), pa.large_string())


class TableRows:
    """Rows held in memory.

    Args:
        table: with the columns of a selection; reasons may be strings or a dictionary of them.

    Raises:
        DataError: there are other columns, nulls, a sample twice, or rows out of order.
    """

    def __init__(self, table: pa.Table) -> None:
        _check_schema(table.schema, "")
        self.table = pa.table({name: _normal(name, table[name]) for name in NAMES})
        self.table = self.table.unify_dictionaries()
        for _ in _checked(iter(self.table.select(["sample_id", "keep"]).to_batches()), ""):
            pass

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def id_type(self) -> pa.DataType:
        """int64 or string."""
        return self.table.schema.field("sample_id").type

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order."""
        yield from self.table.select(list(columns)).to_batches(max_chunksize=_BATCH)


class FileRows:
    """Rows in a Parquet file, read again each time and never held all at once.

    Args:
        path: the file; its columns are checked now, its rows whenever they are read.

    Raises:
        DataError: the file cannot be read, or has other columns.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with self._open() as file:
            self._length = file.metadata.num_rows
            self.id_type = _id_type(file.schema_arrow)

    def __len__(self) -> int:
        return int(self._length)

    def read(self) -> pa.Table:
        """Read all rows into memory."""
        return pa.Table.from_batches(self.batches(NAMES), schema(self.id_type)).unify_dictionaries()

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, refusing those that are not in order."""
        columns = list(columns)
        read = list(dict.fromkeys(["sample_id", "keep", *columns]))
        for batch in _checked(self._read(read), f"{self.path}: "):
            yield batch.select(columns)

    def _read(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Read some columns, in the types of a selection."""
        fields = schema(self.id_type, columns)
        with self._open() as file:
            try:
                # One row group at a time: asked for all, Arrow holds every one that it has read.
                for group in range(file.num_row_groups):
                    for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                        arrays = [_normal(name, batch[name]) for name in columns]
                        yield pa.RecordBatch.from_arrays(arrays, schema=fields)
            except (OSError, pa.ArrowException) as error:
                raise DataError(_unreadable(self.path, error)) from error

    def _open(self) -> pq.ParquetFile:
        """Open the file, having checked its columns."""
        try:
            _check_schema(pq.read_schema(self.path), f"{self.path}: ")
            return pq.ParquetFile(
                self.path, read_dictionary=["reason"], page_checksum_verification=True
            )
        except (OSError, pa.ArrowException) as error:
            raise DataError(_unreadable(self.path, error)) from error


def schema(id_type: pa.DataType, columns: Sequence[str] = NAMES) -> pa.Schema:
    """Return some columns of a selection, for ids of type int64 or string.

    Example:
        >>> schema(pa.int64(), ["sample_id", "keep"]).names
        ['sample_id', 'keep']
    """
    types = {"sample_id": id_type, **_COLUMNS}
    return pa.schema({name: types[name] for name in columns})


def check_columns(columns: Sequence[str]) -> None:
    """Refuse columns that a selection does not have."""
    if unknown := [name for name in columns if name not in NAMES]:
        raise DataError(f"a selection has no columns {unknown}; it has {list(NAMES)}.")


def some(ids: pa.Array | pa.ChunkedArray) -> str:
    """Name the first few ids."""
    names = ", ".join(repr(value) for value in ids[:3].to_pylist())
    return names + (", …" if len(ids) > 3 else "")


def _check_schema(found: pa.Schema, where: str) -> None:
    """Refuse other columns or types; their order does not matter."""
    expected = schema(_id_type(found))
    fits = sorted(found.names) == sorted(NAMES) and all(
        _value_type(found.field(field.name).type) == _value_type(field.type) for field in expected
    )
    if not fits:
        wanted = ", ".join(f"{field.name} {_value_type(field.type)}" for field in expected)
        came = listed([f"{field.name} {field.type}" for field in found], most=12)
        raise DataError(
            f"{where}expected the columns {wanted}, with sample_id int64 or string, got {came}. "
            "Make selections with select(log), or read them with Selection.from_parquet(path)."
        )


def _id_type(found: pa.Schema) -> pa.DataType:
    """Return the type that ids of a schema are brought to; int64 where there are none."""
    once = found.names.count("sample_id") == 1
    return pa.string() if once and found.field("sample_id").type in _STRINGS else pa.int64()


def _value_type(kind: pa.DataType) -> pa.DataType:
    """See through dictionaries and long strings."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if kind in _STRINGS else kind


def _normal(name: str, column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Bring a column whose type was checked to the one type it has in a selection."""
    wanted = _COLUMNS.get(name, _value_type(column.type))
    if column.type == wanted:
        return column
    plain = column.cast(_value_type(wanted))
    return plain.dictionary_encode() if wanted == REASON else plain


def _checked(batches: Iterator[pa.RecordBatch], where: str) -> Iterator[pa.RecordBatch]:
    """Pass on what is in order and without nulls, and refuse the rest."""
    last = None
    for batch in batches:
        ids = batch["sample_id"]
        if ids.null_count or batch["keep"].null_count:
            raise DataError(
                f"{where}a selection's sample_id and keep must not be null. Remove those rows."
            )
        if len(ids) == 0:
            continue
        ascending = pc.less(ids[:-1], ids[1:])
        at = ascending.index(False).as_py()  # −1 where all ascend
        pair = (last, ids[0].as_py()) if at < 0 else (ids[at].as_py(), ids[at + 1].as_py())
        if at >= 0 or (last is not None and not pair[0] < pair[1]):
            raise DataError(
                f"{where}a selection's rows must be sorted by sample_id, each sample once, but "
                f"{pair[1]!r} comes after {pair[0]!r}. Remove repeated rows, then "
                "table.sort_by('sample_id')."
            )
        last = ids[-1].as_py()
        yield batch


def _unreadable(path: Path, error: Exception) -> str:
    """Say that a file cannot be read, and what to do."""
    return (
        f"cannot read a selection from {path}: {error}. Pass a file that Selection.to_parquet "
        "wrote; if this one did, it was damaged or cut short since: write or copy it again."
    )
