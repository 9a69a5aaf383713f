"""Is a reference of any use here, as it is or aligned? Canaries tell, and nothing is trained.

For v of every alignment that fits, θ being the current weights and S the scored ones:

    cos(θ_S, θ_S + v),  ‖v‖ / ‖θ_S‖      where the reference lies, once it is aligned
    mean ℓ(θ + s v),  s = 0 … 1          falls where the reference is better at these very labels
    A = P(m_canary < m_sample)           AUROC of the scores along v, for each kind of canary

A alone decides: see ``gradmimic.verdict``.
"""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from gradmimic.align import Alignment
from gradmimic.canaries import CanaryLosses
from gradmimic.direction import Direction, LastUsed, Params, Subset, choose, find_head
from gradmimic.engines import pick_engine
from gradmimic.errors import (
    AlignmentError,
    DataError,
    DirectionError,
    LossError,
    ReferenceMismatchError,
    UnsupportedOperationError,
    UsageError,
)
from gradmimic.measure import buffers_kept, check_losses
from gradmimic.outputs import Outputs
from gradmimic.reference import load_reference
from gradmimic.score import projection
from gradmimic.separation import separation
from gradmimic.toward_outputs import OutputPass, TowardOutputs
from gradmimic.trial import Given, pick_alignment
from gradmimic.verdict import SEGMENT, AlignmentCheck, ReferenceCheck, concluded, judged

MOST = 4096  # samples
_AUTO = ("none", "rotation", "outputs", "transport")

Batch = TypeVar("Batch")
Losses = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, CanaryLosses | None]]


class _Held(NamedTuple):
    """A batch, its ids, and which of its samples can be scored; None stands for all."""

    batch: Any
    ids: Any
    known: Tensor | None


def check_reference(
    model: nn.Module,
    reference: Given,
    batches: Iterable[Batch],
    losses: Losses[Batch],
    *,
    params: Params = "head",
    align: Literal["none", "shift", "rotation", "transport", "auto"] = "auto",
    ids: Callable[[Batch], Any] | None = None,
    engine: str = "auto",
) -> ReferenceCheck:
    """Check a reference against a model as it is now: before a training, or between two steps.

    A = P(m_canary < m_sample) for the scores m along v of every alignment

    Weights, buffers, gradients, modes and the random state stay as they are. The model's mode is
    respected: in training mode it is scored as in training.

    Canaries cannot tell whether the reference was trained on the very labels that it is to judge:
    it knows wrong ones by heart then, and canaries not. See ``gradmimic.cross_fit``.

    Args:
        model: the current weights θ. The features of an untrained one tell little: take a few
            hundred plain steps first, or load a pretrained trunk.
        reference: anything that :class:`GradMimic` takes.
        batches: of training data, as noisy as it comes. The first ones are used, until they hold
            4,096 samples, and stay in memory until the check is over.
        losses: ``losses(model, batch) -> [b]``, one finite loss per sample; or ``([b], canaries)``
            with what ``Canaries(rate=1.0).labels`` or ``.pairs`` drew from the same forward pass.
            Without canaries nothing can tell a good reference from a useless one.
        params: the scored parameters, as of :class:`GradMimic`.
        align: one alignment, or ``"auto"``: the plain difference and all others that fit, but for
            ``"shift"``, whose scores differ from the plain difference's by a factor only.
        ids: ``ids(batch) -> [b]``, the sample ids; needed where the reference is a table of
            outputs.
        engine: ``"auto"``, ``"forward"``, ``"secant"`` or ``"oracle"``.

    Returns:
        What every alignment comes to, which one to use, and why.

    Raises:
        DataError: there is no batch, ids are of another type than the table's, or the features or
            outputs are not finite.
        ParameterError: there is no such alignment, engine or parameter.
        LossError: the losses are not ``[b]``, not finite, or do not depend on what is scored.
        UsageError: the reference is a table of outputs, and there are no ids.
        UnsupportedOperationError: the engine cannot differentiate an operation.

    Example:
        >>> from gradmimic.canaries import Canaries
        >>> x = torch.eye(3).repeat(50, 1)
        >>> y = x.argmax(1)
        >>> model, better = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        >>> _ = nn.init.zeros_(model.weight), nn.init.eye_(better.weight)
        >>> def losses(model, rows):
        ...     logits = model(x[rows])
        ...     drawn = Canaries(rate=1.0).labels(logits, y[rows], rows)
        ...     return nn.functional.cross_entropy(logits, y[rows], reduction="none"), drawn
        >>> found = check_reference(model, better, torch.arange(150).split(50), losses)
        >>> found.usable, found.best, found.alignments["none"].auroc["uniform/3"].value
        (True, 'none', 1.0)
    """
    reference = _opened(reference)
    cuda = {parameter.device for parameter in model.parameters() if parameter.is_cuda}
    with torch.no_grad(), buffers_kept(model), torch.random.fork_rng(devices=[*cuda]):
        held = _hold(model, batches, losses, reference, ids)
        head = _last_used(model, held[0].batch, losses) if params == "head" else None
        subset = choose(model, params, head=head)
        candidates, impossible = _candidates(align, model, subset, reference)
        known = [own.known for own in held if own.known is not None]
        missing = sum(int((~own).sum()) for own in known)
        if known and missing == sum(map(len, known)):
            candidates = []
            impossible["outputs"] = f"the table knows none of these {missing} samples."
        candidates = _taught(candidates, impossible, model, held, losses)
        found, samples = {}, 0
        for name, v in _directions(candidates, impossible).items():
            found[name], samples = _check(v, model, subset, held, losses, engine)
    return concluded(found, impossible, samples=samples, missing=missing)


