"""What img2dataset leaves beside a shard: a row for every download, and how many succeeded.

00000000.parquet: key, status, uid, …        00000000_stats.json: {"successes": 9874, …}
"""

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradmimic.data.pairs.place import Place


class Sidecar:
    """The files beside one shard, read when they are asked for; damaged ones tell nothing.

    Args:
        place: where the shard lies.
        stem: its path without the suffix.
        sample_id: the column of sample ids.
    """

    def __init__(self, place: Place, stem: str, sample_id: str) -> None:
        self._place, self._stem, self._id = place, stem, sample_id

    def ids(self) -> Mapping[str, Any]:
        """Return the id of every key that was downloaded, empty where nothing tells."""
        return self._ids

    def count(self) -> int | None:
        """Return how many samples the shard was written with, None where nothing tells."""
        try:
            with self._place.open(f"{self._stem}_stats.json") as file:
                successes = json.load(file)["successes"]
            if isinstance(successes, int) and successes >= 0:
                return successes
        except Exception:  # noqa: S110 — absent or damaged, the Parquet may tell
            pass
        table = self._read(["status"])
        if table is not None:
            return int(pc.sum(pc.equal(table["status"], "success")).as_py() or 0)
        return self._rows

    @cached_property
    def _ids(self) -> dict[str, Any]:
        table = self._read(["key", self._id, "status"])
        if table is None:
            table = self._read(["key", self._id])
        else:
            table = table.filter(pc.equal(table["status"], "success"))
        if table is None:
            return {}
        keys = map(str, table["key"].to_pylist())
        return dict(zip(keys, table[self._id].to_pylist(), strict=True))

    @cached_property
    def _rows(self) -> int | None:
        try:
            with self._place.open(f"{self._stem}.parquet") as file:
                return int(pq.ParquetFile(file).metadata.num_rows)
        except Exception:
            return None

    def _read(self, columns: list[str]) -> Any:
        """Read columns of the Parquet; None where it is absent, damaged, or lacks one of them."""
        try:
            with self._place.open(f"{self._stem}.parquet") as file:
                table = pq.ParquetFile(file).read(columns=columns)
        except Exception:
            return None
        return table if table.num_columns == len(columns) else None
