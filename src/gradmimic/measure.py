"""Scores without training: one forward pass, and every sample's mimic score."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from gradmimic.direction import (
    Choice,
    Direction,
    LastUsed,
    Params,
    Subset,
    choose,
    direction,
    find_head,
)
from gradmimic.engines import pick_engine
from gradmimic.engines.gradients import per_sample_gradients
from gradmimic.engines.oracle import OracleEngine
from gradmimic.engines.segment import segment
from gradmimic.errors import LossError, UnsupportedOperationError, UsageError
from gradmimic.reference import Reference, Source, load_reference
from gradmimic.score import cosine, projection
from gradmimic.wrapped import inside_ddp, keep_out_of_graphs, past_ddp, unwrapped

Batch = TypeVar("Batch")


def mimic_scores(
    model: nn.Module,
    reference: Reference | Source,
    batch: Batch,
    losses: Callable[[nn.Module, Batch], Tensor],
    *,
    params: Params = "head",
    engine: str = "auto",
    variant: Literal["projection", "cosine"] = "projection",
) -> Tensor:
    """Score one batch without training on it.

    m_i = ⟨−∇_{θ_S} ℓ_i, v⟩ / ‖v‖  with v = θ_ref,S − θ_S

    Args:
        model: the current weights θ. Its mode (train or eval) is respected, its weights, gradients
            and buffers are left as they are.
        reference: a better model's weights, or anything :func:`load_reference` takes.
        batch: whatever ``losses`` takes.
        losses: ``losses(model, batch) -> [b]``, one finite loss per sample.
        params: the scored parameters: ``"head"``, ``"all"``, glob patterns or a callable.
        engine: ``"auto"``, ``"forward"``, ``"ghost"``, ``"secant"`` or ``"oracle"``; or
            ``"segment"``, which is (ℓ_i(θ) − ℓ_i(θ_ref))/‖v‖, the whole way to the reference in
            place of its first step.
        variant: ``"projection"``, or ``"cosine"``, the projection over the gradient's length, which
            takes every sample's gradient whatever the engine.

    Returns:
        ``[b]`` scores, detached. Higher is better; a positive one means that a descent step on this
        sample moves the weights toward the reference. ``"cosine"`` lies in [−1, 1].

    Raises:
        ParameterError, ReferenceMismatchError, DirectionError: the model, its scored parameters and
            the reference do not fit.
        LossError: the losses are not ``[b]``, not finite, or do not depend on what is scored.
        UnsupportedOperationError: the engine cannot differentiate an operation.

    Source: arXiv 2501.06708, section 3.1.

    Example:
        >>> model, better = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 0.0), nn.init.constant_(better.weight, 1.0)
        >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
        >>> mimic_scores(model, better, (x, y), lambda m, b: (m(b[0]) - b[1]).square().squeeze(1))
        tensor([ 2., -2.])
    """
    if variant not in ("projection", "cosine"):
        raise LossError(f"variant={variant!r} is unknown; expected 'projection' or 'cosine'.")
    if variant == "cosine" and isinstance(params, Choice):
        raise LossError(
            "variant='cosine' divides by the length of each sample's gradient, which these params "
            "never form. Use variant='projection'."
        )
    loaded = load_reference(unwrapped(reference) if isinstance(reference, nn.Module) else reference)
    inner, called = unwrapped(model), inside_ddp(model)

    def score(subset: Subset) -> Tensor:
        v = direction(subset, loaded.match(inner, subset))
        if params != "all":
            keep_out_of_graphs(subset.modules)
        if variant == "cosine":
            with OracleEngine(subset, v) as backward:
                values = check_losses(losses(model, batch))
            return _cosines(values, backward.stand_ins, v)
        if engine == "segment":
            change = segment(subset, v, lambda: check_losses(losses(model, batch)))
            return projection(change, v.norm)
        try:
            derivative = along(subset, v)
        except UnsupportedOperationError:
            if engine != "auto":
                raise
            derivative = along(subset, v)  # by another engine
        return projection(derivative, v.norm)

    def along(subset: Subset, v: Direction) -> Tensor:
        with pick_engine(engine)(subset, v) as single_pass, past_ddp(model):
            values = check_losses(losses(model, batch))
        try:
            return single_pass.derivative(values)
        finally:
            single_pass.close()

    with torch.no_grad(), buffers_kept(model):  # engines that need gradients turn them on
        if params != "head":
            return score(choose(inner, params, called=called))
        guess = find_head(inner)
        watch = LastUsed(inner)
        try:
            scores = score(choose(inner, "head", head=guess, called=called))
        except LossError:
            if watch.name in (guess, None):
                raise
            scores = None  # the guessed module plays no part in the losses
        finally:
            watch.stop()
        if scores is None or watch.name not in (guess, None):
            scores = score(choose(inner, "head", head=watch.name, called=called))
        return scores


def check_losses(losses: Tensor) -> Tensor:
    """Return the losses if they are one finite number per sample, and raise otherwise.

    Args:
        losses: expected ``[b]``, floating point.

    Returns:
        The same tensor.

    Raises:
        LossError: another shape or dtype, NaN or infinite values.

    Example:
        >>> check_losses(torch.tensor([0.5, 2.0]))
        tensor([0.5000, 2.0000])
    """
    check_shape(losses)
    if math.isfinite(losses.detach().sum().item()):  # one number tells of all, nearly always
        return losses
    finite = losses.detach().isfinite()
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise LossError(
            f"{len(bad)} of {len(losses)} losses are NaN or infinite; the first is "
            f"{losses[bad[0]].item()} at position {bad[0].item()} of the batch. Look at that "
            "sample, or lower the learning rate."
        )
    return losses


def check_shape(losses: Tensor) -> None:
    """Raise unless the losses are one floating point number per sample; asks nothing of a GPU.

    Args:
        losses: expected ``[b]``.

    Raises:
        LossError: another shape or dtype.

    Example:
        >>> check_shape(torch.tensor([0.5, 2.0]))
    """
    if not isinstance(losses, Tensor) or not losses.is_floating_point():
        what = losses.dtype if isinstance(losses, Tensor) else type(losses).__name__
        raise LossError(f"Expected a floating point tensor of losses [b], got {what}.")
    if losses.ndim != 1:
        raise LossError(
            f"Expected one loss per sample, shape [b], got shape {list(losses.shape)}. "
            + (
                "Pass reduction='none' to the loss function."
                if losses.ndim == 0
                else "Reduce every dimension but the first, e.g. losses.flatten(1).mean(1)."
            )
        )


def check_shares(shares: Tensor, losses: Tensor, *, trained_canaries: bool = False) -> None:
    """Raise unless there is one share of the plain loss per sample.

    Args:
        shares: expected ``[b]``, floating point.
        losses: ``[b]``.
        trained_canaries: whether canaries train as well, of whose shares nothing is known.

    Raises:
        LossError: another shape or dtype.
        UsageError: there are trained canaries.

    Example:
        >>> check_shares(torch.tensor([0.75, 0.25]), torch.tensor([0.5, 2.0]))
    """
    if trained_canaries:
        raise UsageError("Canaries that are trained on have no share: leave out shares.")
    if shares.shape != losses.shape or not shares.is_floating_point():
        raise LossError(
            f"Expected one share per sample, a floating point tensor of shape "
            f"{list(losses.shape)}, got {shares.dtype} of shape {list(shares.shape)}."
        )


def _cosines(losses: Tensor, stand_ins: dict[str, Tensor], v: Direction) -> Tensor:
    derivative, norms = [losses.new_zeros(0)], [losses.new_zeros(0)]
    for gradients in per_sample_gradients(losses, stand_ins):  # [r, *shape] each
        rows = {name: g.flatten(1) for name, g in gradients.items()}
        derivative.append(sum(g @ v.tensors[name].flatten() for name, g in rows.items()))  # type: ignore[arg-type]
        norms.append(sum(g.square().sum(1) for g in rows.values()).sqrt())  # type: ignore[union-attr]
    return cosine(torch.cat(derivative), v.norm, torch.cat(norms)).detach()


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Undo what a pass in training mode does to running statistics."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()] if model.training else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
