"""The score log on disk: its columns, its version, and reading it back.

A part is one Parquet file of ``log_schema``; its metadata holds the version of the format, and the
direction's norm at each of its steps. A part of another version or with other columns is refused,
never guessed at.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.errors import LogError

FORMAT_VERSION = 2
VERSION_KEY = b"gradmimic.log.version"
NORMS_KEY = b"gradmimic.log.direction_norm"
RUN_FILE = "run.json"

_PART_NAME = re.compile(r"part-(\d+)-(\d+)\.parquet")
_COLUMNS = {
    "epoch": pa.int32(),
    "step": pa.int64(),
    "scorer": pa.string(),
    "score": pa.float32(),
    "weight": pa.float32(),
    "loss": pa.float32(),
    "batch_size": pa.int32(),
    "canary": pa.string(),  # null: a real sample
    "rank": pa.int32(),
}


def log_schema(id_type: pa.DataType) -> pa.Schema:
    """Return the columns of a log, in order, for ids of type int64 or string.

    Example:
        >>> log_schema(pa.int64()).names[:4]
        ['sample_id', 'epoch', 'step', 'scorer']
    """
    return pa.schema({"sample_id": id_type, **_COLUMNS})


class LogReader:
    """A score log opened for reading; it never changes the folder.

    Args:
        path: the log's folder.

    Raises:
        LogError: the folder is missing or holds no log.

    Example:
        >>> import tempfile
        >>> from gradmimic.log import ScoreLog
        >>> folder = tempfile.mkdtemp()
        >>> with ScoreLog(folder, seed=7) as log:
        ...     log.append(["a"], [0.5], [1.0], [2.0], epoch=0, step=0)
        >>> LogReader(folder).run["seed"]
        7
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise LogError(f"expected a score log's folder at {self.path}, but there is none.")
        if not (self.path / RUN_FILE).exists() and not self.parts:
            raise LogError(
                f"{self.path} is not a score log: it holds neither {RUN_FILE} nor any "
                "part-*.parquet. Pass the folder that ScoreLog(path) wrote to."
            )

    @property
    def run(self) -> dict[str, Any]:
        """What ``run.json`` says: versions, config, seed, events, ``direction_norm`` by step."""
        run = self._run_file()
        norms = dict(run["direction_norm"])
        for part in self.parts:  # run.json lags behind the parts until the log is closed
            norms |= part_norms(part)
        return {
            **run,
            "events": run.get("events", []),
            "direction_norm": {int(step): norm for step, norm in norms.items()},
        }

    @property
    def events(self) -> list[dict[str, Any]]:
        """What ``ScoreLog.mark`` noted; nothing where ``run.json`` is missing."""
        there = (self.path / RUN_FILE).exists()
        events: list[dict[str, Any]] = self._run_file().get("events", []) if there else []
        return events

    def scan(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:  # noqa: A002
        """Read all rows of all ranks: rank by rank, each in the order it appended them.

        Args:
            columns: names of the columns wanted; None means all.
            filter: a ``pyarrow.compute`` expression over any columns of the log, e.g.
                ``pc.field("epoch") < 3``; None means all rows.

        Returns:
            One row per visit; an empty table with the log's columns where nothing was appended.

        Raises:
            LogError: a part is damaged, of another format version, lacks columns, or has ids of
                another type than the rest; or a column is unknown.

        Example:
            >>> import tempfile
            >>> from gradmimic.log import ScoreLog
            >>> import pyarrow.compute as pc
            >>> with ScoreLog(tempfile.mkdtemp()) as log:
            ...     log.append([4, 2], [0.5, -0.25], [0.75, 0.25], [1.0, 2.0], epoch=0, step=0)
            ...     log.scan(["sample_id", "score"], pc.field("score") > 0).to_pylist()
            [{'sample_id': 4, 'score': 0.5}]
        """
        names = log_schema(pa.int64()).names
        wanted = names if columns is None else list(columns)
        if unknown := [name for name in wanted if name not in names]:
            raise LogError(f"a score log has no columns {unknown}; it has {names}.")
        parts = self.parts
        id_type = self.id_type(parts)
        # A filter may use columns that are not wanted, so those are dropped after it.
        loaded = wanted if filter is None else names
        tables = [log_schema(id_type).empty_table().select(wanted)]
        for part in parts:
            table = read_part(part, loaded)
            tables.append((table if filter is None else table.filter(filter)).select(wanted))
        return pa.concat_tables(tables)

    @property
    def parts(self) -> list[Path]:
        """The complete parts, by rank, then by number."""
        numbered = [(part_numbers(entry), entry) for entry in self.path.glob("part-*.parquet")]
        return [entry for numbers, entry in sorted(numbered) if numbers]

    def _run_file(self) -> dict[str, Any]:
        """Read ``run.json``, having checked its version."""
        file = self.path / RUN_FILE
        try:
            run: dict[str, Any] = json.loads(file.read_bytes())
            found = run["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LogError(
                f"{file} is not the {RUN_FILE} of a score log ({type(error).__name__}: {error}). "
                "Restore it, or log to a folder of its own."
            ) from error
        if found != FORMAT_VERSION:
            raise LogError(_other_version(file, found))
        return run

    def id_type(self, parts: list[Path]) -> pa.DataType:
        """Return the one type of id in all parts, having checked every part's columns."""
        types = {part: part_id_type(part) for part in parts}
        if len(set(types.values())) > 1:
            by_type = {str(kind): part for part, kind in types.items()}
            raise LogError(
                f"parts disagree on the type of sample_id: {by_type['int64'].name} has int64, "
                f"{by_type['string'].name} has string (in {self.path}). These are two data sets' "
                "logs: keep each in a folder of its own."
            )
        return next(iter(types.values()), pa.int64())


def part_numbers(part: Path) -> tuple[int, ...]:
    """Return (rank, number) of a part from its name, or () for a file that is no part."""
    match = _PART_NAME.fullmatch(part.name)
    return (int(match[1]), int(match[2])) if match else ()


def part_norms(part: Path) -> dict[str, float]:
    """Return the direction's norm at each step of a part."""
    norms: dict[str, float] = json.loads(_part_schema(part).metadata.get(NORMS_KEY, b"{}"))
    return norms


def part_id_type(part: Path) -> pa.DataType:
    """Return the type of a part's ids, having checked its version and columns."""
    schema = _part_schema(part)
    if missing := set(log_schema(pa.int64()).names) - set(schema.names):
        raise LogError(
            f"{part} lacks the columns {sorted(missing)}, though it says it is of format version "
            f"{FORMAT_VERSION}. Another program changed it: restore it, or remove it from the log."
        )
    id_type = schema.field("sample_id").type
    expected = log_schema(id_type)
    wrong = [
        name for name in expected.names if schema.field(name).type != expected.field(name).type
    ]
    if id_type not in (pa.int64(), pa.string()):
        wrong.insert(0, "sample_id")
    if wrong:
        raise LogError(
            f"{part} has other types than a score log in the columns {wrong}. Another program "
            "changed it: restore it, or remove it from the log."
        )
    return id_type


def _part_schema(part: Path) -> pa.Schema:
    """Read a part's schema, having checked its version."""
    try:
        schema = pq.read_schema(part)
    except (OSError, pa.ArrowException) as error:
        raise LogError(_damaged(part, error)) from error
    found = (schema.metadata or {}).get(VERSION_KEY, b"none").decode()
    if found != str(FORMAT_VERSION):
        raise LogError(_other_version(part, found))
    return schema


def read_part(part: Path, columns: list[str]) -> pa.Table:
    """Read some columns of a part whose schema was checked."""
    try:
        table = pq.read_table(part, columns=columns, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise LogError(_damaged(part, error)) from error
    return table.replace_schema_metadata(None)


def _damaged(part: Path, error: Exception) -> str:
    """Say that a part cannot be read."""
    return (
        f"{part} is damaged and cannot be read ({error}). Restore it from a copy, or remove it to "
        "go on without its rows."
    )


def _other_version(file: Path, found: object) -> str:
    """Say that a file is of another format version."""
    return (
        f"{file} is of log format version {found}, but this gradmimic reads version "
        f"{FORMAT_VERSION}. Read it with the gradmimic that wrote it, or log anew."
    )