def _opened(reference: Given) -> Given:
    """Read a file once for all alignments."""
    if isinstance(reference, str | PathLike):
        table = Path(reference).suffix == ".parquet"
        return Outputs.read(reference) if table else load_reference(reference)
    return reference


def _hold(
    model: nn.Module,
    batches: Iterable[Batch],
    losses: Losses[Batch],
    reference: Given,
    ids: Callable[[Batch], Any] | None,
) -> list[_Held]:
    """Take batches until there are samples enough."""
    if isinstance(reference, Outputs) and ids is None:
        raise UsageError(
            "the reference is a table of outputs by id, so the check needs each sample's id: pass "
            "ids=, a function of the batch."
        )
    held, samples = [], 0
    for batch in batches:
        own = None if ids is None else ids(batch)
        known = reference.of(own)[1] if isinstance(reference, Outputs) else None
        held.append(_Held(batch, own, known))
        samples += len(_losses(losses, model, batch)[0])
        if samples >= MOST:
            break
    if not samples:
        raise DataError(
            "there is nothing to check on, batches gave no samples. An iterator that was used up "
            "before does so; pass a loader or a list."
        )
    return held


def _last_used(model: nn.Module, batch: Any, losses: Losses[Any]) -> str | None:
    """Find the head: the module that runs last."""
    watch = LastUsed(model)
    try:
        losses(model, batch)
    finally:
        watch.stop()
    return watch.name or find_head(model)


def _candidates(
    align: str, model: nn.Module, subset: Subset, reference: Given
) -> tuple[list[Alignment], dict[str, str]]:
    """Prepare every alignment that fits, and say why others do not."""
    candidates: list[Alignment] = []
    impossible: dict[str, str] = {}
    for name in _AUTO if align == "auto" else (align,):
        if name == "transport" and align == "auto" and any(c.name == "outputs" for c in candidates):
            continue  # what is tried more often is lucky more often
        try:
            candidates.append(pick_alignment(name, model, subset, reference))
        except (ReferenceMismatchError, AlignmentError) as error:
            impossible[name] = str(error)
    return candidates, impossible


def _taught(
    candidates: Sequence[Alignment],
    impossible: dict[str, str],
    model: nn.Module,
    held: Sequence[_Held],
    losses: Losses[Any],
) -> list[Alignment]:
    """Let those that learn from features see the batches; return all that fit."""
    for candidate in candidates:
        steps = 0
        try:
            while steps < candidate.first:
                for own in held:
                    with candidate.watching():
                        losses(model, own.batch)
                    candidate.observe(own.ids)
                steps += len(held)
        except (DataError, UsageError) as error:
            impossible[candidate.name] = str(error)
    return [candidate for candidate in candidates if candidate.name not in impossible]


def _directions(
    candidates: Sequence[Alignment], impossible: dict[str, str]
) -> dict[str, Direction | TowardOutputs]:
    """Return v by name; a copy of the model has none."""
    found: dict[str, Direction | TowardOutputs] = {}
    for candidate in candidates:
        v = candidate.direction()
        assert v is not None  # noqa: S101  it has learned enough
        try:
            _ = v.norm
            found[candidate.name] = v
        except DirectionError as error:
            impossible[candidate.name] = str(error)
    return found


