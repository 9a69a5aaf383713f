"""What stage 2 decided: one row per sample, and ways to combine that and to hand it on.

sample_id, keep, p_clean, score, visits, reason      sorted by sample_id, every sample once

``select`` decides; rankings and set algebra change ``keep`` and ``reason`` alone: what was measured
stays.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate import algebra, by_id, datacomp, label_columns, ranking
from gradmimic.curate.export import export, numpy_ids, write_jsonl, write_npy, write_parquet
from gradmimic.curate.in_order import in_order
from gradmimic.curate.metadata import Sources
from gradmimic.curate.rows import NAMES, FileRows, TableRows, check_columns, schema
from gradmimic.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Sampler

    from gradmimic.curate.sampler import By

Only = Literal["kept", "removed"]


class Selection:
    """One decision per sample, with its reason.

    ``a & b``, ``a | b`` and ``a - b`` keep the samples that both keep, that either keeps, and that
    ``a`` keeps and ``b`` does not; see ``gradmimic.curate.algebra``.

    Args:
        table: sorted by ``sample_id`` (int64 or string), with the columns ``keep`` (bool),
            ``p_clean`` (in [0, 1], higher is cleaner, null where nobody judged it), ``score``
            (mean over the visits, higher is better), ``visits`` and ``reason``.
        notes: what no row says of how this came about, a sentence each.

    Raises:
        DataError: the table has other columns, or a sample twice.

    Example:
        >>> mimic = Selection.from_scores([0, 1, 2, 3], [0.9, -0.8, 1.1, -1.0])
        >>> mimic.above(0.0).kept
        array([0, 2])
        >>> mimic.above(0.0).mask()
        array([ True, False,  True, False])
        >>> mimic.above(0.0).summary()
        '2 of 4 samples (50.0%) are kept, judged by 4 visits.'
        >>> clip = Selection.from_scores([0, 1, 2, 3], [0.31, 0.30, 0.12, 0.11])
        >>> (clip.top(0.75) - mimic.bottom(0.5)).kept
        array([0, 2])
    """

    def __init__(self, table: pa.Table, notes: Sequence[str] = ()) -> None:
        self._rows: TableRows | FileRows = TableRows(table)
        self.notes = tuple(notes)

    @classmethod
    def from_parquet(cls, path: str | os.PathLike[str], notes: Sequence[str] = ()) -> "Selection":
        """Open what ``to_parquet`` wrote; rows are read, and checked, when they are needed.

        Args:
            path: the Parquet file, sorted by ``sample_id``.
            notes: what its rows do not say.

        Raises:
            DataError: the file cannot be read or holds no selection.
        """
        selection = cls.__new__(cls)
        selection._rows = FileRows(path)
        selection.notes = tuple(notes)
        return selection

    @classmethod
    def from_scores(cls, ids: Any, scores: Any) -> "Selection":
        """Take up scores from elsewhere, to rank and to combine with others by id.

        All samples are kept until ``top``, ``above`` or ``per_class`` decides. ``visits`` is 1,
        and ``p_clean`` is null, since a score alone is no probability.

        Args:
            ids: sample ids ``[n]``, in any order. One that comes again with the same score is
                taken once.
            scores: finite numbers ``[n]``, higher is better: pass −loss, not the loss.

        Raises:
            DataError: a score is not finite, or a sample has two scores.
        """
        return cls(by_id.scored(ids, scores))

    @classmethod
    def from_table(
        cls,
        table: pa.Table | str | os.PathLike[str],
        *,
        id: str,  # noqa: A002
        score: str,
    ) -> "Selection":
        """Take up a column of scores from a table, as ``from_scores`` does.

        Args:
            table: a ``pyarrow.Table``, or the path of a ``.parquet`` or ``.csv`` file.
            id: the column of sample ids. From a ``.csv`` they are whole numbers if all are written
                as such, without leading zeros; else strings.
            score: the column of scores, higher is better.

        Raises:
            DataError: no such file or column, or scores that ``from_scores`` refuses.
        """
        return cls(by_id.scored(*by_id.read_columns(table, id, score)))

    @classmethod
    def from_metadata(
        cls,
        metadata: Sources,
        *,
        id: str = "uid",  # noqa: A002
        score: str | None = None,
        where: str | Sequence[str] | None = None,
    ) -> "Selection":
        """Take up all samples of a pool's metadata, as DataComp publishes them.

        ``Selection.from_metadata(files, score="clip_l14_similarity_score").top(0.3)``

        Args:
            metadata: Parquet files, folders of them, patterns with ``*``, or URLs of any of these.
            id: the column of sample ids.
            score: the column of scores, higher is better; samples without one are left out. None
                takes all samples up, without a score to rank.
            where: conditions as of ``where()``; what does not fulfil them is removed.

        Raises:
            ConfigError: there is no such column, or a condition cannot be read.
            DataError: there are no such files, or they cannot be read.
        """
        from gradmimic.curate.by_metadata import scored_by_metadata  # loads the query engine

        return cls(*scored_by_metadata(metadata, id, score, where))

    @property
    def table(self) -> pa.Table:
        """All columns, in memory; a file is read on first use."""
        if isinstance(self._rows, FileRows):
            self._rows = TableRows(self._rows.read())
        return self._rows.table

    @property
    def id_type(self) -> pa.DataType:
        """int64 or string."""
        return self._rows.id_type

    def batches(self, columns: Sequence[str] = NAMES) -> Iterator[pa.RecordBatch]:
        """Read some columns piece by piece, in the order of the ids.

        Args:
            columns: their names; reasons come as a dictionary of strings.

        Raises:
            DataError: there is no such column; or the file is damaged or not sorted.
        """
        check_columns(columns)
        return self._rows.batches(columns)

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Selection of {len(self):,} samples>"

    @property
    def kept(self) -> npt.NDArray[Any]:
        """Ids of the samples to keep, sorted: int64, or strings."""
        return self._joined(map(numpy_ids, self._ids("kept")))

    @property
    def removed(self) -> npt.NDArray[Any]:
        """Ids of the samples to remove, sorted: int64, or strings."""
        return self._joined(map(numpy_ids, self._ids("removed")))

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
        return np.array(self.rows(ids, ["keep"])["keep"].to_numpy(), dtype=np.bool_)

    def rows(self, ids: Any = None, columns: Sequence[str] = NAMES) -> pa.Table:
        """Return some columns in the order of a data set.

        Args:
            ids: ids ``[n]`` in that order; None if the ids are the row numbers 0 … n−1.
            columns: their names.

        Raises:
            DataError: as of ``mask``.
        """
        return in_order(self, ids, columns)

    def sampler(
        self,
        ids: Any = None,
        *,
        weights: "By" = "keep",
        temperature: float = 1.0,
        num_samples: int | None = None,
        generator: "torch.Generator | None" = None,
    ) -> "Sampler[int]":
        """Return a sampler for a ``DataLoader``: of the kept rows, or by weights.

        Args:
            ids: ``[n]``, the id of each row of the data set; None if ids are the row numbers.
            weights: ``"keep"``, every kept row once, shuffled; ``"p_clean"``, all rows, drawn with
                replacement as often as they are likely clean; ``"score"``, by softmax(score / τ).
            temperature: τ > 0, in the scores' unit.
            num_samples: draws an epoch, n by default; of weighted samplers only.
            generator: of the random order; None uses torch's own.

        Raises:
            ConfigError, DataError: see ``gradmimic.curate.sampler``; ids as of ``mask``.

        Example:
            >>> kept = Selection.from_scores([0, 1, 2], [0.9, -0.8, 1.1]).above(0.0)
            >>> sorted(kept.sampler())
            [0, 2]
        """
        from gradmimic.curate.sampler import sampler  # loads torch

        return sampler(self, ids, weights, temperature, num_samples, generator)

    def reasons(self) -> dict[str, int]:
        """Count the samples of each reason, the most frequent first.

        Example:
            >>> Selection.from_scores(["a", "b", "c"], [3.0, 2.0, 1.0]).above(1.5).reasons()
            {'kept: the score is at least 1.5': 2, 'removed: the score is below 1.5': 1}
        """
        counts: Counter[str] = Counter()
        for batch in self.batches(["reason"]):
            for entry in batch["reason"].value_counts().to_pylist():
                counts[entry["values"]] += entry["counts"]
        return dict(counts.most_common())

    def summary(self) -> str:
        """Say in one sentence how much is kept."""
        kept = visits = 0
        for batch in self.batches(["keep", "visits"]):
            kept += batch["keep"].true_count
            visits += pc.sum(batch["visits"], min_count=0).as_py()
        share = f" ({kept / len(self):.1%})" if len(self) else ""
        return f"{kept:,} of {len(self):,} samples{share} are kept, judged by {visits:,} visits."

    def top(self, fraction: float) -> "Selection":
        """Keep the samples with the highest scores; see ``gradmimic.curate.ranking``."""
        return Selection(ranking.top(self.table, fraction))

    def bottom(self, fraction: float) -> "Selection":
        """Keep the samples with the lowest scores, mostly to take them away from others."""
        return Selection(ranking.bottom(self.table, fraction))

    def above(self, threshold: float) -> "Selection":
        """Keep the samples whose score is at least a threshold."""
        return Selection(ranking.above(self.table, threshold))

    def where(
        self,
        condition: str | Sequence[str],
        metadata: Sources | None = None,
        *,
        id: str = "uid",  # noqa: A002
    ) -> "Selection":
        """Remove the samples that a condition does not hold for; what was removed stays so.

        Args:
            condition: e.g. ``"length(text) > 5 and original_width >= 200"``, over the columns of
                the metadata, ``score``, ``p_clean`` and ``visits``; see ``curate.condition``.
            metadata: files as of ``from_metadata``.
            id: their column of sample ids.

        Raises:
            ConfigError, DataError: as of ``from_metadata``.

        Example:
            >>> scores = Selection.from_scores(["a", "b", "c"], [0.9, 0.5, 0.1])
            >>> scores.top(0.67).where("score < 0.8").kept.tolist()
            ['b']
        """
        from gradmimic.curate.by_metadata import where  # loads the query engine

        return Selection(*where(self.table, condition, metadata, id))

    def per_class(
        self,
        labels: by_id.ById,
        *,
        fraction: float | None = None,
        quota: int | Mapping[Any, int] | None = None,
    ) -> "Selection":
        """Keep the samples with the highest scores of every class.

        Args:
            labels: a mapping from id to label, or a pair ``(ids, labels)``.
            fraction: of each class; or pass
            quota: how many of each class, or a mapping from each label to how many.
        """
        classes = by_id.aligned(self.table["sample_id"], labels)
        return Selection(ranking.per_class(self.table, classes, fraction, quota))

    def __and__(self, other: "Selection") -> "Selection":
        return self._combined(other, "&")

    def __or__(self, other: "Selection") -> "Selection":
        return self._combined(other, "|")

    def __sub__(self, other: "Selection") -> "Selection":
        return self._combined(other, "-")

    def to_parquet(self, path: str | os.PathLike[str], *, only: Only | None = None) -> None:
        """Write the rows, for ``from_parquet`` and every program that reads Parquet.

        Args:
            path: the file to write.
            only: ``"kept"`` or ``"removed"``; None writes both, told apart by ``keep``.

        Raises:
            DataError: the file cannot be written; nothing is left under its name. So for all
                exports.
        """
        write_parquet(path, self._only(NAMES, only), schema(self.id_type))

    def to_jsonl(self, path: str | os.PathLike[str], *, only: Only | None = None) -> None:
        """Write one JSON object a line, ASCII only, so that no id can break a line."""
        write_jsonl(path, self._only(NAMES, only))

    def to_npy(self, path: str | os.PathLike[str], *, mask: bool = False) -> None:
        """Write ``index()``, or ``mask()``, as an ``.npy`` file that loads without pickle."""
        pieces = iter([self.mask()]) if mask else map(numpy_ids, self._ids("kept"))
        code = "?" if mask else "i8"
        if not mask and self.id_type == pa.string():
            lengths = (pc.max(pc.utf8_length(ids)).as_py() or 1 for ids in self._ids("kept"))
            code = f"U{max(lengths, default=1)}"
        with export(path) as file:
            write_npy(file, np.dtype(code), pieces)

    def to_datacomp(
        self, path: str | os.PathLike[str], *, multiplicity: by_id.ById | None = None
    ) -> int:
        """Write the subset file of DataComp's resharder; see ``gradmimic.curate.datacomp``."""
        return datacomp.write_datacomp(self, Path(path), multiplicity=multiplicity)

    def to_cleanlab(self) -> pa.Table:
        """Return the columns that cleanlab's users expect, see ``curate.label_columns``."""
        return label_columns.cleanlab_columns(self)

    def to_fiftyone(self) -> dict[str, dict[Any, Any]]:
        """Return values by field and id, for FiftyOne, see ``curate.label_columns``."""
        return label_columns.fiftyone_fields(self)

    def _combined(self, other: "Selection", operation: algebra.Operation) -> "Selection":
        return Selection(algebra.combine(self, other, operation))

    def _only(self, columns: Sequence[str], only: Only | None) -> Iterator[pa.RecordBatch]:
        """Yield the rows that are kept, or removed, or both."""
        if only not in (None, "kept", "removed"):
            raise ConfigError(f"only must be 'kept', 'removed' or None, got {only!r}.")
        for batch in self.batches(list(dict.fromkeys(["keep", *columns]))):
            if only is not None:
                keep = batch["keep"]
                batch = batch.filter(keep if only == "kept" else pc.invert(keep))
            yield batch.select(list(columns))

    def _ids(self, only: Only) -> Iterator[pa.Array]:
        """Yield ids piece by piece."""
        return (batch["sample_id"] for batch in self._only(["sample_id"], only))

    def _joined(self, pieces: Iterable[npt.NDArray[Any]]) -> npt.NDArray[Any]:
        """Put pieces of ids together."""
        empty = np.zeros(0, np.int64 if self.id_type == pa.int64() else np.str_)
        return np.concatenate([empty, *pieces])
