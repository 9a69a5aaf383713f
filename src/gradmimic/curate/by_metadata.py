"""Selections and the metadata of a pool: take scores up from it, and hold samples against it.

keep_i = keep_i ∧ condition(metadata_i)

The same plan as of ``select(log, where=…, metadata=…)``, see ``gradmimic.curate.filters``, for rows
that are in memory.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import ibis
import pyarrow as pa

from gradmimic.curate import plan
from gradmimic.curate.backends import Engine, connect
from gradmimic.curate.filters import Filters, apply, as_number, filters_of
from gradmimic.curate.metadata import Sources, open_metadata
from gradmimic.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir

_OWN = {name: name for name in ("score", "p_clean", "visits")}


def scored_by_metadata(
    metadata: Sources,
    id: str,  # noqa: A002
    score: str | None,
    where: str | Sequence[str] | None,
) -> tuple[pa.Table, list[str]]:
    """Return the rows of a selection of all samples of the metadata, and notes.

    Args:
        metadata: Parquet files, folders, patterns or URLs.
        id: their column of sample ids.
        score: their column of scores, higher is better; samples without one are left out. None
            leaves all scores missing.
        where: conditions; what does not fulfil them is removed.

    Raises:
        ConfigError: there is no such column, or a condition cannot be read.
        DataError: there are no such files, or they cannot be read.
    """
    filters = filters_of(metadata if where else None, id, where, None, None)
    with connect(None, None, None) as engine:
        rows = open_metadata(engine, metadata)
        for name in (id, *([] if score is None else [score])):
            if name not in rows.columns:
                raise ConfigError(
                    f"the metadata have no column {name!r}; they have {rows.columns}."
                )
        value = ibis.null("float64") if score is None else as_number(rows[score], score)
        found = rows.select(
            key=rows[id].cast("int64") if rows[id].type().is_integer() else rows[id], score=value
        )
        found = found.filter(found.key.notnull())
        if score is not None:
            found = found.filter(found.score.notnull())
        found = found.group_by("key").agg(score=found.score.min())
        judged = found.select(
            "key",
            "score",
            keep=True,
            p_clean=ibis.null("float64"),
            visits=ibis.literal(1, "int64"),
            reason=ibis.literal(0, "int32"),
        )
        reasons = ["kept: no ranking has decided yet, see top() and above()"]
        return _decided(engine, engine.store(judged), reasons, {}, filters, rows)


def where(
    table: pa.Table,
    condition: str | Sequence[str],
    metadata: Sources | None,
    id: str,  # noqa: A002
) -> tuple[pa.Table, list[str]]:
    """Remove what a condition does not hold for from the rows of a selection.

    Args:
        table: the rows.
        condition: over columns of the metadata, and ``score``, ``p_clean`` and ``visits``.
        metadata: Parquet files, folders, patterns or URLs; None where the condition needs none.
        id: their column of sample ids.

    Raises:
        ConfigError: there is no such column, or the condition cannot be read.
        DataError: there are no such files, or they cannot be read.
    """
    filters = filters_of(metadata, id, condition, None, None)
    reason = table["reason"].unify_dictionaries().combine_chunks()
    rows = {name: table[name] for name in ("keep", "p_clean", "score", "visits")}
    with connect(None, None, None) as engine:
        judged = engine.table(
            pa.table({"key": table["sample_id"], **rows, "reason": reason.indices})
        )
        others = None if metadata is None else open_metadata(engine, metadata)
        return _decided(engine, judged, reason.dictionary.to_pylist(), _OWN, filters, others)


def _decided(
    engine: Engine,
    judged: "ir.Table",
    reasons: list[str],
    own: Mapping[str, str],
    filters: Filters,
    metadata: "ir.Table | None",
) -> tuple[pa.Table, list[str]]:
    """Apply conditions, and return the rows of a selection."""
    used = metadata if filters.metadata is not None else None
    rows, texts, notes = apply(engine, judged, reasons, own, filters, used, lambda ids: ids)
    return engine.fetch(plan.in_order(engine.unpacked, rows, texts)), notes
