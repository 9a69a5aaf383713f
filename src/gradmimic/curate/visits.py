"""The visits of a log, opened for stage 2: what is there, checked once, and its histograms.

    log  →  rows (one per visit)  →  voters: one per scorer and epoch, in order, with a grid each

Where the log says that from some step on the model had overtaken its reference, the voters that
began later are left out, but for those that alone have seen some sample.

A log that is still being written is read up to its last complete part. Nothing here holds more than
histograms in memory.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gradmimic.curate import plan
from gradmimic.curate.backends import Engine
from gradmimic.curate.decide import Log
from gradmimic.curate.histogram import Grid, Histogram, grid_of, histograms
from gradmimic.curate.selection import Selection
from gradmimic.errors import ConfigError, DataError, LogError, listed
from gradmimic.log import ScoreLog
from gradmimic.log_reader import LogReader

if TYPE_CHECKING:
    import ibis.expr.types as ir

_TYPES = {
    "epoch": pa.int64(),
    "step": pa.int64(),
    "scorer": pa.string(),
    "score": pa.float64(),
    "weight": pa.float64(),
    "batch_size": pa.float64(),
    "canary": pa.string(),
}
_NULLABLE = ("epoch", "canary", "loss")
_SHOWN = 3


class Voter(NamedTuple):
    """One scorer at one epoch, or at one number of visit where the epoch is not known."""

    scorer: str
    epoch: int
    rows: int  # visits of samples, canaries not counted
    canaries: int
    step: int  # its first one
    grid: Grid


class Visits:
    """The visits of some scorers.

    Args:
        engine: where the plan runs.
        log: the log.
        scorers: whose visits; the first one's voters come first.
        relative: whether rules judge the relative weight w·b, not the score.
        edge: a number that no bin is to straddle; None where there is none.

    Attributes:
        where: names the log in messages.
        scorers: all that the log has, by name.
        voters: in order of scorer, then epoch.
        note: what to add to every reason, where voters were left out.

    Raises:
        LogError: the log is empty or damaged, lacks a scorer, or holds a number that is not finite.
    """

    def __init__(
        self,
        engine: Engine,
        log: Log,
        scorers: Sequence[str],
        *,
        relative: bool,
        edge: float | None,
    ) -> None:
        self.engine = engine
        self._parts: list[Path] = []
        overtaken: dict[str, int] = {}
        if isinstance(log, pa.Table):
            self.where = "the table"
            rows = engine.table(_checked_table(log, self.where))
        else:
            reader = log if isinstance(log, LogReader) else ScoreLog.read(log)
            self.where = f"the log at {reader.path}"
            rows = self._opened(reader)
            overtaken = _overtaken(reader)
        with self.blaming_parts():
            self.rows = _typed(rows, relative)
            self.voters = self._voters(scorers, edge)
            self.note = self._leave_out(overtaken)
            self._packed = self._look_packed()

    @contextmanager
    def blaming_parts(self) -> Iterator[None]:
        """Where the engine gives up, look for a damaged part, and name that one instead."""
        try:
            yield
        except DataError:
            for part in self._parts:
                try:
                    pq.read_table(part, page_checksum_verification=True)
                except (OSError, pa.ArrowException) as error:
                    raise LogError(
                        f"{part} is damaged and cannot be read ({error}). Restore it from a copy, "
                        "or remove it to go on without its rows."
                    ) from error
            raise

    def histograms(self, *, with_losses: bool) -> dict[tuple[int, str | None], Histogram]:
        """Return the bins of each voter and kind of canary; None is the samples.

        Raises:
            LogError: losses are wanted, but the table has none.
        """
        if with_losses and "loss" not in self.rows.columns:
            raise LogError(
                f"{self.where} lacks the column loss, which tells kinds of canaries apart. Pass a "
                "ScoreLog, or a table from log.scan(); or choose rule='mixture'."
            )
        table = self._table(
            {
                "center": pa.array([voter.grid.center for voter in self.voters], pa.float64()),
                "scale": pa.array([voter.grid.scale for voter in self.voters], pa.float64()),
            }
        )
        bins = plan.visit_bins(plan.placed(self.rows, table), with_losses)
        return histograms(self.engine.fetch(bins), ["voter", "canary"])

    def samples(
        self, thresholds: Sequence[float], *, with_x: bool, coded: bool, each: bool = False
    ) -> "ir.Table":
        """Return the samples with their mean score and their votes, computed once.

        Args:
            thresholds: the lowest value that each voter votes to keep.
            with_x: whether the rule judges means of w·b.
            coded: whether all voters are to share one integer.
            each: whether to average every scorer's scores.

        Raises:
            LogError: a sample comes twice in an epoch, or has no id.
        """
        table = self._table({"threshold": pa.array(thresholds, pa.float64())})
        rows = plan.placed(self.rows.filter(self.rows.canary.isnull()), table)
        samples = self.engine.store(
            plan.samples(self.key, rows, self.groups, with_x=with_x, coded=coded, each=each)
        )
        found = self.engine.fetch(plan.checks(samples)).to_pylist()[0]
        if found["without"] and self._packed:  # there are other ids beside those looked at
            self._packed = False
            return self.samples(thresholds, with_x=with_x, coded=coded, each=each)
        if found["without"]:
            raise LogError(_nulls(self.where, ["sample_id"]))
        if found["visits"] != sum(voter.rows for voter in self.voters):
            raise LogError(self._repeated())
        return samples

    def canary_means(self, *, each: bool = False) -> "ir.Table":
        """Return the mean over its visits of each canary, perhaps for each scorer."""
        rows = plan.placed(self.rows.filter(self.rows.canary.notnull()), self._table({}))
        return plan.canary_means(self.key, rows, self.groups if each else ())

    def other(self, name: str, selection: Selection) -> "ir.Table":
        """Return the votes of a selection from elsewhere."""
        id_type = pa.int64() if self.rows.sample_id.type().is_integer() else pa.string()
        if selection.id_type != id_type:
            raise ConfigError(
                f"voter {name!r} has {selection.id_type} sample ids, but {self.where} has "
                f"{id_type} ids. Make that selection with the ids that were logged."
            )
        batches = selection.batches(["sample_id", "keep"])
        schema = pa.schema({"sample_id": id_type, "keep": pa.bool_()})
        rows = self.engine.table(pa.Table.from_batches(batches, schema))
        return rows.select(other_key=self.key(rows.sample_id), other_keep=rows.keep)

    def key(self, ids: "ir.Column") -> "ir.Column":
        """Return what to group ids by."""
        return self.engine.packed(ids) if self._packed else ids

    @property
    def groups(self) -> list[plan.Group]:
        """The voters of each scorer."""
        names = [voter.scorer for voter in self.voters]
        return [plan.Group(names.index(name), names.count(name)) for name in dict.fromkeys(names)]

    def _opened(self, reader: LogReader) -> "ir.Table":
        """Return the rows of all complete parts."""
        if isinstance(reader, ScoreLog):
            reader.flush()
        self._parts = reader.parts
        reader.id_type(self._parts)  # refuses parts of other versions, columns or kinds of ids
        if not self._parts:
            raise LogError(_empty(self.where))
        return self.engine.parts(self._parts)

    def _voters(self, scorers: Sequence[str], edge: float | None) -> list[Voter]:
        """Find out who scored when, having checked every number."""
        found = self.engine.fetch(plan.survey(self.rows))
        self.scorers = names = sorted(set(found["scorer"].to_pylist()) - {None})
        if found.num_rows == 0:
            raise LogError(_empty(self.where))
        if missing := [name for name in scorers if name not in names]:
            raise LogError(f"{self.where} has no scorer {missing[0]!r}; it has {names}.")
        found = found.filter(pc.is_in(found["scorer"], pa.array(scorers, pa.string())))
        chosen = self.rows.filter(self.rows.scorer.isin(list(scorers)))
        if found["epoch"].null_count:
            self.rows = chosen = self.engine.store(plan.numbered(chosen))
            found = self.engine.fetch(plan.survey(self.rows))
        for name, column in (("score", "score"), ("weight", "x")):
            if count := pc.sum(found[f"not_{column}"]).as_py():
                raise LogError(self._broken(chosen, name, column, count))
        canaries = found.filter(pc.is_valid(found["canary"]))
        counted = canaries.group_by(["scorer", "epoch"]).aggregate([("rows", "sum")]).to_pylist()
        marked = {(row["scorer"], row["epoch"]): row["rows_sum"] for row in counted}
        samples = found.filter(pc.is_null(found["canary"]))
        begun = samples.group_by(["scorer", "epoch"]).aggregate([("step", "min")]).to_pylist()
        first = {(row["scorer"], row["epoch"]): row["step_min"] for row in begun}
        levels = histograms(samples.drop_columns("canary"), ["scorer", "epoch"])
        voters = []
        for (name, epoch), own in levels.items():
            drawn = marked.get((name, epoch), 0)
            rows = int(own.counts.sum())
            voters.append(Voter(name, epoch, rows, drawn, first[name, epoch], grid_of(own, edge)))
        present = {voter.scorer for voter in voters}
        if missing := [name for name in scorers if name not in present]:
            raise LogError(
                f"{self.where} holds only canaries for scorer {missing[0]!r}. There is no sample "
                "to decide on."
            )
        return sorted(voters, key=lambda voter: (scorers.index(voter.scorer), voter.epoch))

    def _leave_out(self, overtaken: dict[str, int]) -> str:
        """Drop voters that know nothing, where no sample is lost by it; return what to say."""
        left_out: list[Voter] = []
        for scorer, since in overtaken.items():
            doubtful = [voter.scorer == scorer and voter.step >= since for voter in self.voters]
            own = [voter.scorer == scorer for voter in self.voters]
            if not any(doubtful) or doubtful == own:
                continue
            table = self._table({"doubtful": pa.array(doubtful)})
            rows = self.rows.filter(self.rows.canary.isnull() & (self.rows.scorer == scorer))
            needed = self.engine.fetch(plan.only_doubtful(plan.placed(rows, table)))
            kept = set(needed["voter"].to_pylist())
            left_out += [
                voter
                for number, voter in enumerate(self.voters)
                if doubtful[number] and number not in kept
            ]
        if not left_out:
            return ""
        self.voters = [voter for voter in self.voters if voter not in left_out]
        epochs = listed(f"{voter.epoch}" for voter in left_out)
        return f"; the model had overtaken its reference, so visits of epoch {epochs} were left out"

    def _table(self, columns: dict[str, pa.Array]) -> "ir.Table":
        """Return the voters as a table to join, with more columns."""
        return self.engine.table(
            pa.table(
                {
                    "scorer": pa.array([voter.scorer for voter in self.voters], pa.string()),
                    "epoch": pa.array([voter.epoch for voter in self.voters], pa.int64()),
                    "voter": pa.array(range(len(self.voters)), pa.int64()),
                    **columns,
                }
            )
        )

    def _look_packed(self) -> bool:
        """Look at some ids: whether they seem to be 128 bits in hexadecimal digits."""
        if not self.engine.packs or not self.rows.sample_id.type().is_string():
            return False
        some = self.engine.fetch(self.rows.select("sample_id").limit(1000))["sample_id"]
        return bool(pc.all(pc.match_substring_regex(some, "^[0-9a-f]{32}$")).as_py())

    def _broken(self, rows: "ir.Table", name: str, column: str, count: int) -> str:
        """Say that numbers are null or not finite, naming the first."""
        row = self.engine.fetch(plan.broken(rows, column)).to_pylist()[0]
        if row[column] is None:
            return _nulls(self.where, [name])
        return (
            f"{count} rows have a {name} that is not finite, the first is sample "
            f"{row['sample_id']!r} in epoch {row['epoch']}, step {row['step']}. Remove these "
            "rows, or score those samples again."
        )

    def _repeated(self) -> str:
        """Say which samples come twice in an epoch, and when."""
        rows = plan.placed(self.rows.filter(self.rows.canary.isnull()), self._table({}))
        again = self.engine.store(plan.repeated(rows))
        count = self.engine.fetch(again.count().as_table())[0][0].as_py()
        order = ["epoch", "sample_id", "scorer"]
        first = self.engine.store(again.order_by(order).limit(_SHOWN))
        steps = rows.join(first, ["scorer", "epoch", "sample_id"]).select(*order, "step")
        named: dict[str, list[int]] = {}
        for row in self.engine.fetch(steps.order_by([*order, "step"])).to_pylist():
            name = f"{row['sample_id']!r} in epoch {row['epoch']}"
            named.setdefault(name, []).append(row["step"])
        return (
            f"samples were visited more than once in an epoch, {count} times in all: "
            f"{'; '.join(f'{name} at steps {steps}' for name, steps in named.items())}. "
            "Two runs in one folder, a run that resumed from an earlier checkpoint and logs steps "
            "again, a sampler with replacement, and one that pads to give every rank as many "
            "(DistributedSampler without drop_last) do this: give each run a folder of its own, or "
            "pass only the rows that count, as a table from log.scan(filter=…)."
        )


def _overtaken(reader: LogReader) -> dict[str, int]:
    """Return the step from which on a scorer's scores know nothing, for those that it happened to.

    What ``GradMimic`` notes is of its own scores.
    """
    found: dict[str, int] = {}
    for event in reader.events:
        if event["event"] == "overtaken":
            scorer = event.get("scorer", "mimic")
            found[scorer] = min(found.get(scorer, event["step"]), event["step"])
    return found


def _typed(rows: "ir.Table", relative: bool) -> "ir.Table":
    """Name what the rules judge x, and compute in the same types everywhere."""
    score = rows.score.cast("float64")
    # As float32, like the weight itself: sums over visits are then exact, in any order.
    x = (rows.weight * rows.batch_size).cast("float32").cast("float64") if relative else score
    loss = {"loss": rows.loss.cast("float64")} if "loss" in rows.columns else {}
    return rows.select(
        "sample_id", "step", "scorer", "canary", epoch=rows.epoch.cast("int64"),
        score=score, x=x, **loss,
    )  # fmt: skip


def _checked_table(table: pa.Table, where: str) -> pa.Table:
    """Bring the columns of a table to the types of a log, refusing what is none."""
    if missing := [name for name in ["sample_id", *_TYPES] if name not in table.column_names]:
        raise LogError(
            f"{where} lacks the columns {missing}. Pass a ScoreLog, or a table from log.scan()."
        )
    if table.num_rows == 0:
        raise LogError(_empty(where))
    ids = table["sample_id"]
    if pa.types.is_dictionary(ids.type):
        ids = ids.cast(ids.type.value_type)
    try:
        if pa.types.is_boolean(table["canary"].type):
            raise pa.ArrowTypeError("canary is bool, not the kind of canary as a string")
        if not (pa.types.is_integer(ids.type) or ids.type in (pa.string(), pa.large_string())):
            raise pa.ArrowTypeError(f"sample_id is {ids.type}, not an integer or a string")
        id_type = pa.int64() if pa.types.is_integer(ids.type) else pa.string()
        columns = {"sample_id": ids.cast(id_type)}
        columns |= {name: table[name].cast(kind) for name, kind in _TYPES.items()}
        if "loss" in table.column_names:
            columns["loss"] = table["loss"].cast(pa.float64())
    except pa.ArrowException as error:
        raise LogError(f"{where} has columns of other types than a score log: {error}.") from error
    nulls = [
        name for name, column in columns.items() if column.null_count and name not in _NULLABLE
    ]
    if nulls:
        raise LogError(_nulls(where, nulls))
    return pa.table(columns)


def _empty(where: str) -> str:
    """Say that there is nothing."""
    return f"{where} is empty. Train with this log first, then select."


def _nulls(where: str, names: list[str]) -> str:
    """Say that values are missing."""
    return f"{where} has null values in {names}. A score log has none: remove them."
