"""The rows of a selection in the order of a data set, found by id.

row_i of the answer = the row whose sample_id is ids[i]        an unknown id is an error
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.by_id import as_id_array
from gradmimic.curate.rows import check_columns, schema, some
from gradmimic.errors import DataError

if TYPE_CHECKING:
    from gradmimic.curate.selection import Selection


def in_order(selection: "Selection", ids: Any, columns: Sequence[str]) -> pa.Table:
    """Return some columns in the order of a data set.

    Args:
        selection: any.
        ids: ids ``[n]`` in that order; None if the ids are the row numbers 0 … n−1.
        columns: their names.

    Raises:
        DataError: an id is not in the selection, or None was passed and ids are no row numbers.

    Example:
        >>> from gradmimic.curate import Selection
        >>> scores = Selection.from_scores(["a", "b"], [0.5, -0.5])
        >>> in_order(scores, ["b", "a"], ["score"])["score"].to_pylist()
        [-0.5, 0.5]
    """
    check_columns(columns)
    read = list(dict.fromkeys(["sample_id", *columns]))
    table = pa.Table.from_batches(selection.batches(read), schema(selection.id_type, read))
    known = table["sample_id"]
    if ids is None:
        if selection.id_type != pa.int64() or not _are_row_numbers(known):
            raise DataError(
                "without ids, this needs the sample ids to be the row numbers 0 to "
                f"{len(known) - 1}, but they are {some(known)}. Pass your data set's ids in "
                "its order, e.g. mask(ids)."
            )
        return table.select(list(columns))
    wanted = as_id_array(ids)
    if len(wanted) and wanted.type != known.type:
        raise DataError(
            f"this selection has {known.type} sample ids, but {wanted.type} ids came. "
            "Pass the ids that were logged."
        )
    wanted = wanted.cast(known.type)  # an empty list is of either type
    rows = pc.index_in(wanted, value_set=known)  # [n], null where unknown
    if rows.null_count:
        unknown = wanted.filter(pc.is_null(rows))
        raise DataError(
            f"{len(unknown)} ids are not in this selection: {some(unknown)}. These samples "
            "were never scored; leave them out, or decide on them yourself."
        )
    table = table.unify_dictionaries()
    taken = {name: table[name].take(rows) for name in columns if name != "sample_id"}
    return pa.table({name: taken.get(name, wanted) for name in columns})


def _are_row_numbers(ids: pa.ChunkedArray) -> bool:
    """Tell whether sorted, unique int64 ids are 0 … n−1."""
    return len(ids) == 0 or (ids[0].as_py(), ids[-1].as_py()) == (0, len(ids) - 1)
