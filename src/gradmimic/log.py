"""The score log: what every sample scored at every visit, kept so that nothing written is lost.

A log is a folder:

    run.json                        format version, libraries, configuration, seed, ‖v‖ per step
    part-00000-000000.parquet       rows of rank 0, in the order they were appended
    part-00000-000001.parquet       … each part appears whole or not at all

One row is one *visit*: one (scorer, epoch, sample_id), or (scorer, step, sample_id) where the epoch
is not known. Parts are only ever added, so a killed run
loses the rows it had not flushed and nothing else. Scores, weights and losses are stored as
float32, also for float64 models: a score ranks samples, and its eighth digit ranks nothing.
"""

import atexit
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.atomic import atomic_write, temporary_name
from gradmimic.errors import LogError, UsageError
from gradmimic.log_batch import Batch, checked_batch, checked_norm, to_table
from gradmimic.log_cut import cut_parts, cut_run
from gradmimic.log_reader import (
    FORMAT_VERSION,
    NORMS_KEY,
    RUN_FILE,
    VERSION_KEY,
    LogReader,
    part_id_type,
    part_numbers,
)

_LIBRARIES = ("gradmimic", "torch", "numpy", "pyarrow")
# Columns of few values shrink as dictionaries; for the others a dictionary doubles the write time.
_REPETITIVE = ["epoch", "step", "scorer", "batch_size", "canary", "rank"]


class ScoreLog(LogReader):
    """A score log opened for writing; an existing one is continued.

    Rows are buffered in memory and written as Parquet parts. ``close()``, the end of a ``with``
    block (also when an exception passes through) and a normal end of the program write the rest.
    To only read a log, use ``ScoreLog.read(path)``.

    Args:
        path: the log's folder; made where it is missing.
        config: the run's resolved configuration, saved in ``run.json``; must be JSON-like.
            On resuming, None keeps the one already there.
        seed: the run's seed, likewise.
        rows_per_part: rows to buffer before a part is written; a part holds at most this many,
            unless one batch alone has more.
        rank: this process's rank; None means what ``torch.distributed`` says, 0 without it.
            Processes share a folder by different ranks; rank 0 writes ``run.json`` and events.

    Raises:
        LogError: the folder cannot be written, or holds something that is not such a log.

    Example:
        >>> import tempfile
        >>> with ScoreLog(tempfile.mkdtemp(), config={"temperature": 0.5}, seed=0) as log:
        ...     log.append(["a", "b"], [0.3, -0.1], [0.6, 0.4], [0.2, 1.9], epoch=0, step=0)
        ...     log.scan().num_rows
        2
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        config: Mapping[str, Any] | None = None,
        seed: int | None = None,
        rows_per_part: int = 65_536,
        rank: int | None = None,
    ) -> None:
        rank = _own_rank() if rank is None else rank
        if rows_per_part < 1 or rank < 0:
            raise LogError(
                f"expected rows_per_part >= 1 and rank >= 0, got {rows_per_part} and {rank}."
            )
        self.path = Path(path)
        self.rows_per_part = rows_per_part
        self.rank = rank
        self._batches: list[Batch] = []
        self._rows = 0
        self._norms: dict[int, float] = {}  # of the buffered steps
        self._closed = False
        self._pid = os.getpid()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
        except OSError as error:
            raise LogError(
                f"cannot write a score log to {self.path}: {error}. Choose a folder you may write."
            ) from error
        parts = self.parts
        own = [numbers[1] for part in parts if (numbers := part_numbers(part))[0] == rank]
        self._next = max(own, default=-1) + 1
        # None until the first rows say which kind of id this log holds.
        self._ids_are_text = bool(part_id_type(parts[0]) == pa.string()) if parts else None
        self._run = self._started_run(config, seed)
        self._write_run()
        pa.array([0])  # lets pyarrow import pandas, if there is one: at exit Python refuses that
        atexit.register(self._close_at_exit)

    @staticmethod
    def read(path: str | os.PathLike[str]) -> LogReader:
        """Open an existing log for reading only; nothing in the folder is made or changed.

        Args:
            path: the log's folder.

        Returns:
            A reader with ``scan`` and ``run``.

        Raises:
            LogError: the folder is missing or holds no log.

        Example:
            >>> import tempfile
            >>> ScoreLog(folder := tempfile.mkdtemp()).close()
            >>> ScoreLog.read(folder).scan().num_rows
            0
        """
        return LogReader(path)

    def append(
        self,
        sample_ids: Any,
        scores: npt.ArrayLike,
        weights: npt.ArrayLike,
        losses: npt.ArrayLike,
        *,
        epoch: int | None,
        step: int,
        direction_norm: float | None = None,
        scorer: str = "mimic",
        canary: Sequence[str | None] | None = None,
        batch_size: int | None = None,
    ) -> None:
        """Add one batch. A call that raises adds nothing, and keeps what was added before.

        Canaries that stand outside the batch's softmax belong in a call of their own, with weights
        0: rows of one call share one ``batch_size``.

        Args:
            sample_ids: ids ``[b]``, all integers or all strings, none twice.
            scores: ``[b]``, finite; an array, a list or a CPU tensor without grad.
            weights: ``[b]``, the batch's weights after the softmax.
            losses: ``[b]``, the unreduced losses.
            epoch: counted from 0; None where it is not known: stage 2 then numbers a sample's
                visits by their steps.
            step: counted from 0, over the whole run.
            direction_norm: ‖θ_ref − θ‖ at this step, saved in ``run.json``.
            scorer: the name of what made the scores.
            canary: ``[b]``, a canary's kind such as ``"uniform/10"``, None for a real sample; None
                means that all are real. A canary has the id of the sample it was made from.
            batch_size: how many rows share the softmax, where other ranks log some of them; None
                means b.

        Raises:
            LogError: a length, an id, a number or a score cannot be logged; or the disk is full.
            UsageError: the log is closed.

        Example:
            >>> import tempfile
            >>> log = ScoreLog(tempfile.mkdtemp())
            >>> log.append([7], [float("nan")], [1.0], [0.5], epoch=0, step=3)
            Traceback (most recent call last):
            gradmimic.errors.LogError: the score of sample 7 is nan. Check its input and its loss. \
