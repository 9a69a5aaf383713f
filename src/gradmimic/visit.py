"""One checkpoint of many, ready to score batch after batch without training.

    m_i = ⟨−∇_{θ_S} ℓ_i, v⟩ / ‖v‖,  w = softmax(m / τ)

v is taken once, or per batch where it points toward outputs; nothing here asks anything of a GPU
that would make it wait. Other scores of the same samples, which the losses' pass yields as well,
go beside, each under the name of its scorer.
"""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.align import Alignment
from gradmimic.canaries import CanaryLosses
from gradmimic.direction import Direction, LastUsed, Params, Subset, choose, find_head
from gradmimic.engines import Engine, pick_engine
from gradmimic.errors import (
    DirectionError,
    GradMimicError,
    LossError,
    UnsupportedOperationError,
    UsageError,
)
from gradmimic.measure import check_shape
from gradmimic.outputs import Outputs
from gradmimic.reference import load_reference
from gradmimic.score import projection
from gradmimic.token_losses import TokenLosses
from gradmimic.toward_outputs import OutputForward, TowardOutputs
from gradmimic.trial import Given, pick_alignment
from gradmimic.weighting import Weighting

Batch = TypeVar("Batch")


class Said(NamedTuple):
    """What a pass says of a batch of b samples, and of c canaries."""

    losses: Tensor  # [b]
    canaries: CanaryLosses | None = None
    others: Mapping[str, Tensor] = {}  # by scorer [b + c], of the samples, then of the canaries
    tokens: TokenLosses | None = None  # [b, t], where the scores of tokens are wanted too


Losses = Callable[[nn.Module, Batch], Tensor | tuple[Tensor, CanaryLosses | None] | Said]


class Scores(NamedTuple):
    """What a batch came to at one checkpoint, by one scorer."""

    visit: "Visit"
    scorer: str
    columns: Tensor  # [3, b + c]: score, weight, loss; of the samples, then of the canaries
    canaries: CanaryLosses | None
    known: Tensor | None
    norm: float
    tokens: Tensor | None = None  # [b, t], 0 where masked; their mean is the sample's own score


class Weighing:
    """The softmax of one batch, whatever came before it.

    Args:
        temperature: τ, or ``"auto"``, a share of the spread in that batch alone.

    Raises:
        ParameterError: τ is not positive.
    """

    def __init__(self, temperature: float | Literal["auto"]) -> None:
        self._temperature = temperature
        self._fixed = Weighting("softmax", temperature)

    def __call__(self, scores: Tensor, known: Tensor | None) -> Tensor:
        """Return ``[b]`` weights, 0 where ``known`` is False."""
        if self._temperature != "auto":
            return self._fixed(scores, 0, known)
        return Weighting("softmax", "auto")(scores, 0, known)  # a spread without a past


_BY_SPREAD = Weighing("auto")  # other scores have other units


class Visit:
    """One checkpoint, ready to score.

    Args:
        name: for messages.
        epoch: its place among the checkpoints.
        model: θ, in eval mode.
        subset: the scored parameters.
        alignment: where v comes from.
        engine: what takes derivatives along v.

    Raises:
        DirectionError: v is zero or not finite.
    """

    def __init__(
        self,
        name: str,
        epoch: int,
        model: nn.Module,
        subset: Subset,
        alignment: Alignment,
        engine: Callable[[Subset, Direction], Engine],
    ) -> None:
        self.name, self.epoch = name, epoch
        self._model, self._subset, self._engine = model, subset, engine
        v = alignment.direction()
        assert v is not None  # noqa: S101  these need to learn nothing first
        self._v: Direction | TowardOutputs = v
        self.one_norm = isinstance(v, Direction)  # for all batches
        try:
            _ = v.norm
        except DirectionError as error:
            raise DirectionError(f"{name}, epoch {epoch} of the log: {error}") from error

    def score(self, batch: Any, ids: Any, losses: Losses[Any], weighing: Weighing) -> list[Scores]:
        """Score one batch; nothing is asked of a GPU.

        Returns:
            The mimic scores, then those of other scorers.
        """
        try:
            return self._scored(batch, ids, losses, weighing)
        except UnsupportedOperationError:  # engine auto has another one by now
            return self._scored(batch, ids, losses, weighing)

    def _scored(
        self, batch: Any, ids: Any, losses: Losses[Any], weighing: Weighing
    ) -> list[Scores]:
        v = self._v
        toward = OutputForward(self._subset, v, ids) if isinstance(v, TowardOutputs) else None
        single_pass = toward or self._engine(self._subset, v)  # type: ignore[arg-type]
        try:
            with single_pass:
                found: Any = losses(self._model, batch)
                several = isinstance(found, tuple) and not isinstance(found, CanaryLosses)
                values, canaries, others, tokens = Said(*found) if several else Said(found)
                check_shape(values)
                if len(values) != len(ids):
                    raise LossError(
                        f"Expected as many ids as losses, got {len(ids)} and {len(values)}."
                    )
            each = None if tokens is None else _each_token(single_pass, tokens, v.norm)
            if canaries is None:
                both, derivative = values, single_pass.derivative(values)
            else:
                both = torch.cat([values, canaries.losses])
                derivative = single_pass.derivative_beside(values, canaries.losses, canaries.rows)
        finally:
            single_pass.close()
        known = None if toward is None else toward.known
        by_scorer = {"mimic": (projection(derivative, v.norm), weighing)}
        by_scorer |= {name: (own.detach(), _BY_SPREAD) for name, own in others.items()}
        scored, b = [], len(values)
        for name, (scores, weigh) in by_scorer.items():
            weights = F.pad(weigh(scores[:b], known), (0, len(both) - b))  # canaries weigh nothing
            columns = torch.stack((scores, weights, both.detach())).float()
            own = each if name == "mimic" else None
            scored.append(Scores(self, name, columns, canaries, known, v.norm, own))
        return scored


