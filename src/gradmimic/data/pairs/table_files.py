"""The two kinds of table files, cut into parts that can be read on their own.

Parquet       row groups, together at least ``SHARD`` rows
JSON lines    ``SHARD`` lines from a known byte on
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.data.pairs.reasons import MAX_BYTES

SHARD = 2_000  # rows
_PROBED = 100  # lines that tell which fields there are
_CELLS = 64  # rows with their pictures in memory at a time


@dataclass(frozen=True)
class Part:
    """Some rows of a table file.

    Args:
        start: the number of the first.
        rows: how many there are.
        groups: their row groups, in a Parquet.
        byte: where their lines begin, in a file of JSON lines.
    """

    start: int
    rows: int
    groups: tuple[int, ...] = field(default=())
    byte: int = 0


def parquet_parts(file: BinaryIO) -> tuple[list[Part], pa.Schema]:
    """Cut a Parquet into parts; also return its columns."""
    table = pq.ParquetFile(file)
    parts: list[Part] = []
    start, rows, groups = 0, 0, []
    for group in range(table.num_row_groups):
        groups.append(group)
        rows += table.metadata.row_group(group).num_rows
        if rows >= SHARD or group == table.num_row_groups - 1:
            parts.append(Part(start, rows, tuple(groups)))
            start, rows, groups = start + rows, 0, []
    return parts, table.schema_arrow


def parquet_rows(file: BinaryIO, part: Part, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a part of a Parquet, some columns of them."""
    table = pq.ParquetFile(file)
    for batch in table.iter_batches(_CELLS, row_groups=list(part.groups), columns=columns):
        yield from batch.to_pylist()


def line_parts(file: BinaryIO) -> tuple[list[Part], pa.Schema]:
    """Cut a file of JSON lines into parts; also return the fields of its first objects."""
    parts: list[Part] = []
    first: dict[str, Any] = {}  # a value of each field
    start, byte, row = 0, 0, 0
    for row, line in enumerate(_lines(file), 1):
        if row <= _PROBED:
            own = _object(line) or {}
            first |= {name: value for name, value in own.items() if first.get(name) is None}
        if row - start == SHARD:
            parts.append(Part(start, SHARD, byte=byte))
            start, byte = row, file.tell()
    if row > start:
        parts.append(Part(start, row - start, byte=byte))
    return parts, pa.schema([(name, _type(value)) for name, value in first.items()])


def line_rows(file: BinaryIO, part: Part, columns: list[str]) -> Iterator[dict[str, Any] | None]:
    """Yield the rows of a part of a file of JSON lines; None for a line that holds no object."""
    file.seek(part.byte)
    for _, line in zip(range(part.rows), _lines(file), strict=False):
        row = _object(line)
        yield None if row is None else {name: row.get(name) for name in columns}


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield lines that are not blank; of one longer than a picture may be, the beginning."""
    while line := file.readline(MAX_BYTES):
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_BYTES)
        if line.strip():
            yield line


def _type(value: object) -> pa.DataType:
    """Return the type of a column that holds such values, as far as it matters here."""
    if isinstance(value, list):
        return pa.list_(_type(value[0] if value else None))
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, bool | int | float):
        return pa.float64()
    return pa.struct([]) if isinstance(value, dict) else pa.null()


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None