def _check(
    v: Direction | TowardOutputs,
    model: nn.Module,
    subset: Subset,
    held: Sequence[_Held],
    losses: Losses[Any],
    engine: str,
) -> tuple[AlignmentCheck, int]:
    """Score all batches along v, and take the losses on the way; return the number of samples."""
    real: list[Tensor] = []
    total, rows = 0.0, 0
    canaries: dict[str, list[float]] = {}
    for own in held:
        scores, values, drawn = _scored(v, model, subset, own, losses, engine)
        if not scores.isfinite().all():
            raise LossError("The scores are NaN or infinite: the losses' derivatives overflow.")
        b = len(values)
        total, rows = total + float(values.sum()), rows + b
        real.append(scores[:b] if own.known is None else scores[:b][own.known])
        for kind, score in _of_canaries(drawn, scores[b:].tolist(), own):
            canaries.setdefault(kind, []).append(score)
    m = torch.cat(real).double().numpy()  # [n]
    way = [
        None if isinstance(v, TowardOutputs) else _mean_loss(s, v, model, subset, held, losses)
        for s in SEGMENT[1:]
    ]
    auroc = {kind: separation(m, own) for kind, own in canaries.items()}
    numbers = {kind: len(own) for kind, own in canaries.items()}
    check = AlignmentCheck(
        *((None, None) if isinstance(v, TowardOutputs) else _place(v, subset)),
        (total / rows, *way),
        float((m > 0).mean()),
        float(m.std()),
        numbers,
        auroc,
        *judged(auroc, numbers),
    )
    return check, len(m)


def _scored(
    v: Direction | TowardOutputs,
    model: nn.Module,
    subset: Subset,
    own: _Held,
    losses: Losses[Any],
    engine: str,
) -> tuple[Tensor, Tensor, CanaryLosses | None]:
    """Return the scores ``[b + c]`` of a batch and its canaries, its losses, and the canaries."""
    if isinstance(v, TowardOutputs):
        with torch.enable_grad():
            with v.direction().watching():
                values, drawn = _losses(losses, model, own.batch)
                both = values if drawn is None else torch.cat([values, drawn.losses])
            v.observe(own.ids)
            derivative = OutputPass(subset, v).derivative(both)
    else:
        try:
            derivative, values, drawn = _along(v, model, subset, own, losses, engine)
        except UnsupportedOperationError:  # engine auto has another one by now
            derivative, values, drawn = _along(v, model, subset, own, losses, engine)
    return projection(derivative, v.norm).cpu(), values.detach(), drawn


def _along(
    v: Direction,
    model: nn.Module,
    subset: Subset,
    own: _Held,
    losses: Losses[Any],
    engine: str,
) -> tuple[Tensor, Tensor, CanaryLosses | None]:
    """Run one pass; return the derivatives ``[b + c]``, the losses, and the canaries."""
    with pick_engine(engine)(subset, v) as single_pass:
        values, drawn = _losses(losses, model, own.batch)
    try:
        if drawn is None:
            return single_pass.derivative(values), values, None
        beside = single_pass.derivative_beside(values, drawn.losses, drawn.rows)
        return beside, values, drawn
    finally:
        single_pass.close()


def _place(v: Direction, subset: Subset) -> tuple[float | None, float | None]:
    """Return cos(θ_S, θ_S + v) and ‖v‖ / ‖θ_S‖; None where v stands for another one."""
    if v.length is not None:
        return None, None
    theta, along = (
        torch.cat([parts[name].detach().double().cpu().flatten() for name in subset.parameters])
        for parts in (subset.parameters, v.tensors)
    )
    here, there = float(theta.norm()), float((theta + along).norm())
    cosine = float(theta @ (theta + along)) / (here * there) if here and there else None
    return cosine, v.norm / here if here else None


def _of_canaries(
    drawn: CanaryLosses | None, scores: Sequence[float], own: _Held
) -> Iterable[tuple[str, float]]:
    """Yield kind and score of the canaries made of samples that the reference knows."""
    if drawn is None:
        return
    unknown: set[Any] = set()
    if own.known is not None and not own.known.all():
        ids = own.ids.tolist() if isinstance(own.ids, Tensor | np.ndarray) else list(own.ids)
        unknown = {ids[row] for row in (~own.known).nonzero().flatten().tolist()}
    for kind, sample_id, score in zip(drawn.kinds, drawn.ids, scores, strict=True):
        if sample_id not in unknown:
            yield kind, score


def _mean_loss(
    s: float,
    v: Direction,
    model: nn.Module,
    subset: Subset,
    held: Sequence[_Held],
    losses: Losses[Any],
) -> float | None:
    """Return the mean of ℓ(θ + s v); None where it is not finite."""
    moved = {name: p.detach() + s * v.tensors[name] for name, p in subset.parameters.items()}
    total, rows = 0.0, 0
    with subset.swapped(moved):
        for own in held:
            found = losses(model, own.batch)
            values = found if isinstance(found, Tensor) else found[0]
            total, rows = total + float(values.sum()), rows + len(values)
    return total / rows if np.isfinite(total) else None


def _losses(
    losses: Losses[Any], model: nn.Module, batch: Any
) -> tuple[Tensor, CanaryLosses | None]:
    """Compute a batch's losses, and canaries where there are any, all of them checked."""
    found: Any = losses(model, batch)
    pair = isinstance(found, tuple) and not isinstance(found, CanaryLosses) and len(found) == 2
    values, canaries = found if pair else (found, None)
    if canaries is not None:
        check_losses(canaries.losses)
    return check_losses(values), canaries