Nothing of this batch was logged (scorer 'mimic', epoch 0, step 3).
            >>> log.close()
        """
        if self._closed:
            raise UsageError(f"the log at {self.path} is closed. Open it again: ScoreLog(path).")
        batch = checked_batch(
            sample_ids, scores, weights, losses, canary,
            epoch=epoch, step=step, scorer=scorer, batch_size=batch_size,
        )  # fmt: skip
        size = len(batch.ids)
        if size == 0:
            return
        self._check_kind_of_ids(batch)
        norm = None if direction_norm is None else checked_norm(direction_norm, step)
        if self._rows and self._rows + size > self.rows_per_part:
            self._write_part()
        self._ids_are_text = isinstance(batch.ids, list)
        self._batches.append(batch)
        self._rows += size
        if norm is not None:
            self._norms[batch.step] = norm

    def mark(self, event: str, step: int, **facts: Any) -> None:
        """Note in ``run.json`` what happened to the run, at once.

        ``"overtaken"`` tells stage 2 that the visits from this step on know nothing.

        Args:
            event: its name.
            step: when.
            facts: more about it, JSON-like.

        Raises:
            LogError: it cannot be written, or is not JSON-like.

        Example:
            >>> import tempfile
            >>> with ScoreLog(tempfile.mkdtemp()) as log:
            ...     log.mark("overtaken", 700)
            ...     log.run["events"]
            [{'event': 'overtaken', 'step': 700}]
        """
        self._run["events"].append({"event": event, "step": step, **facts})
        self._write_run()

    def flush(self) -> None:
        """Write the buffered rows as one part, and ``run.json``.

        Raises:
            LogError: they cannot be written, e.g. on a full disk. No half-written file is left,
                the rows stay in memory, and a later flush writes them.

        Example:
            >>> import tempfile
            >>> log = ScoreLog(tempfile.mkdtemp())
            >>> log.append([1], [0.5], [1.0], [0.1], epoch=0, step=0)
            >>> log.flush()
            >>> [part.name for part in log.path.glob("*.parquet")]
            ['part-00000-000000.parquet']
            >>> log.close()
        """
        if self._batches:
            self._write_part()
            self._write_run()

    def discard(self) -> None:
        """Forget the rows that no part holds yet: half of what belongs together is worth nothing.

        Example:
            >>> import tempfile
            >>> with ScoreLog(tempfile.mkdtemp()) as log:
            ...     log.append([1], [0.5], [1.0], [0.1], epoch=0, step=0)
            ...     log.discard()
            ...     log.scan().num_rows
            0
        """
        self._batches.clear()
        self._norms = {}
        self._rows = 0

    def cut(self, step: int, *, events: int | None = None, ranks: int | None = None) -> None:
        """Forget a step and all later ones: a run that resumes there logs them again.

        Each rank forgets its own rows, without waiting for the others.

        Args:
            step: the first one to go.
            events: how many ``len(log.events)`` there were by then; None keeps those of earlier
                steps.
            ranks: how many share the log by now; where there were more before, rank 0 forgets
                theirs. None: as many as before.

        Raises:
            LogError: a part is damaged, or the folder takes no change.

        Example:
            >>> import tempfile
            >>> with ScoreLog(tempfile.mkdtemp()) as log:
            ...     for step in range(3):
            ...         log.append([step], [0.5], [1.0], [0.1], epoch=0, step=step)
            ...     log.cut(2)
            ...     log.scan(["sample_id"])["sample_id"].to_pylist()
            [0, 1]
        """
        self.flush()
        gone = sys.maxsize if ranks is None or self.rank != 0 else ranks
        numbers = {part: part_numbers(part) for part in self.parts}
        own = [part for part, (rank, _) in numbers.items() if rank == self.rank or rank >= gone]
        try:
            for part in own:
                part_id_type(part)
            left = [numbers[part] for part in cut_parts(own, step)]
        except (OSError, pa.ArrowException) as error:
            raise LogError(
                f"cannot cut the log at {self.path} back to step {step}: {error}. Restore the "
                "folder from a copy, or log to another one."
            ) from error
        self._next = max([number for rank, number in left if rank == self.rank], default=-1) + 1
        if not self.parts:
            self._ids_are_text = None
        self._run = cut_run(self._run, step, events)
        self._write_run()

    def scan(self, columns: Sequence[str] | None = None, filter: Any = None) -> pa.Table:  # noqa: A002
        """Flush, then read everything appended so far; see ``LogReader.scan``."""
        self.flush()
        return super().scan(columns, filter)

    def close(self) -> None:
        """Flush and refuse further rows; closing twice is harmless."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        atexit.unregister(self._close_at_exit)

    def __enter__(self) -> "ScoreLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _close_at_exit(self) -> None:
        """Save the rows of a log nobody closed, unless this is a fork with a copy of them."""
        if os.getpid() == self._pid:
            self.close()

    def _check_kind_of_ids(self, batch: Batch) -> None:
        """Refuse string ids in a log of integers, and the other way round."""
        is_text = isinstance(batch.ids, list)
        if self._ids_are_text not in (None, is_text):
            old, new = ("int64", "string") if is_text else ("string", "int64")
            raise LogError(
                f"the log at {self.path} holds {old} sample ids, but {new} ids came (epoch "
                f"{batch.epoch}, step {batch.step}). Use one kind of id throughout. Nothing of "
                "this batch was logged."
            )

    def _write_part(self) -> None:
        """Write the buffered rows with their norms, so that neither is ever there alone."""
        part = self.path / f"part-{self.rank:05d}-{self._next:06d}.parquet"
        if part.exists():
            raise LogError(self._taken(part))
        table = to_table(self._batches, self.rank).replace_schema_metadata(
            {VERSION_KEY: str(FORMAT_VERSION), NORMS_KEY: json.dumps(self._norms)}
        )
        content = pa.BufferOutputStream()
        pq.write_table(table, content, use_dictionary=_REPETITIVE, write_page_checksum=True)
        try:
            with atomic_write(part, alone=True) as file:
                file.write(content.getvalue())
        except FileExistsError as error:
            raise LogError(self._taken(part)) from error
        except OSError as error:
            raise LogError(self._cannot_write(part, error)) from error
        self._run["direction_norm"] |= self._norms
        self._norms = {}
        self._batches.clear()
        self._rows = 0
        self._next += 1

    def _remove_leftovers(self) -> None:
        """Remove what a killed process of this rank left half-written."""
        for leftover in self.path.glob(f".part-{self.rank:05d}-*.parquet.tmp"):
            leftover.unlink()
        if self.rank == 0:
            temporary_name(self.path / RUN_FILE).unlink(missing_ok=True)

    def _started_run(self, config: Mapping[str, Any] | None, seed: int | None) -> dict[str, Any]:
        """Make what run.json will say, keeping what an earlier run of this log said."""
        old = self.run if (self.path / RUN_FILE).exists() else {}
        return {
            "format_version": FORMAT_VERSION,
            "created": old.get("created", datetime.now(timezone.utc).isoformat(timespec="seconds")),
            "versions": library_versions(),
            "config": old.get("config") if config is None else dict(config),
            "seed": old.get("seed") if seed is None else seed,
            "direction_norm": old.get("direction_norm", {}),
            "events": old.get("events", []),
        }

    def _write_run(self) -> None:
        """Write run.json, one key a line: json's own indentation is ten times slower."""
        if self.rank != 0:
            return
        file = self.path / RUN_FILE
        try:
            lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self._run.items()]
            with atomic_write(file) as out:
                out.write(("{\n" + ",\n".join(lines) + "\n}\n").encode())
        except (TypeError, ValueError) as error:
            raise LogError(
                f"config and seed must be JSON-like (dicts, lists, text, numbers): {error}."
            ) from error
        except OSError as error:
            raise LogError(self._cannot_write(file, error)) from error

    def _taken(self, part: Path) -> str:
        """Say that another process writes the parts of this rank."""
        return (
            f"{part} was written by somebody else since this log was opened. Give every process "
            "its own rank=, or its own folder."
        )

    def _cannot_write(self, file: Path, error: OSError) -> str:
        """Say that the disk does not take a file, and that nothing is lost by it."""
        return (
            f"cannot write {file}: {error}. {self._rows} rows stay in memory: make room, then "
            "call flush() again."
        )


def _own_rank() -> int:
    """Return this process's rank, without importing torch where nobody did."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0
    return int(distributed.get_rank())


def library_versions() -> dict[str, str | None]:
    """Look up library versions without importing any.

    Returns:
        Library to version, Python's included; None where one is not installed.

    Example:
        >>> list(library_versions())
        ['python', 'gradmimic', 'torch', 'numpy', 'pyarrow']
    """
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = None
    return versions
