"""The scores of a whole data set, without training: each batch through every checkpoint, logged.

    m_ij = ⟨−∇_{θ_S} ℓ_i(θ_j), v_j⟩ / ‖v_j‖,  v_j = θ_ref,S − θ_j,S    sample i, checkpoint j
    epoch = j,  step = j · n + number of the batch                     of n batches
    process r of W scores the batches r, r + W, r + 2 W, …

A batch is the unit of work: what it scores depends on nothing but itself, and all its rows, of
every checkpoint, are in one part of the log, which appears whole or not at all. So the log itself
tells what is done; a run that was killed anywhere is started again, with any number of processes,
and ends as if nothing had been.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from gradmimic.ahead import ahead
from gradmimic.direction import Params
from gradmimic.errors import LogError, LossError, ParameterError, UsageError
from gradmimic.log import ScoreLog
from gradmimic.log_reader import read_part
from gradmimic.outputs import evaluating
from gradmimic.record import record
from gradmimic.trial import Given
from gradmimic.visit import Losses, Scores, Visit, Weighing, begin

SECONDS = 10.0  # at most so much work is lost to a kill
EVENT = "scoring"  # what the log notes of the work that it is cut into

Batch = TypeVar("Batch")
Models = nn.Module | Sequence[nn.Module] | Mapping[str, nn.Module]


@dataclass(frozen=True)
class Scored:
    """What one call of :func:`score` did.

    Args:
        batches: scored and logged by this call.
        samples: in them.
        found: batches of this process that the log held already.
    """

    batches: int
    samples: int
    found: int


def score(
    models: Models,
    reference: Given,
    batches: "Sequence[Batch] | DataLoader[Batch]",
    losses: Losses[Batch],
    log: ScoreLog,
    *,
    ids: Callable[[Batch], Any],
    params: Params = "head",
    align: Literal["none", "shift", "rotation", "outputs"] = "none",
    temperature: float | Literal["auto"] = 1.0,
    engine: str = "auto",
    processes: int = 1,
    on_batch: Callable[[int], None] = lambda _samples: None,
) -> Scored:
    """Score a data set without training on it, with one model or with many checkpoints of one.

    m_ij = ⟨−∇_{θ_S} ℓ_i(θ_j), v_j⟩ / ‖v_j‖

    Each batch is read once, and goes through every checkpoint. Batches that the log holds already
    are left out, so a call that was interrupted is simply made again. Several processes share the
    work where each opens the same folder with its own ``ScoreLog(path, rank=…)``; they need no
    process group.

    Models are scored in eval mode and put back into their own; nothing else of them is touched.

    Args:
        models: a model; or several, as a sequence or by name: the checkpoints of one training, in
            order. Each is a visit of every sample, and its place the visit's epoch.
        reference: a better model's weights, or anything :class:`GradMimic` takes.
        batches: a sequence of batches, read ahead in a thread of its own; or a ``DataLoader`` that
            does not shuffle. The same ones at every call: their number is their name.
        losses: ``losses(model, batch) -> [b]``, one finite loss per sample; or ``([b], canaries)``
            with what ``Canaries`` drew from the same forward pass.
        log: where to; open it with this process's rank.
        ids: ``ids(batch) -> [b]``, the sample ids.
        params: the scored parameters, as of :class:`GradMimic`.
        align: as there, but for ``"transport"`` and ``"auto"``, whose directions depend on the
            batches that came before.
        temperature: τ of the logged weights, softmax(m/τ) over the batch; ``"auto"``: 0.7 of the
            scores' spread in it.
        engine: ``"auto"``, ``"forward"`` or ``"oracle"``.
        processes: W, how many share the work.
        on_batch: called with the number of samples after every batch.

    Returns:
        How much this call did. The scores are in the log; higher is better.

    Raises:
        ParameterError, ReferenceMismatchError, AlignmentError: model, scored parameters, alignment
            and reference do not fit.
        DirectionError: the reference's weights equal those of a checkpoint; it is named.
        LossError: not one finite loss per sample; the sample is named.
        UsageError: the loader shuffles, or is none.
        LogError: the log holds something else, or cannot be written. What it held is kept.

    Source: arXiv 2501.06708, section 3.1, at many checkpoints.

    Example:
        >>> import tempfile
        >>> x, y = torch.eye(4), torch.tensor([0, 1, 1, 0])
        >>> checkpoints, better = [nn.Linear(4, 2), nn.Linear(4, 2)], nn.Linear(4, 2)
        >>> def losses(model, rows):
        ...     return nn.functional.cross_entropy(model(x[rows]), y[rows], reduction="none")
        >>> with ScoreLog(tempfile.mkdtemp()) as log:
        ...     done = score(checkpoints, better, torch.arange(4).split(2), losses, log, ids=list)
        ...     done.samples, log.scan(["epoch"])["epoch"].to_pylist()
        (4, [0, 0, 1, 1, 0, 0, 1, 1])
    """
    _check_batches(batches)
    named, total = _named(models), len(batches)
    params = params if isinstance(params, str) or callable(params) else list(params)
    if align not in ("none", "shift", "rotation", "outputs"):
        raise ParameterError(
            f"align={align!r} cannot score a data set in pieces; expected none, shift, rotation or "
            "outputs. What transport learns depends on the batches before; outputs needs none."
        )
    told = "function" if callable(params) else params
    facts = {"batches": total, "checkpoints": len(named), "align": align, "params": told}
    _check_work(log, facts)
    done = finished(log, total)
    own = range(log.rank, total, processes)
    wanted = [number for number in own if number not in done]
    samples = 0
    with ExitStack() as stack, torch.no_grad():  # engines that need gradients turn them on
        for model in named.values():
            stack.enter_context(evaluating(model))
        weighing = Weighing(temperature)
        visits: list[Visit] = []
        writer = _Writer(log, total)
        waiting: _Rows | None = None  # a GPU works on the next batch while these are written
        for number, batch in zip(wanted, _reading(batches, wanted), strict=True):
            sample_ids = ids(batch)
            if visits:
                scored = [visit.score(batch, sample_ids, losses, weighing) for visit in visits]
            else:
                # Whatever batch this process begins with, what is learned is learned of the first
                # one: where the reference lies, and which engine suits.
                shown = None
                if align == "rotation" or (params != "head" and engine == "auto"):
                    first = next(iter(_reading(batches, [0])))
                    shown = first, ids(first)
                visits, scored = begin(
                    named, reference, params, align, engine, batch, sample_ids, losses, weighing,
                    shown=shown,
                )  # fmt: skip
            if waiting is not None:
                writer.add(waiting)
            waiting = _Rows(number, sample_ids, scored)
            samples += len(sample_ids)
            on_batch(len(sample_ids))
        if waiting is not None:
            writer.add(waiting)
        writer.flush()
    return Scored(len(wanted), samples, len(own) - len(wanted))


class _Rows(NamedTuple):
    """What a batch came to, still on its device."""

    number: int
    ids: Any
    scored: list[Scores]


class _Writer:
    """Logs whole batches, and writes a part from time to time."""

    def __init__(self, log: ScoreLog, batches: int) -> None:
        log.flush()
        self._log, self._batches = log, batches
        self._rows, self._written = 0, time.monotonic()

    def add(self, rows: _Rows) -> None:
        """Log a batch, of every checkpoint; in one part, that is, or not at all."""
        first = rows.scored[0].columns
        # one transfer for all of them: on a GPU each one waits for the device
        table = torch.cat([own.columns.to(first.device) for own in rows.scored], 1).cpu().numpy()
        if not np.isfinite(table).all():
            raise _not_finite(rows, table)
        size, start = table.shape[1], 0
        self._log.rows_per_part = max(self._log.rows_per_part, size)
        if self._rows + size > self._log.rows_per_part:
            self.flush()
        try:
            for visit, columns, canaries, known, norm in rows.scored:
                stop = start + columns.shape[1]
                record(
                    self._log,
                    rows.ids,
                    table[:, start:stop],
                    known,
                    canaries,
                    epoch=visit.epoch,
                    step=visit.epoch * self._batches + rows.number,
                    # one that never changes is told once, not a million times
                    direction_norm=norm if rows.number == 0 or not visit.one_norm else None,
                )
                start = stop
        except BaseException:
            self._log.discard()  # half a batch would pass for a whole one
            raise
        self._rows += size
        if time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was added as one part."""
        try:
            self._log.flush()
        except BaseException:
            self._log.discard()  # to be scored again, when there is room
            raise
        self._rows, self._written = 0, time.monotonic()


