"""Pairs in tables: Parquet and JSON lines, one row a pair.

data/pairs.parquet, row 17  →  key, and id where there is no column of ids, pairs/17
"""

import posixpath
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from gradmimic.data.columns import is_encoded
from gradmimic.data.files import PARQUET
from gradmimic.data.pairs.place import Place
from gradmimic.data.pairs.reasons import BAD_JSON, DAMAGED, NOT_OPENED, OUTSIDE
from gradmimic.data.pairs.rows import Columns, choose_columns, record
from gradmimic.data.pairs.sample import Dropped, End, Record, as_id
from gradmimic.data.pairs.source import PairSource
from gradmimic.data.pairs.table_files import (
    Part,
    line_parts,
    line_rows,
    parquet_parts,
    parquet_rows,
)
from gradmimic.errors import DataError

LINES = (".jsonl", ".ndjson")


class TableSource(PairSource):
    """Pairs in Parquet files or files of JSON lines.

    Args:
        name: as the user wrote it.
        place: the files.
        sample_id: the column of ids; None for ``uid``, else ids are made of file and row.
        image: the column of pictures or their paths; None to find it.
        text: the column of captions or lists of them; None to find it.

    Raises:
        DataError: no file can be read, or columns cannot be found.
    """

    def __init__(
        self, name: str, place: Place, sample_id: str | None, image: str | None, text: str | None
    ) -> None:
        self.name, self._place = name, place
        self._names = place.stems()
        self._parts: list[tuple[int, Part | str]] = []  # the file, and why there is no part of it
        schema = self._cut()
        if schema is None:
            said = next((f": {part}" for _, part in self._parts), "")
            raise DataError(f"no row of {name} can be read{said}. Expected Parquet or JSON lines")
        self._columns = choose_columns(schema, sample_id, image, text, name)
        self._read = [each.name for each in schema if _is_read(each, self._columns)]
        self.unique = self._columns.sample_id is None
        self.shards = [
            f"{self._names[file]}/{part.start}" if isinstance(part, Part) else self._names[file]
            for file, part in self._parts
        ]

    def expected(self, shard: int) -> int | None:
        """Return the number of rows."""
        part = self._parts[shard][1]
        return part.rows if isinstance(part, Part) else None

    def ids(self, shard: int) -> Iterator[str]:
        """Yield the ids of a shard, from their column alone."""
        file, part = self._parts[shard]
        column = self._columns.sample_id
        if isinstance(part, str) or column is None:
            return
        try:
            for row in self._rows(file, part, [column]):
                found = as_id((row or {}).get(column))
                if found is not None:
                    yield found
        except Exception:  # noqa: S110 — whoever reads the shard will tell
            pass

    def items(self, shard: int) -> Iterator[Record | Dropped | End]:
        """Yield the rows of a shard as samples, then its end."""
        file, part = self._parts[shard]
        if isinstance(part, str):
            yield End(0, NOT_OPENED, part)
            return
        open_path = partial(_inside, self._place, posixpath.dirname(self._place.paths[file]))
        row, fault, detail = part.start - 1, "", ""
        try:
            for row, cells in enumerate(self._rows(file, part, self._read), part.start):
                key = f"{self._names[file]}/{row}"
                if cells is None:
                    yield Dropped(key, BAD_JSON)
                else:
                    yield record(self._columns, cells, key, open_path)
        except Exception as error:  # whatever the file system or a damaged file raises
            fault, detail = DAMAGED, str(error) or type(error).__name__
        if not fault and row - part.start + 1 < part.rows:
            fault, detail = DAMAGED, "fewer rows than before"
        yield End(0, fault, detail, part.rows)

    def _cut(self) -> pa.Schema | None:
        """Cut the files into parts; return the columns of the first that can be read."""
        found = None
        for number, path in enumerate(self._place.paths):
            try:
                with self._place.open(path) as file:
                    parts, schema = (parquet_parts if _is_parquet(path) else line_parts)(file)
            except Exception as error:
                self._parts.append((number, str(error) or type(error).__name__))
                continue
            found = found if found is not None and len(found) else schema
            self._parts += [(number, part) for part in parts]
        return found if found is not None and len(found) else None

    def _rows(self, file: int, part: Part, columns: list[str]) -> Iterator[dict[str, Any] | None]:
        """Yield rows of a part."""
        path = self._place.paths[file]
        with self._place.open(path) as opened:
            yield from (parquet_rows if _is_parquet(path) else line_rows)(opened, part, columns)


def _inside(place: Place, folder: str, path: str) -> bytes | str:
    """Return the content of a file below the table's folder, or why it has none."""
    if path.startswith(("/", "~")) or ":" in path or "\\" in path or ".." in path.split("/"):
        return OUTSIDE
    return place.read(posixpath.join(folder, path))


def _is_parquet(path: str) -> bool:
    return path.lower().endswith(PARQUET)


def _is_read(each: pa.Field, columns: Columns) -> bool:
    """Tell whether a column is read: those of the pair, and what is small beside them."""
    if each.name in {columns.image, columns.text, columns.sample_id}:
        return True
    return not pa.types.is_nested(each.type) and not is_encoded(each.type)
