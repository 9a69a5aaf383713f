"""Set algebra on selections, joined by id.

    a & b    keep_i = a_i ∧ b_i
    a | b    keep_i = a_i ∨ b_i
    a - b    keep_i = a_i ∧ ¬b_i         a_i = 0 where a does not know sample i, so for b

The result covers the samples that either side knows, and its reasons say which side decided. The
numbers of a sample are the left side's where it knows it, else the right side's; ``p_clean`` is the
right side's too where the left has none, as scores from elsewhere have none.

Both sides are sorted by id, so they are merged piece by piece: memory holds the result.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gradmimic.curate.rows import schema
from gradmimic.errors import DataError

if TYPE_CHECKING:
    from gradmimic.curate.selection import Selection

Operation = Literal["&", "|", "-"]

_KEEP = {"&": np.logical_and, "|": np.logical_or, "-": np.greater}
# Who decided, by whether the left and the right side keep a sample.
_DECIDED = {
    "&": {
        (True, True): "kept by both",
        (True, False): "removed by right",
        (False, True): "removed by left",
        (False, False): "removed by both",
    },
    "|": {
        (True, True): "kept by both",
        (True, False): "kept by left",
        (False, True): "kept by right",
        (False, False): "removed by both",
    },
    "-": {
        (True, True): "removed by subtracting right",
        (True, False): "kept by left",
        (False, True): "removed by left",
        (False, False): "removed by left",
    },
}


def combine(left: "Selection", right: "Selection", operation: Operation) -> pa.Table:
    """Return the rows of ``left & right``, ``left | right`` or ``left - right``.

    Args:
        left: one selection.
        right: another, whose ids are of the same type.
        operation: ``"&"``, ``"|"`` or ``"-"``.

    Raises:
        DataError: one side has integer ids and the other strings, or a side cannot be read or is no
            selection.

    Example:
        >>> from gradmimic.curate import Selection
        >>> clip = Selection.from_scores(["a", "b", "c"], [3.0, 2.0, 1.0])
        >>> rows = combine(clip.top(0.67), clip.bottom(0.67), "-")
        >>> rows["keep"].to_pylist()
        [True, False, False]
        >>> rows["reason"][2].as_py()[:15]
        'removed by left'
    """
    if not isinstance(right, type(left)):
        raise DataError(
            f"a selection combines with a selection only, but {type(right).__name__} came. "
            "Make one from ids and scores with Selection.from_scores(ids, scores)."
        )
    if left.id_type != right.id_type and len(left) and len(right):
        raise DataError(
            f"selections are joined by id, but the left has {left.id_type} ids and the right "
            f"{right.id_type} ids, so no sample would be in both. Make them with the same ids, "
            "e.g. str(id) in both."
        )
    id_type = left.id_type if len(left) else right.id_type
    pieces = [_joined(*pair, operation) for pair in _windows(left.batches(), right.batches())]
    return pa.Table.from_batches(pieces, schema(id_type)).unify_dictionaries()


def _windows(
    left: Iterator[pa.RecordBatch], right: Iterator[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Cut two sorted streams at the same ids, so that a sample's two rows come together."""
    l, r = _next(left), _next(right)  # noqa: E741
    while l is not None and r is not None:
        bound = min(l["sample_id"][-1].as_py(), r["sample_id"][-1].as_py())
        at_l, at_r = _up_to(l, bound), _up_to(r, bound)
        yield l[:at_l], r[:at_r]
        l = l[at_l:] if at_l < len(l) else _next(left)  # noqa: E741
        r = r[at_r:] if at_r < len(r) else _next(right)
    while l is not None:
        yield l, l[:0]
        l = _next(left)  # noqa: E741
    while r is not None:
        yield r[:0], r
        r = _next(right)


def _next(batches: Iterator[pa.RecordBatch]) -> pa.RecordBatch | None:
    """Return the next batch that holds rows."""
    return next((batch for batch in batches if len(batch)), None)


def _up_to(batch: pa.RecordBatch, bound: int | str) -> int:
    """Count the rows whose id is at most ``bound``."""
    return int(pc.less_equal(batch["sample_id"], bound).true_count)


def _joined(left: pa.RecordBatch, right: pa.RecordBatch, operation: Operation) -> pa.RecordBatch:
    """Join two pieces by id, and decide."""
    if left["sample_id"].equals(right["sample_id"]):
        l, r = left, right  # noqa: E741
    else:
        rows_left, rows_right = _rows_by_id(left["sample_id"], right["sample_id"])  # [m] each
        l, r = left.take(rows_left), right.take(rows_right)  # noqa: E741  null where unknown
    kept_left, kept_right = (pc.fill_null(side["keep"], False).to_numpy(False) for side in (l, r))
    columns = {
        "sample_id": pc.coalesce(l["sample_id"], r["sample_id"]),
        "keep": pa.array(_KEEP[operation](kept_left, kept_right)),
        **{name: pc.coalesce(l[name], r[name]) for name in ("p_clean", "score", "visits")},
        "reason": _reasons(l["reason"], r["reason"], kept_left, kept_right, operation),
    }
    return pa.RecordBatch.from_arrays(
        list(columns.values()), schema=schema(columns["sample_id"].type)
    )


def _rows_by_id(left: pa.Array, right: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return the row of every id on either side, sorted by id, null where a side has none."""
    both = pa.concat_arrays([left, right])
    order = pc.array_sort_indices(both).to_numpy().astype(np.int64)
    ids = both.take(pa.array(order))
    new = np.append(True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(False))  # [l + r]
    slot = np.cumsum(new) - 1  # the result's row of each
    from_left = order < len(left)
    sides = []
    for rows, where in ((order, from_left), (order - len(left), ~from_left)):
        found = np.full(slot[-1] + 1, -1)
        found[slot[where]] = rows[where]
        sides.append(pa.array(found, mask=found < 0))
    return sides[0], sides[1]


def _reasons(
    left: pa.DictionaryArray,
    right: pa.DictionaryArray,
    kept_left: npt.NDArray[np.bool_],
    kept_right: npt.NDArray[np.bool_],
    operation: Operation,
) -> pa.DictionaryArray:
    """Say which side decided and why, once for each pair of reasons that occurs."""
    unknown = (len(left.dictionary), len(right.dictionary))
    at_left = pc.fill_null(left.indices, unknown[0]).to_numpy().astype(np.int64)
    at_right = pc.fill_null(right.indices, unknown[1]).to_numpy().astype(np.int64)
    code = ((at_left * (unknown[1] + 1) + at_right) * 2 + kept_left) * 2 + kept_right  # [m]
    found, index = np.unique(code, return_inverse=True)
    texts_left = [f"left {text}" for text in left.dictionary.to_pylist()]
    texts_right = [f"right {text}" for text in right.dictionary.to_pylist()]
    texts_left.append("left does not know it")
    texts_right.append("right does not know it")
    texts = []
    for number in found.tolist():
        pair, flags = divmod(number, 4)
        i, j = divmod(pair, unknown[1] + 1)
        decided = _DECIDED[operation][flags >= 2, flags % 2 == 1]
        texts.append(f"{decided} ({texts_left[i]}; {texts_right[j]})")
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), pa.array(texts, pa.string()))
