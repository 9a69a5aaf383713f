"""Conditions and rankings on top of a decision, as the published filters are written.

    top 30 % by CLIP score, less the bottom 15 % by mimic score, captions of more than 5 letters

    metadata ── GROUP BY uid ──► digest: whether each condition holds, and what is ranked
    judged ⟕ digest ──► the first of   unknown, fails, not in the top, in the bottom   ──► reason

``judged`` is what stage 2 decided, a row per sample. A sample is kept where it was kept and nothing
here speaks against it; else its reason names what does. A ranking counts all samples that have the
value, kept or not: of a column all that the metadata know, of a scorer all that it scored.
There is one order, as in ``gradmimic.curate.ranking``: highest first, among equals by id. Its k-th
row is found by sorting (value, id) alone, so memory holds what the engine needs for that.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import ibis

from gradmimic.curate.condition import Condition, conditions, unknown_column
from gradmimic.curate.histogram import is_number
from gradmimic.curate.metadata import Sources
from gradmimic.errors import ConfigError

if TYPE_CHECKING:
    import ibis.expr.types as ir

    from gradmimic.curate.backends import Engine

Key = Callable[[Any], Any]  # as of ``gradmimic.curate.plan``


@dataclass(frozen=True)
class Filters:
    """What is to hold beside the decision.

    Args:
        metadata: where columns beside those of the log are; None for none.
        id: the column of the metadata with the ids.
        where: all of these have to hold.
        top: the share of samples to keep, the highest, by column.
        drop_bottom: the share of samples to remove, the lowest, by column.
    """

    metadata: Sources | None = None
    id: str = "uid"
    where: Sequence[Condition] = ()
    top: Mapping[str, float] = field(default_factory=dict)
    drop_bottom: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.metadata is not None or bool(self.where or self.top or self.drop_bottom)

    @property
    def columns(self) -> dict[str, str]:
        """The columns that are used, and by what."""
        used = {name: f"the condition {part.text}" for part in self.where for name in part.columns}
        used |= dict.fromkeys((*self.top, *self.drop_bottom), "the ranking")
        return used


class Filtered(NamedTuple):
    """A decision with filters applied.

    Attributes:
        rows: as ``plan.judged`` returns them.
        reasons: what their column ``reason`` numbers.
        notes: what no row says.
    """

    rows: "ir.Table"
    reasons: list[str]
    notes: list[str]


def filters_of(
    metadata: Sources | None,
    id: str,  # noqa: A002
    where: str | Sequence[str] | None,
    top: Mapping[str, float] | None,
    drop_bottom: Mapping[str, float] | None,
) -> Filters:
    """Read what was asked for.

    Raises:
        ConfigError: a condition cannot be read, a share is no number from 0 to 1, or metadata are
            named that nothing uses.
    """
    texts = [where] if isinstance(where, str) else list(where or ())
    parts = tuple(part for text in texts for part in conditions(text))
    found = Filters(metadata, id, parts, dict(top or {}), dict(drop_bottom or {}))
    for name, share in (*found.top.items(), *found.drop_bottom.items()):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise ConfigError(f"the share of {name} is a number from 0 to 1, got {share!r}.")
    if metadata is not None and not found.columns:
        raise ConfigError(
            "metadata were named, but nothing uses them. Add a condition, such as "
            "where='original_width >= 200', or a ranking."
        )
    return found


class _Columns:
    """The columns that conditions and rankings can name.

    Args:
        own: the names of the log's columns, and what each is called in ``judged``.
        metadata: the metadata, or None.
        filters: what names them.

    Raises:
        ConfigError: a name is not there, or both have it.
    """

    def __init__(
        self, own: Mapping[str, str], metadata: "ir.Table | None", filters: Filters
    ) -> None:
        theirs = list(metadata.columns) if metadata is not None else []
        self.own = {f"log.{name}": column for name, column in own.items()}
        self.own |= {name: column for name, column in own.items() if name not in theirs}
        self.theirs = {f"metadata.{name}": name for name in theirs}
        self.theirs |= {name: name for name in theirs if name not in own}
        bare = dict.fromkeys([*theirs, *own])
        for name, user in filters.columns.items():
            if name in self.own or name in self.theirs:
                continue
            if name in bare:
                raise ConfigError(
                    f"{user} names {name}, which the metadata and the log both have. Write "
                    f"metadata.{name} or log.{name}."
                )
            error = unknown_column(name, bare, user)
            if metadata is None:
                error = ConfigError(f"{error} Others come with the metadata: name their files.")
            raise error

    def are_theirs(self, names: Iterable[str]) -> bool:
        """Tell whether all these are the metadata's."""
        return set(names) <= set(self.theirs)


