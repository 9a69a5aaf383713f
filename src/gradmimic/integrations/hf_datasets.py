"""A selection applied to a Hugging Face data set: its kept rows, or its columns beside the data's.

Rows are found by an id column, or by their numbers where the data set was trained on as it is.
Needs the extra ``datasets``.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from gradmimic.curate import Selection
from gradmimic.curate.lookup import KeptIds
from gradmimic.errors import DataError
from gradmimic.extras import import_extra

_ADDED = ("keep", "p_clean", "score")


def select(dataset: Any, selection: Selection, id_column: str | None = None) -> Any:
    """Return the kept rows, in the data set's order.

    Args:
        dataset: a ``Dataset``, whose rows must all be in the selection; or an
            ``IterableDataset``, which is filtered as it is read, unknown samples left out.
        selection: of these samples.
        id_column: the column of sample ids; None if the ids are the row numbers.

    Returns:
        A data set of the same kind.

    Raises:
        DataError: ids do not fit, or this is another kind of data set.
        MissingExtraError: ``datasets`` is not installed.

    Example:
        >>> import datasets
        >>> data = datasets.Dataset.from_dict({"text": ["good", "bad", "fine"]})
        >>> selection = Selection.from_scores([0, 1, 2], [0.5, -0.5, 0.5]).above(0.0)
        >>> select(data, selection)["text"][:]
        ['good', 'fine']
    """
    module = import_extra("datasets", "datasets")
    if isinstance(dataset, module.IterableDataset):
        if id_column is None:
            raise DataError(
                "rows of an IterableDataset have no lasting numbers. Pass the column that holds "
                "the logged ids: id_column=…."
            )
        kept = KeptIds(selection)
        return dataset.filter(kept.__contains__, input_columns=[id_column])
    rows = np.flatnonzero(selection.mask(_ids(dataset, selection, id_column)))
    return dataset.select(rows)


def add_columns(dataset: Any, selection: Selection, id_column: str | None = None) -> Any:
    """Return the data set with the columns ``keep``, ``p_clean`` and ``score`` added.

    Args:
        dataset: a ``Dataset`` whose rows are all in the selection.
        selection: of these samples.
        id_column: the column of sample ids; None if the ids are the row numbers.

    Raises:
        DataError: ids do not fit, a column of that name is there already, or this is another kind
            of data set.
        MissingExtraError: ``datasets`` is not installed.

    Example:
        >>> import datasets
        >>> data = datasets.Dataset.from_dict({"name": ["b", "a"]})
        >>> selection = Selection.from_scores(["a", "b"], [0.5, -0.5]).above(0.0)
        >>> add_columns(data, selection, "name")["keep"][:]
        [False, True]
    """
    module = import_extra("datasets", "datasets")
    ids = _ids(dataset, selection, id_column)
    if taken := [name for name in _ADDED if name in dataset.column_names]:
        raise DataError(
            f"the data set has columns {taken} already. Rename them first: "
            f"dataset.rename_column({taken[0]!r}, …)."
        )
    added = module.Dataset(selection.rows(ids, _ADDED))
    return module.concatenate_datasets([dataset, added], axis=1)


def _ids(dataset: Any, selection: Selection, id_column: str | None) -> Any:
    """Return the sample id of every row."""
    module = import_extra("datasets", "datasets")
    if not isinstance(dataset, module.Dataset):
        splits = f", e.g. dataset[{next(iter(dataset))!r}]" if isinstance(dataset, dict) else ""
        raise DataError(
            f"expected a datasets.Dataset, got {type(dataset).__name__}. Pass one split{splits}."
        )
    if id_column is not None:
        if id_column not in dataset.column_names:
            raise DataError(
                f"the data set has no column {id_column!r}; it has {dataset.column_names}."
            )
        return dataset.select_columns([id_column]).with_format("arrow")[:][id_column]
    if selection.id_type != pa.int64() or len(selection) > len(dataset):
        raise DataError(
            f"the selection knows {len(selection)} samples by {selection.id_type} ids, which are "
            f"not the numbers of {len(dataset)} rows. Pass the column that holds the logged ids: "
            "id_column=…."
        )
    return np.arange(len(dataset))
