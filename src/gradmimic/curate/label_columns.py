"""A selection in the columns that other data-centric tools know.

    label_score_i  = p_clean_i              cleanlab: in [0, 1], low is bad
    mistakenness_i = 1 − p_clean_i          FiftyOne: in [0, 1], high is bad

and ``is_label_issue`` says that the sample is removed. ``p_clean`` is null for scores from
elsewhere, which are no probabilities; so are these.
"""

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

if TYPE_CHECKING:
    from gradmimic.curate.selection import Selection


def cleanlab_columns(selection: "Selection") -> pa.Table:
    """Return the columns of cleanlab's ``Datalab.get_issues("label")`` that a selection knows.

    Args:
        selection: any.

    Returns:
        ``sample_id``, ``is_label_issue`` (bool) and ``label_score`` (in [0, 1], low is bad), one
        row per sample, sorted by id.

    Example:
        >>> from gradmimic.curate import Selection
        >>> cleanlab_columns(Selection.from_scores([7], [0.5])).column_names
        ['sample_id', 'is_label_issue', 'label_score']
    """
    table = selection.table
    return pa.table(
        {
            "sample_id": table["sample_id"],
            "is_label_issue": pc.invert(table["keep"]),
            "label_score": table["p_clean"],
        }
    )


def fiftyone_fields(selection: "Selection") -> dict[str, dict[Any, Any]]:
    """Return values by field and id, as FiftyOne's ``set_values`` takes them.

    For a data set whose samples hold their id in the field ``sample_id``:
    ``for field, values in fiftyone_fields(s).items(): dataset.set_values(field, values,
    key_field="sample_id")``. Then ``dataset.sort_by("mistakenness", reverse=True)`` shows the worst
    first, and ``dataset.select_by("sample_id", s.removed).tag_samples("label_issue")`` tags the
    removed ones without touching other tags.

    Args:
        selection: any that fits memory as a dictionary.

    Returns:
        ``{"mistakenness": {id: in [0, 1], high is bad}, "is_label_issue": {id: bool}}``.

    Example:
        >>> from gradmimic.curate import Selection
        >>> fiftyone_fields(Selection.from_scores(["a.png"], [0.5]))
        {'mistakenness': {'a.png': None}, 'is_label_issue': {'a.png': False}}
    """
    table = cleanlab_columns(selection)
    ids = table["sample_id"].to_pylist()
    mistakenness = pc.subtract(1.0, table["label_score"]).to_pylist()
    return {
        "mistakenness": dict(zip(ids, mistakenness, strict=True)),
        "is_label_issue": dict(zip(ids, table["is_label_issue"].to_pylist(), strict=True)),
    }