def _not_finite(rows: _Rows, table: npt.NDArray[np.float32]) -> LossError:
    """Say which loss or score is NaN or infinite."""
    # the weights of a whole batch are NaN where one score is
    bad = int(np.flatnonzero(~np.isfinite(table[[0, 2]]).all(axis=0))[0])
    owners = [(own, place) for own in rows.scored for place in range(own.columns.shape[1])]
    own, place = owners[bad]
    ids = rows.ids.tolist() if isinstance(rows.ids, Tensor | np.ndarray) else list(rows.ids)
    if place < len(ids):
        sample = repr(ids[place])
    else:
        assert own.canaries is not None  # noqa: S101  there are more columns than samples
        sample = f"{own.canaries.ids[place - len(ids)]!r} as a canary"
    score, _, loss = table[:, bad]
    what, value = ("score", score) if np.isfinite(loss) else ("loss", loss)
    return LossError(
        f"The {what} of sample {sample} is {value} at {own.visit.name}, in batch {rows.number}. "
        "Look at that sample and that checkpoint. What was scored before is kept."
    )


def _named(models: Models) -> dict[str, nn.Module]:
    """Return the checkpoints by name, in order."""
    if isinstance(models, nn.Module):
        return {type(models).__name__: models}
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        named = {f"model {place}": model for place, model in enumerate(models)}
    if not named:
        raise UsageError("there is no model. Pass one, or the checkpoints of a training in order.")
    return named