def needed_scorers(
    filters: Filters, metadata: "ir.Table | None", scorers: Sequence[str]
) -> list[str]:
    """Return those of the log's scorers that conditions and rankings name."""
    theirs = set(metadata.columns) if metadata is not None else set()
    named = [name.removeprefix("log.") for name in filters.columns if name not in theirs]
    return [name for name in dict.fromkeys(named) if name in scorers]


def apply(
    engine: "Engine",
    judged: "ir.Table",
    reasons: Sequence[str],
    own: Mapping[str, str],
    filters: Filters,
    metadata: "ir.Table | None",
    key: Key,
) -> Filtered:
    """Keep of what is kept the samples that nothing speaks against.

    Args:
        engine: where the plan runs.
        judged: ``key``, ``keep``, ``reason``, a number among the reasons, and other columns.
        reasons: the texts.
        own: the names of the log's columns, and what each is called in ``judged``; of those that
            are not needed, nothing.
        filters: what has to hold.
        metadata: their rows, None where filters name none.
        key: makes of the metadata's ids what ``key`` is.

    Returns:
        The same rows, with ``keep`` and ``reason`` changed.

    Raises:
        ConfigError: columns are not there, or of types that do not fit.
    """
    columns = _Columns(own, metadata, filters)
    rows, digest, notes = judged, judged, []
    causes: list[tuple[ir.BooleanValue, str]] = []
    if metadata is not None:
        digest = engine.store(_digest(metadata, filters, columns, key, judged.key))
        notes = _compared(engine, judged, digest, metadata)
        rows = judged.left_join(digest, judged.key == digest.other_key)
        causes.append((rows.times.isnull(), "removed: the metadata do not know this sample"))
    for number, part in enumerate(filters.where):
        holds = _holds(rows, number, part, columns)
        unknown = f"removed: a value is missing to tell whether {part.text}"
        causes += [(holds.isnull(), unknown), (~holds, f"removed: {part.text} does not hold")]
    for shares, top in ((filters.top, True), (filters.drop_bottom, False)):
        for name, share in shares.items():
            theirs = name in columns.theirs
            column = f"rank_{columns.theirs[name]}" if theirs else columns.own[name]
            table = digest.rename(key="other_key") if theirs else judged
            causes += _ranking(engine, table, rows, key, name, column, share, top)
    texts = [*(_also(reason, filters) for reason in reasons), *(text for _, text in causes)]
    found = ibis.cases(
        (~rows.keep, rows.reason),
        *((cause, number) for number, (cause, _) in enumerate(causes, len(reasons))),
        else_=rows.reason,
    ).cast("int32")
    keep = rows.keep & (found < len(reasons))
    changed = rows.mutate(keep=keep, reason=found).select(*judged.columns)
    return Filtered(changed, texts, notes)


def _digest(
    metadata: "ir.Table", filters: Filters, columns: _Columns, key: Key, kind: "ir.Column"
) -> "ir.Table":
    """Return one row per id of the metadata, with what filters need of it and no more.

    Where an id comes again, a condition holds if it does in all its rows, and the lowest value is
    ranked: the order of files decides nothing.
    """
    seen = {name: metadata[column] for name, column in columns.theirs.items()}
    needed: dict[str, ir.Value] = {}
    for number, part in enumerate(filters.where):
        if columns.are_theirs(part.columns):
            needed[f"where_{number}"] = part.over(seen)
        else:
            theirs = [name for name in part.columns if name in seen]
            needed |= {f"raw_{columns.theirs[name]}": seen[name] for name in theirs}
    for name in (*filters.top, *filters.drop_bottom):
        if name in seen:
            needed[f"rank_{columns.theirs[name]}"] = as_number(seen[name], name)
    rows = metadata.select(other_key=key(_ids(metadata, filters.id, kind)), **needed)
    rows = rows.filter(rows.other_key.notnull())
    lowest = {name: rows[name].min() for name in needed}
    return rows.group_by("other_key").agg(times=rows.count(), **lowest)


def _holds(rows: "ir.Table", number: int, part: Condition, columns: _Columns) -> "ir.BooleanValue":
    """Return a condition: from the digest, or over columns of the log and perhaps both."""
    if f"where_{number}" in rows.columns:
        return rows[f"where_{number}"]
    called = {name: f"raw_{column}" for name, column in columns.theirs.items()} | columns.own
    return part.over({name: rows[called[name]] for name in part.columns})


