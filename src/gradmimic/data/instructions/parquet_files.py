"""Instructions in Parquet files, all of the same columns."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write
from gradmimic.data.instructions.source import InstructionSource, Masks, Row
from gradmimic.data.pairs.place import Place
from gradmimic.errors import DataError

_TOGETHER = 256  # rows


class ParquetSource(InstructionSource):
    """Parquet files.

    Raises:
        DataError: one cannot be opened, or has other columns than the first.
    """

    kept_name = "kept.parquet"

    def __init__(self, name: str, place: Place) -> None:
        self.name, self._place, self.parts = name, place, place.stems()
        self._sizes: list[int] = []
        schemas: list[pa.Schema] = []
        for path in place.paths:
            try:
                with place.open(path) as file:
                    table = pq.ParquetFile(file)
                    schemas.append(table.schema_arrow)
                    self._sizes.append(table.metadata.num_rows)
            except Exception as error:  # whatever the file system or a damaged file raises
                raise DataError(f"{path} cannot be read as Parquet: {error}") from error
            if not schemas[-1].equals(schemas[0]):
                raise DataError(
                    f"{path} has other columns or types than {place.paths[0]}: "
                    f"{_told(schemas[-1])} instead of {_told(schemas[0])}. Expected files of one "
                    "data set."
                )
        self._schema = schemas[0]

    def rows(self, part: int) -> Iterator[Row]:
        """Yield the rows of a file."""
        with self._place.open(self._place.paths[part]) as file:
            for batch in pq.ParquetFile(file).iter_batches(_TOGETHER):
                yield from batch.to_pylist()

    def expected(self, part: int) -> int:
        """Return the number of rows that the file's footer tells."""
        return self._sizes[part]

    def write(self, path: Path, keep: Masks) -> None:
        """Write rows with the columns and types that they came with."""
        with atomic_write(path) as out, pq.ParquetWriter(out, self._schema) as writer:
            for source, mask in zip(self._place.paths, keep, strict=True):
                with self._place.open(source) as file:
                    self._copy(pq.ParquetFile(file), mask.tolist(), writer)

    def _copy(self, table: pq.ParquetFile, mask: list[bool], writer: pq.ParquetWriter) -> None:
        """Copy the rows of a file; a row group of which none is wanted is not read."""
        start = 0
        for group in range(table.num_row_groups):
            stop = start + table.metadata.row_group(group).num_rows
            wanted = mask[start:stop]
            if any(wanted):
                chosen = [row for row, here in enumerate(wanted) if here]
                writer.write_table(table.read_row_group(group).take(chosen))
            start = stop


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)