def finished(log: ScoreLog, batches: int) -> set[int]:
    """Return the numbers of the batches that the log holds, of all processes.

    Args:
        log: of :func:`score`.
        batches: of how many.

    Raises:
        LogError: a part of the log is damaged.
    """
    steps: set[int] = set()
    for part in log.parts:
        steps.update(pc.unique(read_part(part, ["step"]).column(0)).to_pylist())
    return {step % batches for step in steps}


def _check_work(log: ScoreLog, facts: Mapping[str, Any]) -> None:
    """Refuse a log of anything else, and say in a new one what it is of."""
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


def _check_batches(batches: Any) -> None:
    """Refuse batches that cannot be told by their number."""
    if not isinstance(batches, DataLoader):
        if not (hasattr(batches, "__len__") and hasattr(batches, "__getitem__")):
            raise UsageError(
                f"the batches are a {type(batches).__name__}, which has no length or cannot be "
                "asked for one by its number. Expected a sequence of batches, or a DataLoader."
            )
    elif (
        type(batches.batch_sampler) is not BatchSampler
        or type(batches.batch_sampler.sampler) is not SequentialSampler
    ):
        raise UsageError(
            "the DataLoader shuffles, or draws its batches in a way of its own, so they cannot be "
            "told by their number. Expected shuffle=False and a batch_size; or pass a sequence of "
            "batches."
        )


def _reading(batches: Any, wanted: Sequence[int]) -> Iterator[Any]:
    """Yield the wanted batches, read ahead; the others are not read."""
    if not isinstance(batches, DataLoader):
        return ahead(batches.__getitem__, wanted)
    sampler: Any = batches.batch_sampler
    size, rows = sampler.batch_size, len(sampler.sampler)
    return iter(
        DataLoader(
            batches.dataset,
            batch_sampler=[
                [*range(number * size, min((number + 1) * size, rows))] for number in wanted
            ],
            num_workers=batches.num_workers,
            collate_fn=batches.collate_fn,
            pin_memory=batches.pin_memory,
            timeout=batches.timeout,
            worker_init_fn=batches.worker_init_fn,
            multiprocessing_context=batches.multiprocessing_context,
            prefetch_factor=batches.prefetch_factor,
        )
    )
