"""What stage 2 decided: one row per sample, and ways to hand that on.

keep_i = [p_clean_i ≥ ½]        sorted by sample_id, every sample once, each with its reason
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write
from gradmimic.errors import DataError
from gradmimic.ids import as_ids

_COLUMNS = {
    "keep": pa.bool_(),
    "p_clean": pa.float64(),
    "score": pa.float64(),
    "visits": pa.int64(),
    "reason": pa.string(),
}


@dataclass(frozen=True, eq=False)
class Selection:
    """One decision per sample, with its reason.

    Attributes:
        table: sorted by ``sample_id`` (int64 or string), with the columns ``keep`` (bool),
            ``p_clean`` (in [0, 1], higher is cleaner, 0.5 and more is kept), ``score`` (mean over
            the visits, higher is better), ``visits`` and ``reason``.

    Raises:
        DataError: the table has other columns, or a sample twice.

    Example:
        >>> from gradmimic.curate import select
        >>> selection = select(pa.table({
        ...     "sample_id": [0, 1, 2, 3], "epoch": [0] * 4, "step": [0] * 4,
        ...     "scorer": ["mimic"] * 4, "score": [0.9, -0.8, 1.1, -1.0],
        ...     "weight": [0.4, 0.1, 0.4, 0.1], "batch_size": [4] * 4, "canary": [False] * 4,
        ... }), rule="one_over_b")
        >>> selection.kept
        array([0, 2])
        >>> selection.mask()
        array([ True, False,  True, False])
        >>> selection.table["reason"][1].as_py()
        'removed: mean relative weight 0.4 is below the uniform share 1'
        >>> selection.summary()
        '2 of 4 samples (50.0%) are kept, judged by 4 visits.'
    """

    table: pa.Table

    def __post_init__(self) -> None:
        schema = self.table.schema
        id_type = schema.field("sample_id").type if "sample_id" in schema.names else None
        expected = pa.schema({"sample_id": id_type or pa.int64(), **_COLUMNS})
        if id_type not in (pa.int64(), pa.string()) or not schema.equals(expected):
            raise DataError(
                f"expected the columns {_describe(expected)}, with sample_id int64 or string, got "
                f"{_describe(schema)}. Make selections with select(log), or read them with "
                "Selection.from_parquet(path)."
            )
        ids = self.table["sample_id"]
        ascending = pc.less(ids.slice(0, max(len(ids) - 1, 0)), ids.slice(1))
        if ids.null_count or not pc.all(ascending, min_count=0).as_py():
            raise DataError(
                "a selection's rows must be sorted by sample_id, each sample once. Remove repeated "
                "rows, then table.sort_by('sample_id')."
            )

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str]) -> "Selection":
        """Read what ``to_parquet`` wrote.

        Args:
            path: the Parquet file.

        Raises:
            DataError: the file cannot be read or holds no selection.
        """
        try:
            return cls(pq.read_table(path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"cannot read a selection from {path}: {error}. Pass a file that "
                "Selection.to_parquet wrote."
            ) from error

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def kept(self) -> npt.NDArray[Any]:
        """Ids of the samples to keep, sorted: int64, or strings."""
        return self._ids(self.table["keep"])

    @property
    def removed(self) -> npt.NDArray[Any]:
        """Ids of the samples to remove, sorted: int64, or strings."""
        return self._ids(pc.invert(self.table["keep"]))

    def index(self) -> npt.NDArray[Any]:
        """Return the ids to keep, sorted; the row numbers to keep where ids are row numbers."""
        return self.kept

    def mask(self, ids: Any = None) -> npt.NDArray[np.bool_]:
        """Return True where a sample is kept.

        Args:
            ids: ids ``[n]`` in the order the mask is wanted in, e.g. the data set's own; None if
                the ids are the row numbers 0 … n−1.

        Returns:
            bool ``[n]``.

        Raises:
            DataError: an id is not in the selection, or None was passed and ids are no row numbers.
        """
        known = self.table["sample_id"].combine_chunks()
        keep = self.table["keep"].to_numpy()
        if ids is None:
            if known.equals(pa.array(np.arange(len(known)))):
                return np.array(keep)
            raise DataError(
                "mask() without ids needs the sample ids to be the row numbers 0 to "
                f"{len(known) - 1}, but they are {_some(known)}. Pass your data set's ids in its "
                "order: mask(ids)."
            )
        wanted = pa.array(as_ids(ids))
        if len(wanted) == 0:
            return np.zeros(0, dtype=np.bool_)
        if wanted.type != known.type:
            raise DataError(
                f"this selection has {known.type} sample ids, but mask() got {wanted.type} ids. "
                "Pass the ids that were logged."
            )
        rows = pc.index_in(wanted, value_set=known)  # [n], null where unknown
        if rows.null_count:
            unknown = wanted.filter(pc.is_null(rows))
            raise DataError(
                f"{len(unknown)} ids are not in this selection: {_some(unknown)}. These samples "
                "were never scored; leave them out, or decide on them yourself."
            )
        return np.array(keep[rows.to_numpy()])

    def summary(self) -> str:
        """Say in one sentence how much is kept."""
        kept, n = int(pc.sum(self.table["keep"], min_count=0).as_py()), len(self)
        share = f" ({kept / n:.1%})" if n else ""
        visits = int(pc.sum(self.table["visits"], min_count=0).as_py())
        return f"{kept:,} of {n:,} samples{share} are kept, judged by {visits:,} visits."

    def to_parquet(self, path: str | os.PathLike[str]) -> None:
        """Write the table, for ``from_parquet`` and every program that reads Parquet."""
        with _export(path) as file:
            pq.write_table(self.table, file)

    def to_jsonl(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON object a line, ASCII only, so that no id can break a line."""
        with _export(path) as file:
            for batch in self.table.to_batches(max_chunksize=65_536):
                lines = [json.dumps(row) + "\n" for row in batch.to_pylist()]
                file.write("".join(lines).encode())

    def to_npy(self, path: str | os.PathLike[str], *, mask: bool = False) -> None:
        """Write ``index()``, or ``mask()``, as an ``.npy`` file that loads without pickle."""
        array = self.mask() if mask else self.index()
        with _export(path) as file:
            np.save(file, array, allow_pickle=False)

    def _ids(self, where: pa.ChunkedArray) -> npt.NDArray[Any]:
        """Return the ids where a condition holds."""
        ids = self.table["sample_id"].filter(where)
        if ids.type == pa.string():
            return np.array(ids.to_pylist(), dtype=np.str_)
        return np.array(ids.to_numpy())


@contextmanager
def _export(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file whole or not at all, and say what to do where the disk refuses it."""
    try:
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise DataError(
            f"cannot write {Path(path)}: {error}. Nothing was left under that name: make room or "
            "choose another folder, then export again."
        ) from error


def _describe(schema: pa.Schema) -> str:
    """Name columns and types."""
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _some(ids: pa.Array) -> str:
    """Name the first few ids."""
    names = ", ".join(repr(value) for value in ids[:3].to_pylist())
    return names + (", …" if len(ids) > 3 else "")
