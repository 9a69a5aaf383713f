"""Work cut into units, each scored by one process and logged whole or not at all.

    step = j · n + number of the unit                of n units, at checkpoint j
    process r of W scores the units r, r + W, r + 2 W, …

A unit is a batch, or a shard of many: what it scores depends on nothing but itself, and all its
rows, of every checkpoint and scorer, are in one part of the log. So the log itself tells what is
done; a run that was killed anywhere is started again, with any number of processes, and ends as if
nothing had been.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from gradmimic.direction import Params
from gradmimic.errors import LogError, LossError
from gradmimic.log import ScoreLog
from gradmimic.log_reader import LogReader, read_part
from gradmimic.outputs import evaluating
from gradmimic.record import record
from gradmimic.trial import Given
from gradmimic.visit import Losses, Scores, Visit, Weighing, begin

SECONDS = 10.0  # at most so much work is lost to a kill, and the units that are being read
EVENT = "scoring"  # what the log notes of the work that it is cut into


class Piece(NamedTuple):
    """A batch of a unit; those of several units may come in turns."""

    unit: int
    batch: Any  # None where the unit has no sample
    last: bool  # of its unit


class Units(Protocol):
    """A data set in units, told by their number."""

    def __len__(self) -> int:
        """Return how many there are, of all processes."""

    def read(self, wanted: Sequence[int]) -> Iterable[Piece]:
        """Yield all of some units."""

    def shown(self) -> Sequence[Any]:
        """Return batches, the same ones in every process, to learn an alignment from."""

    def ended(self, number: int) -> None:
        """Hear that a unit is scored, just before any of its rows can be written."""

    def called(self, number: int) -> str:
        """Name a unit in messages."""


def score_units(
    named: Mapping[str, nn.Module],
    reference: Given,
    units: Units,
    wanted: Sequence[int],
    losses: Losses[Any],
    log: ScoreLog,
    *,
    ids: Callable[[Any], Any],
    params: Params,
    align: str,
    temperature: float | Literal["auto"],
    engine: str,
    on_batch: Callable[[int], None],
    on_scored: Callable[[int, Any, list[Scores]], None] | None = None,
) -> int:
    """Score units, and log them.

    Args:
        named: the checkpoints by name, in order.
        reference: as of ``gradmimic.scoring.score``, like all that follows.
        units: the data.
        wanted: the numbers of the units that are this process's to score now.
        losses: ``losses(model, batch)``.
        log: where to.
        ids: ``ids(batch)``.
        params: the scored parameters.
        align: an alignment that needs nothing from the batches but those that are shown.
        temperature: τ of the logged weights.
        engine: the engine's name.
        on_batch: told of the samples of every batch.
        on_scored: told of every batch, before any of its rows can be written: the number of its
            unit, the batch, and its scores.

    Returns:
        How many samples were scored.

    Raises:
        LossError: a loss is not finite; sample, checkpoint and unit are named.
        LogError: the log cannot be written.
    """
    samples = 0
    with ExitStack() as stack, torch.no_grad():  # engines that need gradients turn them on
        for model in named.values():
            stack.enter_context(evaluating(model))
        weighing = Weighing(temperature)
        visits: list[Visit] = []
        writer = _Writer(log, units, on_scored)
        waiting: _Rows | None = None  # a GPU works on the next batch while these are written
        for number, batch, last in units.read(wanted):
            sample_ids = [] if batch is None else ids(batch)
            scored: list[Scores] = []
            if visits and batch is not None:
                for visit in visits:
                    scored += visit.score(batch, sample_ids, losses, weighing)
            elif batch is not None:
                # Whatever batch this process begins with, what is learned is learned of the first
                # ones: where the reference lies, and which engine suits.
                shown = []
                if align in ("rotation", "transport") or (params != "head" and engine == "auto"):
                    shown = [(first, ids(first)) for first in units.shown()]
                visits, scored = begin(
                    named, reference, params, align, engine, batch, sample_ids, losses, weighing,
                    shown=shown,
                )  # fmt: skip
                del shown  # memory that the rest may want
            if waiting is not None:
                writer.add(waiting)
            waiting = _Rows(number, last, batch, sample_ids, scored)
            samples += len(sample_ids)
            on_batch(len(sample_ids))
        if waiting is not None:
            writer.add(waiting)
        writer.flush()
    return samples


class _Rows(NamedTuple):
    """What a batch came to, still on its device."""

    unit: int
    last: bool
    batch: Any
    ids: Any
    scored: list[Scores]


class _Writer:
    """Logs whole units, and writes a part from time to time."""

    def __init__(
        self,
        log: ScoreLog,
        units: Units,
        on_scored: Callable[[int, Any, list[Scores]], None] | None,
    ) -> None:
        log.flush()
        self._log, self._units, self._on_scored = log, units, on_scored
        self._open: dict[int, list[tuple[_Rows, npt.NDArray[np.float32]]]] = {}
        self._rows, self._written = 0, time.monotonic()

    def add(self, rows: _Rows) -> None:
        """Take a batch, of every checkpoint; log its unit once that is whole."""
        if rows.scored:
            device = rows.scored[0].columns.device
            # one transfer for all of them: on a GPU each one waits for the device
            table = torch.cat([own.columns.to(device) for own in rows.scored], 1).cpu().numpy()
            if not np.isfinite(table).all():
                raise _not_finite(rows, table, self._units.called(rows.unit))
            if self._on_scored is not None:
                self._on_scored(rows.unit, rows.batch, rows.scored)
            scored = [own._replace(tokens=None) for own in rows.scored]  # these were told of
            rows = rows._replace(batch=None, scored=scored)
            self._open.setdefault(rows.unit, []).append((rows, table))
        if rows.last:
            self._log_unit(rows.unit)

    def _log_unit(self, number: int) -> None:
        """Log a unit; in one part, that is, or not at all."""
        pieces = self._open.pop(number, [])
        self._units.ended(number)
        size = sum(table.shape[1] for _, table in pieces)
        self._log.rows_per_part = max(self._log.rows_per_part, size)
        if self._rows + size > self._log.rows_per_part:
            self.flush()
        try:
            for rows, table in pieces:
                self._record(rows, table)
        except BaseException:
            self._log.discard()  # half a unit would pass for a whole one
            raise
        self._rows += size
        if time.monotonic() - self._written >= SECONDS:
            self.flush()

    def _record(self, rows: _Rows, table: npt.NDArray[np.float32]) -> None:
        """Log a batch."""
        start = 0
        for own in rows.scored:
            stop, visit = start + own.columns.shape[1], own.visit
            # one that never changes is told once, not a million times
            told = own.scorer == "mimic" and (rows.unit == 0 or not visit.one_norm)
            record(
                self._log,
                rows.ids,
                table[:, start:stop],
                own.known,
                own.canaries,
                epoch=visit.epoch,
                step=visit.epoch * len(self._units) + rows.unit,
                scorer=own.scorer,
                direction_norm=own.norm if told else None,
            )
            start = stop

    def flush(self) -> None:
        """Write what was added as one part."""
        try:
            self._log.flush()
        except BaseException:
            self._log.discard()  # to be scored again, when there is room
            raise
        self._rows, self._written = 0, time.monotonic()


def _not_finite(rows: _Rows, table: npt.NDArray[np.float32], unit: str) -> LossError:
    """Say which loss or score is NaN or infinite.

    Where samples are each other's rivals one bad sample spoils the losses of all; so what the
    fewest share, a score of another scorer perhaps, tells which one it is.
    """
    found: list[tuple[int, str, Scores, int, float]] = []  # the weights follow from the scores
    start = 0
    for own in rows.scored:
        columns = table[:, start : start + own.columns.shape[1]]
        for what, row in (("loss", columns[2]), ("score", columns[0])):
            if len(bad := np.flatnonzero(~np.isfinite(row))):
                name = what if own.scorer == "mimic" or what == "loss" else f"{own.scorer} score"
                found.append((len(bad), name, own, int(bad[0]), float(row[bad[0]])))
        start += own.columns.shape[1]
    _, what, own, place, value = min(found, key=lambda each: each[0])
    ids = rows.ids.tolist() if isinstance(rows.ids, Tensor | np.ndarray) else list(rows.ids)
    if place < len(ids):
        sample = repr(ids[place])
    else:
        assert own.canaries is not None  # noqa: S101  there are more columns than samples
        sample = f"{own.canaries.ids[place - len(ids)]!r} as a canary"
    return LossError(
        f"The {what} of sample {sample} is {value} at {own.visit.name}, in {unit}. "
        "Look at that sample and that checkpoint. What was scored before is kept."
    )


def finished(log: LogReader, units: int) -> set[int]:
    """Return the numbers of the units that the log holds, of all processes.

    Args:
        log: of :func:`score_units`.
        units: of how many.

    Raises:
        LogError: a part of the log is damaged.
    """
    steps: set[int] = set()
    for part in log.parts:
        steps.update(pc.unique(read_part(part, ["step"]).column(0)).to_pylist())
    return {step % units for step in steps}


def check_work(log: ScoreLog, facts: Mapping[str, Any]) -> None:
    """Refuse a log of anything else, and say in a new one what it is of.

    Args:
        log: with this process's rank.
        facts: everything that decides what a row of the log means, JSON-like.

    Raises:
        LogError: the log is of something else.
    """
    log.flush()
    told = [event for event in log.events if event["event"] == EVENT]
    for event in told:
        if changed := [key for key, value in facts.items() if event.get(key) != value]:
            key = changed[0]
            raise LogError(
                f"the log at {log.path} is of other work: {key} was {event.get(key)!r}, now it is "
                f"{facts[key]!r}. Log to a folder of its own, or score as before."
            )
    if told or log.rank > 0:
        return
    if log.parts:
        raise LogError(
            f"the log at {log.path} holds scores that gradmimic.scoring did not write. Log to a "
            "folder of its own."
        )
    log.mark(EVENT, 0, **facts)
