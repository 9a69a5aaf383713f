"""The scores of a whole data set, without training: each batch through every checkpoint, logged.

    m_ij = ⟨−∇_{θ_S} ℓ_i(θ_j), v_j⟩ / ‖v_j‖,  v_j = θ_ref,S − θ_j,S    sample i, checkpoint j
    epoch = j,  step = j · n + number of the batch                     of n batches
    process r of W scores the batches r, r + W, r + 2 W, …

A batch is the unit of work (``gradmimic.units``): the log tells which ones are done.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from gradmimic.ahead import ahead
from gradmimic.direction import Choice, Params
from gradmimic.errors import ParameterError, UsageError
from gradmimic.log import ScoreLog
from gradmimic.trial import Given
from gradmimic.units import Piece, check_work, finished, score_units
from gradmimic.visit import Losses

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
        >>> import tempfile, torch
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
    params = params if isinstance(params, str | Choice) or callable(params) else list(params)
    if align not in ("none", "shift", "rotation", "outputs"):
        raise ParameterError(
            f"align={align!r} cannot score a data set in pieces; expected none, shift, rotation or "
            "outputs. What transport learns depends on the batches before; outputs needs none."
        )
    told = params if isinstance(params, str | list) else "function"
    facts = {"batches": total, "checkpoints": len(named), "align": align, "params": told}
    check_work(log, facts)
    done = finished(log, total)
    own = range(log.rank, total, processes)
    wanted = [number for number in own if number not in done]
    samples = score_units(
        named, reference, _Batches(batches), wanted, losses, log, ids=ids, params=params,
        align=align, temperature=temperature, engine=engine, on_batch=on_batch,
    )  # fmt: skip
    return Scored(len(wanted), samples, len(own) - len(wanted))


class _Batches:
    """Batches that are units by themselves."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def read(self, wanted: Sequence[int]) -> Iterator[Piece]:
        """Yield the wanted batches, read ahead."""
        for number, batch in zip(wanted, _reading(self._batches, wanted), strict=True):
            yield Piece(number, batch, True)

    def shown(self) -> list[Any]:
        """Return the first batch."""
        return list(_reading(self._batches, [0]))

    def ended(self, number: int) -> None:
        """Keep no books: a batch has rows, and these are enough."""

    def called(self, number: int) -> str:
        """Name a batch."""
        return f"batch {number}"


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
