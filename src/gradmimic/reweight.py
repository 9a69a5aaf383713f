"""Stage 1: re-weight every batch by its mimic scores, in any training loop.

with mimic:                          # the model reads dual numbers at its scored parameters
losses = loss(model(x), y)       # [b], unreduced
loss = mimic.weigh(losses, ids)      # Σ_i w_i ℓ_i  with w = softmax(m / τ)
loss.backward()
"""

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.canaries import CanaryLosses
from gradmimic.direction import Direction, LastUsed, Params, choose, direction, find_head
from gradmimic.engines import Engine, pick_engine
from gradmimic.errors import LossError, ParameterError, UsageError
from gradmimic.log import ScoreLog
from gradmimic.measure import check_losses, check_shape
from gradmimic.reference import Reference, Source, load_reference
from gradmimic.score import batch_weights, projection

Ids = Sequence[int] | Sequence[str] | Tensor | npt.NDArray[Any]


class GradMimic:
    """Re-weight batches by how far each sample moves the weights toward a reference's.

    m_i = ⟨−∇_{θ_S} ℓ_i, v⟩ / ‖v‖,  w = softmax(m / τ),  loss = Σ_i w_i ℓ_i

    The same forward pass that trains also scores. The model is neither wrapped nor replaced;
    outside the ``with`` block (evaluation, checkpoints) it never notices. Works with gradient
    accumulation (each micro-batch is weighed by itself; divide its loss as ever), autocast, and
    non-reentrant gradient checkpointing of the layers below the scored ones.

    Args:
        model: the model being trained.
        reference: a better model's weights, or anything :func:`load_reference` takes.
        params: the scored parameters: ``"head"`` (the last layer), ``"all"``, glob patterns, or a
            callable ``(name, parameter) -> bool``. A head tied to the embedding is scored as a head
            only.
        temperature: τ > 0, or a schedule ``step -> τ``; ``inf`` trains on the plain mean.
        engine: ``"auto"``, ``"forward"``, or ``"oracle"`` (slow, for doubt).
        log: a :class:`ScoreLog` that receives every score.
        reweight: ``"all"``, the paper's step: all parameters follow the weights; ``"scored"``: the
            scored ones alone do, the rest follow the plain mean.
        warmup: the number of first steps that score and log but train on the plain mean.

    Attributes:
        step: the number of batches weighed so far; set it when a run resumes.
        scores: ``[b]``, the last batch's scores; higher is better.
        weights: ``[b]``, their softmax, summing to 1.

    Raises:
        ParameterError, ReferenceMismatchError: model, scored parameters and reference do not fit.

    Source: arXiv 2501.06708, section 3.2.

    Example:
        >>> model, better = nn.Linear(1, 2), nn.Linear(1, 2)
        >>> mimic = GradMimic(model, better, temperature=0.5)
        >>> x, y = torch.ones(4, 1), torch.tensor([0, 1, 1, 1])
        >>> with mimic:
        ...     losses = nn.functional.cross_entropy(model(x), y, reduction="none")
        >>> loss = mimic.weigh(losses)
        >>> loss.backward()
    """

    def __init__(
        self,
        model: nn.Module,
        reference: Reference | Source,
        *,
        params: Params = "head",
        temperature: float | Callable[[int], float] = 1.0,
        engine: str = "auto",
        log: ScoreLog | None = None,
        reweight: Literal["all", "scored"] = "all",
        warmup: int = 0,
    ) -> None:
        if reweight not in ("all", "scored"):
            raise ParameterError(f"reweight={reweight!r} is unknown; expected 'all' or 'scored'.")
        if not callable(temperature):
            _check_temperature(temperature)
        self.step = 0
        self.scores: Tensor | None = None
        self.weights: Tensor | None = None
        self._model, self._reference = model, load_reference(reference)
        self._engine, self._log = pick_engine(engine), log
        self._temperature, self._reweight, self._warmup = temperature, reweight, warmup
        self._watch: LastUsed | None = None  # only while the head is a guess
        self._guess = find_head(model) if params == "head" else None
        self._score_on(params)
        self._pass: Engine | None = None
        self._direction: Direction | None = None

    def _score_on(self, params: Params, head: str | None = None) -> None:
        self._subset = choose(self._model, params, head=head)
        self._target = self._reference.match(self._model, self._subset)

    def __enter__(self) -> "GradMimic":
        self._pass, self._direction = None, self._take_direction()
        self._pass = self._engine(self._subset, self._direction).__enter__()
        if self._guess is not None:
            self._watch = LastUsed(self._model)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._watch is not None:
            self._watch.stop()
        current = self._pass
        if error is not None:
            self._pass = None  # nothing to weigh
        if current is not None:
            current.__exit__(kind, error, trace)

    def weigh(
        self,
        losses: Tensor,
        ids: Ids | None = None,
        *,
        epoch: int | None = None,
        canaries: CanaryLosses | None = None,
    ) -> Tensor:
        """Turn the losses of the last ``with`` block into the one loss to step on.

        Σ_i w_i ℓ_i  with w = softmax(m / τ)

        Args:
            losses: ``[b]``, one finite loss per sample, with their graph.
            ids: ``[b]`` sample ids, integers or strings; needed where there is a log.
            epoch: the number of the pass over the data, for the log; where it is left out, a
                sample's visits are told apart by their steps.
            canaries: what ``Canaries`` drew from this forward pass; scored and logged, but part
                neither of the loss nor of the weights, unless drawn to be trained on.

        Returns:
            A scalar, in the unit of the losses. With ``reweight="scored"`` its value is the plain
            mean, while the scored parameters' gradients are those of the weighted sum.

        Raises:
            LossError: not one finite loss per sample, or losses of another pass.
            DirectionError: the reference's weights equal the current ones.
            UsageError: there was no ``with`` block, or a log but no ids.
            LogError: the log refuses these rows; the model has not been touched.
        """
        current, v = self._pass, self._direction
        if current is None or v is None:
            raise UsageError(
                "weigh has no forward pass to weigh. Expected `with mimic:` around the model's "
                "forward pass, then one call of weigh."
            )
        self._pass = None
        try:
            check_shape(losses)
            if self._head_was_elsewhere():
                return _mean(check_losses(losses))
            b = len(losses)
            scored = losses if canaries is None else torch.cat([losses, canaries.losses])
            scores = projection(current.derivative(scored), v.norm)
            if canaries is not None and canaries.trained:
                losses = scored
            tau = self._temperature
            tau = _check_temperature(tau(self.step)) if callable(tau) else tau
            weights = batch_weights(scores[: len(losses)], tau)
            outside = len(scored) - len(losses)  # canaries weigh nothing
            # one transfer for all of them: on a GPU each one waits for the device
            columns = scores, F.pad(weights, (0, outside)), scored.detach()  # [b + c] each
            rows = torch.stack(columns).float().cpu().numpy()
            if not np.isfinite(rows).all():
                check_losses(scored)
                raise LossError("The scores are NaN or infinite: the losses' derivatives overflow.")
            self._record(ids, rows, b, epoch, v.norm, canaries)
            self.scores, self.weights = scores[:b], weights[:b]
            training = self.step >= self._warmup
            self.step += 1
            if not training:
                return _mean(losses)
            if self._reweight == "all":
                return (weights * losses).sum()
            return self._reweight_scored(losses, weights, current.stand_ins)
        finally:
            current.close()

    def _take_direction(self) -> Direction:
        moved = any(
            parameter.device != self._target[name].device
            or parameter.dtype != self._target[name].dtype
            for name, parameter in self._subset.parameters.items()
        )
        if moved:  # since the last step, by model.to(...)
            self._target = self._reference.match(self._model, self._subset)
        return direction(self._subset, self._target)

    def _head_was_elsewhere(self) -> bool:
        """Settle, after the first pass, which module is the head."""
        used = self._watch.name if self._watch is not None else None
        guess, self._guess, self._watch = self._guess, None, None
        if guess is None or used is None or used == guess:
            return False
        warnings.warn(
            f"params='head': the module used last is {used!r}, not {guess!r}. It is scored from "
            f"the next batch on; this first one trains on the plain mean. Pass params='{used}.*' "
            "to score it from the start.",
            stacklevel=3,
        )
        self._score_on("head", head=used)
        return True

    def _record(
        self,
        ids: Ids | None,
        rows: npt.NDArray[np.float32],
        b: int,
        epoch: int | None,
        norm: float,
        canaries: CanaryLosses | None,
    ) -> None:
        if ids is not None and len(ids) != b:
            raise LossError(f"Expected as many ids as losses, got {len(ids)} and {b}.")
        if self._log is None:
            return
        if ids is None:
            raise UsageError(
                "The scores are logged, so weigh needs each sample's id: weigh(losses, ids)."
            )
        if isinstance(ids, Tensor):
            ids = ids.cpu().numpy()
        batches: list[tuple[Any, npt.NDArray[np.float32], list[str | None] | None]]
        if canaries is None:
            batches = [(ids, rows, None)]
        elif canaries.trained:  # one softmax, so one batch
            batches = [([*ids, *canaries.ids], rows, [None] * b + [*canaries.kinds])]
        else:
            batches = [(ids, rows[:, :b], None), (canaries.ids, rows[:, b:], [*canaries.kinds])]
        for batch_ids, columns, kinds in batches:
            self._log.append(
                batch_ids, *columns, epoch=epoch, step=self.step, direction_norm=norm, canary=kinds
            )

    def _reweight_scored(
        self, losses: Tensor, weights: Tensor, stand_ins: dict[str, Tensor]
    ) -> Tensor:
        """Let the scored parameters follow the weights and all others the plain mean.

        loss = mean(ℓ) + ⟨θ_S, δ⟩ − const  with δ = ∇_{θ_S} Σ_i (w_i − 1/b) ℓ_i held constant

        δ costs the backward pass of the scored layers and of those above them.
        """
        mean = _mean(losses)
        trained = {
            name: parameter
            for name, parameter in self._subset.parameters.items()
            if parameter.requires_grad
        }
        if not trained:
            return mean
        difference = (weights * losses).sum() - mean
        deltas = torch.autograd.grad(
            difference,
            [stand_ins[name] for name in trained],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        linear = sum((p * d).sum() for p, d in zip(trained.values(), deltas, strict=True))
        return mean + linear - linear.detach()  # type: ignore[union-attr]


def _mean(losses: Tensor) -> Tensor:
    return losses.sum() / max(len(losses), 1)  # 0 for an empty batch, which a mean would make NaN


def _check_temperature(value: float) -> float:
    if not value > 0:
        raise ParameterError(f"temperature must be a positive number or inf, got {value!r}.")
    return value
