"""A table of outputs on disk: its columns, its version, writing it and reading it back.

    sample_id    int64 or string
    outputs      fixed_size_list<float16>[K]

The Parquet metadata holds the version of the format, the kind, and the source. A file of another
version or with other columns is refused, never guessed at.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from gradmimic.atomic import atomic_write
from gradmimic.errors import DataError
from gradmimic.ids import Ids

Kept = Literal["logits", "embeddings"]

FORMAT_VERSION = 1
VERSION_KEY, KIND_KEY, SOURCE_KEY = (
    f"gradmimic.outputs.{name}".encode() for name in ("version", "kind", "source")
)
_AT_ONCE = 1 << 22  # values of a row group: 8 MB; larger ones cost memory and save no time


class Block(NamedTuple):
    """The outputs of some samples."""

    ids: Ids  # [b]
    values: Tensor  # [b, K] float16


class Table(NamedTuple):
    """What a file holds."""

    ids: Ids  # [n]
    values: Tensor  # [n, K] float16
    kind: Kept
    source: str


def write_table(
    path: str | os.PathLike[str], blocks: Iterable[Block], kind: Kept, source: str
) -> None:
    """Write blocks as they come; the file appears whole or not at all.

    Args:
        path: the file; its folder must exist.
        blocks: with ids of one kind, and one K.
        kind: what the values are.
        source: where they came from.

    Raises:
        DataError: there are no blocks.
        OSError: the folder or the disk does not take the file.
    """
    with atomic_write(path) as file:
        groups = _grouped(blocks)
        first = next(groups, None)
        if first is None:
            raise DataError(f"expected outputs of one sample or more, but {source} gives none.")
        schema = _schema(first, kind, source)
        with pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=False,
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            for ids, values in chain([first], groups):
                flat = pa.array(values.contiguous().numpy().ravel())
                lists = pa.FixedSizeListArray.from_arrays(flat, type=schema.field("outputs").type)
                id_column = pa.array(ids, schema.field("sample_id").type)
                writer.write_table(pa.table([id_column, lists], schema=schema))


def read_table(path: Path) -> Table:
    """Read a file, row group by row group into one array: there is never a second copy of it all.

    Raises:
        DataError: the file is missing, damaged, of another format version, or something else.
    """
    if not path.is_file():
        raise DataError(f"there is no table of outputs at {path}. Check the path.")
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            kind, source, width = _checked_schema(path, file.schema_arrow)
            column = file.read(columns=["sample_id"]).column(0)
            ids: Ids = column.to_pylist() if column.type == pa.string() else column.to_numpy()
            values = torch.empty(file.metadata.num_rows, width, dtype=torch.float16)
            array, start = values.numpy(), 0
            for group in range(file.num_row_groups):
                for chunk in file.read_row_group(group, columns=["outputs"]).column(0).chunks:
                    stop = start + len(chunk)
                    array[start:stop] = chunk.flatten().to_numpy().reshape(-1, width)
                    start = stop
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{path} is damaged, or no Parquet file ({error}). Restore it from a copy, or write "
            "it again with gradmimic cache."
        ) from error
    return Table(ids, values, kind, source)


def joined(blocks: list[Block]) -> Block:
    """Return all blocks, one or more, as one.

    Example:
        >>> one, other = Block(["a"], torch.zeros(1, 2)), Block(["b"], torch.ones(1, 2))
        >>> joined([one, other])
        Block(ids=['a', 'b'], values=tensor([[0., 0.],
                [1., 1.]]))
    """
    ids: Any
    if isinstance(blocks[0].ids, list):
        ids = [name for block in blocks for name in block.ids]
    else:
        ids = np.concatenate([block.ids for block in blocks])
    return Block(ids, torch.cat([block.values for block in blocks]))


def spans(n: int, width: int) -> Iterator[slice]:
    """Cut n rows of some width into pieces of bounded size.

    Example:
        >>> [*spans(5, 1 << 21)]
        [slice(0, 2, None), slice(2, 4, None), slice(4, 6, None)]
    """
    step = max(1, _AT_ONCE // max(width, 1))
    return (slice(start, start + step) for start in range(0, n, step))


def _grouped(blocks: Iterable[Block]) -> Iterator[Block]:
    """Join small blocks to row groups."""
    waiting: list[Block] = []
    held = 0
    for block in blocks:
        waiting.append(block)
        held += block.values.numel()
        if held >= _AT_ONCE:
            yield joined(waiting)
            waiting, held = [], 0
    if waiting:
        yield joined(waiting)


def _schema(first: Block, kind: Kept, source: str) -> pa.Schema:
    """Return the columns of a file, and what its metadata says."""
    id_type = pa.string() if isinstance(first.ids, list) else pa.int64()
    value = pa.field("element", pa.float16(), nullable=False)
    return pa.schema(
        [
            pa.field("sample_id", id_type, nullable=False),
            pa.field("outputs", pa.list_(value, first.values.shape[1]), nullable=False),
        ],
        {VERSION_KEY: str(FORMAT_VERSION), KIND_KEY: kind, SOURCE_KEY: source},
    )


def _checked_schema(path: Path, schema: pa.Schema) -> tuple[Kept, str, int]:
    """Return kind, source and K of a file that is one of ours."""
    notes = schema.metadata or {}
    if VERSION_KEY not in notes:
        raise DataError(
            f"{path} is a Parquet file, but not one of outputs that gradmimic wrote. Make one from "
            f"it: gradmimic cache --table {path} --ids COLUMN --outputs COLUMNS --out OTHER.parquet"
        )
    found = notes[VERSION_KEY].decode()
    if found != str(FORMAT_VERSION):
        raise DataError(
            f"{path} is of outputs format version {found}, but this gradmimic reads version "
            f"{FORMAT_VERSION}. Write it again with gradmimic cache."
        )
    types = {field.name: field.type for field in schema}
    values: Any = types.get("outputs", pa.null())
    kind: Any = notes.get(KIND_KEY, b"none").decode()
    if (
        types.get("sample_id") not in (pa.int64(), pa.string())
        or not pa.types.is_fixed_size_list(values)
        or values.value_type != pa.float16()
        or kind not in get_args(Kept)
    ):
        held = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise DataError(
            f"{path} has other columns than a table of outputs: {held}. Another program changed "
            "it: restore it, or write it again with gradmimic cache."
        )
    return kind, notes.get(SOURCE_KEY, str(path).encode()).decode(), values.list_size