def _each_token(single_pass: Engine | OutputForward, tokens: TokenLosses, norm: float) -> Tensor:
    """Return ``[b, t]``, m_{i,t} = −(d/dε ℓ_{i,t}(θ + ε v)) / ‖v‖."""
    if isinstance(single_pass, OutputForward):
        raise UsageError(
            "Tokens have scores toward a reference's weights only: with align='outputs', ask for "
            "those of samples alone."
        )
    return projection(single_pass.along(tokens.losses), norm).masked_fill(~tokens.counted, 0)


def begin(
    named: Mapping[str, nn.Module],
    reference: Given,
    params: Params,
    align: str,
    engine: str,
    batch: Any,
    ids: Any,
    losses: Losses[Any],
    weighing: Weighing,
    *,
    shown: Sequence[tuple[Any, Any]] = (),
) -> tuple[list[Visit], list[Scores]]:
    """Make every checkpoint ready, and score the first batch, which shows where the head is.

    Args:
        named: the checkpoints by name, in order.
        reference: as of ``gradmimic.scoring.score``, like the next ones.
        params: the scored parameters.
        align: an alignment, whose direction is taken once.
        engine: the engine's name.
        batch: the first batch.
        ids: ``[b]``, of its samples.
        losses: ``losses(model, batch)``.
        weighing: makes weights of scores.
        shown: batches that every process has the same, with their ids: an alignment learns of all
            of them, an engine is settled on the first.

    Returns:
        The checkpoints, and what the batch came to at each, by each scorer.

    Raises:
        DirectionError: the reference's weights equal those of a checkpoint.
        ParameterError, ReferenceMismatchError, AlignmentError, LossError: as ``score`` does.
    """
    if isinstance(reference, str | PathLike) and Path(reference).suffix == ".parquet":
        reference = Outputs.read(reference)
    elif align not in ("outputs", "transport") and not isinstance(reference, Outputs):
        reference = load_reference(reference)  # once for all
    model = next(iter(named.values()))
    guess = find_head(model) if params == "head" else None

    def scored(head: str | None) -> tuple[list[Visit], list[Scores]]:
        visits = []
        for epoch, (name, own) in enumerate(named.items()):
            subset = choose(own, params, head=head)
            alignment = pick_alignment(align, own, subset, reference)
            if align in ("rotation", "transport"):
                _learn(alignment, own, shown or [(batch, ids)], losses)
            visits.append(Visit(name, epoch, own, subset, alignment, pick_engine(engine)))
            if engine == "auto":
                for first, first_ids in shown[:1]:
                    visits[-1].score(first, first_ids, losses, weighing)
        scores = [visit.score(batch, ids, losses, weighing) for visit in visits]
        return visits, [own for each in scores for own in each]

    if guess is None:
        return scored(None)
    watch = LastUsed(model)
    try:
        found = scored(guess)
    except GradMimicError:
        if watch.name is None:  # not even run: look for the head before anything else
            losses(model, batch)
        if watch.name in (guess, None):
            raise
        return scored(watch.name)
    finally:
        watch.stop()
    return found if watch.name in (guess, None) else scored(watch.name)


def _learn(
    alignment: Alignment, model: nn.Module, shown: Sequence[tuple[Any, Any]], losses: Losses[Any]
) -> None:
    """Show an alignment all it will ever see: the weights stay, so v does."""
    if alignment.first <= 1:
        with alignment.watching():  # all batches as one
            for batch, _ in shown:
                losses(model, batch)
        alignment.observe(None)
        return
    passes = 0
    while passes < alignment.first:  # few batches are shown more than once
        for batch, ids in shown:
            with alignment.watching():
                losses(model, batch)
            alignment.observe(ids)
            passes += 1
