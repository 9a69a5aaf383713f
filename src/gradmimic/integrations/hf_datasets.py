"""A selection or a log applied to a Hugging Face data set: its kept rows, or columns beside them.

Rows are found by an id column, or by their numbers where the data set was trained on as it is.
Needs the extra ``datasets``.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate import Selection
from gradmimic.curate import select as decide
from gradmimic.curate.decide import Log
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
    ids = _ids(dataset, selection, id_column)
    return _beside(dataset, selection.rows(ids, _ADDED))


def add_scores(
    dataset: Any, log: Log, id_column: str | None = None, *, scorer: str = "mimic"
) -> Any:
    """Return the data set with what a log knows of every sample.

    Args:
        dataset: a ``Dataset``.
        log: a ``ScoreLog``, its folder, or a table from ``log.scan(…)``.
        id_column: the column of sample ids; None stands for ``sample_id`` where there is such a
            column, as for the Trainer, and else for the row numbers.
        scorer: whose scores.

    Returns:
        A data set with three columns more: ``mimic_score``, the mean over a sample's visits, higher
        is better; ``mimic_kept`` in [0, 1], the share of its visits with a weight of 1/b or more;
        ``mimic_visits``. A sample that was never visited has no score, and 0 visits. Named after
        the scorer.

    Raises:
        DataError: ids do not fit, a column of that name is there already, or this is another kind
            of data set.
        LogError: the log is empty or damaged, or has no such scorer.
        MissingExtraError: ``datasets`` is not installed.

    Example:
        >>> import datasets, tempfile
        >>> from gradmimic.log import ScoreLog
        >>> with ScoreLog(tempfile.mkdtemp()) as log:
        ...     log.append([2, 0], [0.5, -0.5], [0.75, 0.25], [0.1, 0.9], epoch=0, step=0)
        ...     data = add_scores(datasets.Dataset.from_dict({"text": ["a", "b", "c"]}), log)
        >>> data["mimic_score"][:], data["mimic_visits"][:]
        ([-0.5, None, 0.5], [1, 0, 1])
    """
    if id_column is None and "sample_id" in getattr(dataset, "column_names", ()):
        id_column = "sample_id"
    seen = decide(log, "one_over_b", aggregate="majority", scorer=scorer)
    ids = _ids(dataset, seen, id_column)
    ids = pa.array(ids) if isinstance(ids, np.ndarray) else ids
    known = seen.table
    if pa.types.is_integer(ids.type) != pa.types.is_integer(seen.id_type):
        raise DataError(
            f"the log has {seen.id_type} sample ids, and the data set {ids.type} ones. Pass the "
            "column that holds the logged ids: id_column=…."
        )
    if id_column is None and pc.max(known["sample_id"]).as_py() >= len(dataset):
        raise DataError(
            f"the log has sample {pc.max(known['sample_id'])}, and the data set {len(dataset)} "
            "rows, so that its ids are not their numbers. Pass the data set that was trained on, "
            "or the column that holds the logged ids: id_column=…."
        )
    at = pc.index_in(ids.cast(seen.id_type), known["sample_id"])
    found = known.select(["score", "p_clean", "visits"]).take(at)
    visits = pc.fill_null(found["visits"], 0)
    names = [f"{scorer}_{name}" for name in ("score", "kept", "visits")]
    return _beside(dataset, pa.table([found["score"], found["p_clean"], visits], names))


def _beside(dataset: Any, table: pa.Table) -> Any:
    """Return the data set with more columns."""
    module = import_extra("datasets", "datasets")
    if taken := [name for name in table.column_names if name in dataset.column_names]:
        raise DataError(
            f"the data set has columns {taken} already. Rename them first: "
            f"dataset.rename_column({taken[0]!r}, …)."
        )
    return module.concatenate_datasets([dataset, module.Dataset(table)], axis=1)


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
