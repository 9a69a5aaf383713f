"""Sample ids on their way through a Trainer, past its column removal, its samplers and collators.

    row i of the data set  →  Numbered(row, id)  →  the Trainer's own collator  →  batch[column]

The Trainer builds its data loader as ever, so that batches come in the same order and every random
number is drawn as without ids; only then are ids let through. Where the data set has no column of
ids, a sample's id is its row number.

Needs the extra ``trainer``.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from gradmimic.errors import DataError, UsageError
from gradmimic.extras import import_extra
from gradmimic.ids import as_ids

COLUMN = "sample_id"
"""Where ids are looked for unless said otherwise; the one column that may be missing."""


class Numbered(NamedTuple):
    """A row of a data set and its sample id, between data set and collator."""

    row: Any
    sample_id: Any


def with_ids(dataset: Any, column: str = COLUMN) -> Any:
    """Return a data set that has a column of ids, for a trainer that shuffles it or drops rows.

    Args:
        dataset: a ``datasets.Dataset`` gets the row numbers as a new column where it has none; any
            other kind is returned as it is.
        column: of ids.

    Returns:
        A data set of the same kind.

    Raises:
        DataError: ids are there, but twice, missing, or neither integers nor strings; or a column
            of another name than ``sample_id`` is not there.

    Example:
        >>> import datasets
        >>> with_ids(datasets.Dataset.from_dict({"text": ["a", "b"]}))["sample_id"][:]
        [0, 1]
    """
    if not _is_table(dataset) or _ids_of(dataset, column) is not None:
        return dataset
    shape = dataset.format
    if shape["type"] == "custom":  # a transform, which no column gets past
        return dataset
    added = dataset.add_column(column, np.arange(len(dataset)))  # has no format of its own
    return added.with_format(
        shape["type"],
        [*shape["columns"], column],
        shape["output_all_columns"],
        **shape["format_kwargs"],
    )


def prepares(trainer: Any) -> bool:
    """Tell whether a Trainer may shuffle its data and drop rows when it is made, as TRL's do.

    Example:
        >>> prepares(object())
        False
    """
    return any(kind.__module__.split(".")[0] == "trl" for kind in type(trainer).__mro__)


def loader_with_ids(trainer: Any, make: Callable[[], Any], column: str = COLUMN) -> Any:
    """Make a Trainer's training data loader, with ids in its batches.

    Args:
        trainer: its ``train_dataset`` may be a ``datasets.Dataset``, any other of torch's data sets
            with numbered rows, whose ids are in ``row[column]`` or else the numbers, or an
            ``IterableDataset``, which needs the column.
        make: the Trainer's own ``get_train_dataloader``.
        column: of ids, in the data and in the batches.

    Returns:
        The loader that ``make`` returned.

    Raises:
        DataError: ids are missing, there twice, or neither integers nor strings.
    """
    dataset = trainer.train_dataset
    if dataset is None:
        return make()  # which says so
    if isinstance(dataset, IterableDataset):
        names = getattr(dataset, "column_names", None)
        if names is not None and column not in names:
            raise DataError(_no_ids(column, f"it has {list(names)}"))
        return _let_through(make(), column)
    named = _groups_by_a_column(trainer.args, dataset)
    rows = with_ids(dataset, column) if named else NumberedRows(dataset, column)
    trainer.train_dataset = rows
    try:
        loader = _let_through(make(), column)
    finally:
        trainer.train_dataset = dataset
    if not named:
        rows.begin(getattr(loader.collate_fn.collator, "signature_columns", None))
    return loader


def take_ids(batch: Any, column: str = COLUMN) -> Tensor | list[str]:
    """Take the ids ``[b]`` out of a batch: an int64 tensor, or a list of strings.

    Raises:
        UsageError: there are none.

    Example:
        >>> batch = {"x": [0.5], "sample_id": ["a"]}
        >>> take_ids(batch), batch
        (['a'], {'x': [0.5]})
    """
    if column not in batch:
        raise UsageError(
            f"the batch has no {column!r}; it has {list(batch)}. A data loader that is not the "
            "Trainer's own must put the samples' ids there, as integers [b] or a list of strings."
        )
    ids: Tensor | list[str] = batch.pop(column)
    return ids


class NumberedRows(Dataset[Any]):
    """A data set whose rows carry their ids, once the Trainer has built its loader on it.

    Until then its rows are the data set's own, since samplers may look at them. All else that is
    asked of it, it asks the data set.

    Args:
        dataset: its rows are found by their numbers.
        column: of ids.
    """

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset = dataset
        self._column = column
        self._ids = _ids_of(dataset, column) if _is_table(dataset) else None
        self._begun = False

    def begin(self, columns: Sequence[str] | None) -> None:
        """Give ids with every row from now on; read only these columns, None: all.

        Raises:
            DataError: there are none of them.
        """
        self._begun = True
        if columns is None or not _is_table(self.dataset):
            return
        names = self.dataset.column_names
        unused = [name for name in names if name not in columns]
        if len(unused) == len(names):
            raise DataError(
                f"none of the data set's columns {names} is an argument of the model, which takes "
                f"{list(columns)}. Rename them, or set remove_unused_columns=False."
            )
        self.dataset = self.dataset.remove_columns(unused)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        row = self.dataset[key]
        return self._numbered(key, row) if self._begun else row

    def __getitems__(self, keys: list[int]) -> list[Any]:
        several = getattr(self.dataset, "__getitems__", None)
        rows = [self.dataset[key] for key in keys] if several is None else several(keys)
        return [self._numbered(key, row) for key, row in zip(keys, rows, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # while it is being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _numbered(self, key: int, row: Any) -> Numbered:
        if self._ids is not None:
            return Numbered(row, self._ids[key])
        if isinstance(row, Mapping) and self._column in row:
            return Numbered(row, row[self._column])
        if self._column != COLUMN and not _is_table(self.dataset):
            raise DataError(_no_ids(self._column, _told(row)))
        return Numbered(row, int(key))


class IdCollator:
    """Collate rows as another collator does, and put their ids beside them; can be pickled.

    Args:
        collator: gets the rows without ids.
        column: where ids are, in rows that are no :class:`Numbered`, and in the batch.

    Example:
        >>> rows = [{"x": 1.5, "sample_id": 7}, {"x": 2.5, "sample_id": 3}]
        >>> IdCollator(lambda rows: {"x": [row["x"] for row in rows]}, "sample_id")(rows)
        {'x': [1.5, 2.5], 'sample_id': tensor([7, 3])}
    """

    def __init__(self, collator: Callable[[list[Any]], Any], column: str) -> None:
        self.collator = collator
        self.column = column

    def __call__(self, features: list[Any]) -> Any:
        """Return the batch with ``batch[column]``: int64 ``[b]``, or b strings."""
        numbered = [self._apart(feature) for feature in features]
        batch = self.collator([row for row, _ in numbered])
        ids = as_ids([_plain(sample_id) for _, sample_id in numbered])
        batch[self.column] = ids if isinstance(ids, list) else torch.from_numpy(ids)
        return batch

    def _apart(self, feature: Any) -> Numbered:
        row, sample_id = feature if isinstance(feature, Numbered) else (feature, None)
        if isinstance(row, Mapping) and self.column in row:
            sample_id = row[self.column] if sample_id is None else sample_id
            row = {name: value for name, value in row.items() if name != self.column}
        if sample_id is None:
            raise DataError(_no_ids(self.column, _told(row)))
        return Numbered(row, sample_id)


def _let_through(loader: Any, column: str) -> Any:
    """Wrap the collator of a loader, or of the one that Accelerate has wrapped."""
    own = getattr(loader, "base_dataloader", loader)
    own.collate_fn = IdCollator(own.collate_fn, column)
    return loader


def _groups_by_a_column(args: Any, dataset: Any) -> bool:
    """Tell whether a sampler may group rows by a column of lengths, which it reads as a whole."""
    return (
        _is_table(dataset)
        and not args.remove_unused_columns
        and args.length_column_name in dataset.column_names
        and dataset.format["type"] != "custom"
    )


def _is_table(dataset: Any) -> bool:
    return isinstance(dataset, import_extra("datasets", "trainer").Dataset)


def _ids_of(dataset: Any, column: str) -> Any:
    """Return a column of ids, checked, int64 or Arrow's strings; None for row numbers."""
    if column not in dataset.column_names:
        if column == COLUMN:
            return None
        raise DataError(f"the data set has no column {column!r}; it has {dataset.column_names}.")
    ids = dataset.select_columns([column]).with_format("arrow")[:][column]
    if not (
        pa.types.is_integer(ids.type)
        or pa.types.is_string(ids.type)
        or pa.types.is_large_string(ids.type)
    ):
        raise DataError(
            f"expected integers or strings in the column {column!r} of ids, got {ids.type}."
        )
    if ids.null_count:
        raise DataError(f"{ids.null_count} rows have no id in the column {column!r}.")
    if twice := len(ids) - pc.count_distinct(ids).as_py():
        counts = pc.value_counts(ids)
        first = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise DataError(
            f"{twice} rows have an id in the column {column!r} that another row has too, such as "
            f"{first!r}. Scores are kept by id, so give every row its own, or remove the column: "
            "row numbers are the ids then."
        )
    return ids.to_numpy() if pa.types.is_integer(ids.type) else ids


def _plain(sample_id: Any) -> Any:
    return sample_id.as_py() if isinstance(sample_id, pa.Scalar) else sample_id


def _told(row: Any) -> str:
    return (
        f"a row has {list(row)}" if isinstance(row, Mapping) else f"a row is {type(row).__name__}"
    )


def _no_ids(column: str, found: str) -> str:
    return (
        f"a sample's id is expected in the column {column!r}, but {found}. Rows of an "
        "IterableDataset have no lasting numbers: add a column of integers or strings, each once."
    )