def _ranking(
    engine: "Engine",
    table: "ir.Table",
    rows: "ir.Table",
    key: Key,
    name: str,
    column: str,
    share: float,
    top: bool,
) -> "list[tuple[ir.BooleanValue, str]]":
    """Return what a ranking speaks against, having found its limit.

    Args:
        engine: where the plan runs.
        table: all that is ranked, with ``key``.
        rows: what is decided on.
        key: makes keys of ids.
        name: of the column, for people.
        column: its name in both.
        share: how much to keep, or to remove.
        top: whether the top is kept; else the bottom is removed.
    """
    ranked = table.select("key", value=table[column].cast("float64"))
    ranked = ranked.filter(ranked.value.notnull())
    n = engine.fetch(ranked.count().as_table())[0][0].as_py()
    k = round(share * n)
    first = k if top else n - k  # how many of the order are inside
    order = ranked.order_by(ibis.desc("value"), "key")
    around = order.limit(2, offset=max(first - 1, 0))  # the last inside, and the first outside
    near = engine.fetch(around.select("value", id=engine.unpacked(around.key))).to_pylist()
    value = rows[column].cast("float64")
    if first == 0:
        outside, limit = value.notnull(), near[0]["value"] if near else 0.0
    elif first == n:
        outside, limit = ibis.literal(False), near[0]["value"]
    else:
        last = near[0]
        later = rows.key > key(ibis.literal(last["id"]))
        outside = (value < last["value"]) | ((value == last["value"]) & later)
        limit = near[0 if top else 1]["value"]
    what = f"among the {k:,} of {n:,} samples with the {'highest' if top else 'lowest'} {name}"
    what += f", {limit:.4g} and {'up' if top else 'down'}" if k else ""
    if not top:
        return [(outside.fill_null(False), f"removed: {what}")]
    missing = (value.isnull(), f"removed: {name} is missing, so that it has no rank")
    return [missing, (outside, f"removed: not {what}")]


def _compared(
    engine: "Engine", judged: "ir.Table", digest: "ir.Table", metadata: "ir.Table"
) -> list[str]:
    """Say what the log and the metadata do not have in common; refuse if that is everything."""
    both = judged.semi_join(digest, judged.key == digest.other_key)
    samples, matched, known, rows = (
        engine.fetch(table.count().as_table())[0][0].as_py()
        for table in (judged, both, digest, metadata)
    )
    if samples and not matched:
        first = judged.select(id=engine.unpacked(judged.key)).limit(1)
        raise ConfigError(
            f"the metadata know none of the {samples:,} samples, such as "
            f"{engine.fetch(first)['id'][0].as_py()!r}. Pass the metadata of these samples, and "
            "name the column that holds the ids that were logged."
        )
    named = engine.fetch(digest.agg(rows=digest.times.sum()))["rows"][0].as_py() or 0
    told = {
        f"of {samples:,} samples are not in the metadata, and were removed": samples - matched,
        f"of {known:,} samples of the metadata were never scored, and are not in this selection":
            known - matched,
        "rows of the metadata repeat an id: a condition must hold in all, and the lowest ranks":
            named - known,
        f"of {rows:,} rows of the metadata have no id that the log could have": rows - named,
    }  # fmt: skip
    return [f"{count:,} {text}." for text, count in told.items() if count]


def _ids(metadata: "ir.Table", name: str, key: "ir.Column") -> "ir.Column":
    """Return the metadata's ids in the type of the log's."""
    if name not in metadata.columns:
        raise unknown_column(name, dict.fromkeys(metadata.columns), "the join with the metadata")
    ids = metadata[name]
    if key.type().is_integer() and ids.type().is_integer():
        return ids.cast("int64")
    if key.type().is_integer() or not ids.type().is_string():
        raise ConfigError(
            f"the log has {'int64' if key.type().is_integer() else 'string'} sample ids, but the "
            f"metadata's column {name!r} is {ids.type()}. Name the column that holds the ids that "
            "were logged."
        )
    return ids


def as_number(value: "ir.Column", name: str) -> "ir.FloatingColumn":
    """Return what is ranked, null where it is no finite number."""
    if not value.type().is_numeric() or value.type().is_boolean():
        raise ConfigError(f"a ranking needs numbers, but {name} is {value.type()}.")
    number = value.cast("float64")
    return is_number(number).ifelse(number, ibis.null("float64"))


def _also(reason: str, filters: Filters) -> str:
    """Say of what was kept that the filters keep it too."""
    used = {"condition": filters.where, "ranking": filters.top or filters.drop_bottom}
    what = " and ".join(f"no {name}" for name, some in used.items() if some)
    return f"{reason}; {what} removes it" if reason.startswith("kept") else reason
