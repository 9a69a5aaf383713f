"""Stage 1: re-weight every batch by its mimic scores, in any training loop.

    with mimic:                          # the model reads dual numbers at its scored parameters
        losses = loss(model(x), y)       # [b], unreduced
    loss = mimic.weigh(losses, ids)      # Σ_i w_i ℓ_i  with w = softmax(m / τ)
    loss.backward()

The loop stays the user's own.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from gradmimic.align import Alignment
from gradmimic.canaries import CanaryLosses
from gradmimic.direction import Choice, Direction, Params, choose
from gradmimic.engines import Engine, pick_engine
from gradmimic.engines.ghost import Backward
from gradmimic.engines.waiting import Waiting
from gradmimic.errors import LossError, ParameterError, UsageError
from gradmimic.guessed_head import GuessedHead
from gradmimic.joining import Joining
from gradmimic.learned import learned, put_back
from gradmimic.learning import Learning
from gradmimic.log import ScoreLog
from gradmimic.measure import check_losses, check_shape, check_shares
from gradmimic.outputs import Outputs
from gradmimic.overtaken import lower
from gradmimic.ranks import Ranks
from gradmimic.record import Ids, record
from gradmimic.reference import load_reference
from gradmimic.score import projection
from gradmimic.scored_only import reweight_scored
from gradmimic.toward_outputs import OutputPass, TowardOutputs
from gradmimic.trial import Given, Trial, pick_alignment
from gradmimic.weighting import Weighting
from gradmimic.whole_batch import whole_batch
from gradmimic.wrapped import inside_ddp, keep_out_of_graphs, past_ddp, unheard_by_ddp, unwrapped

_logger = logging.getLogger("gradmimic")


class GradMimic(Joining):
    """Re-weight batches by how far each sample moves the weights toward a reference's.

    m_i = ⟨−∇_{θ_S} ℓ_i, v⟩ / ‖v‖,  w = softmax(m / τ),  loss = Σ_i w_i ℓ_i

    The same forward pass that trains also scores. The model is neither wrapped nor replaced;
    outside the ``with`` block (evaluation, checkpoints) it never notices. Works with gradient
    accumulation (each micro-batch is weighed by itself; divide its loss as ever), autocast,
    gradient checkpointing of the layers below the scored ones, DDP, FSDP2 and compiled models;
    build it after whatever wraps the model (``docs/launchers.md``).

    Args:
        model: the model being trained.
        reference: a better model's weights, or anything :func:`load_reference` takes; to transport,
            a module that gives outputs, or :class:`Outputs`, a table of them.
        align: how the reference is brought near the current weights. ``"none"``: it started from
            the same initial weights, or shares a frozen trunk. ``"rotation"``: projections of a
            contrastive model, from elsewhere. ``"transport"``: any reference that gives outputs,
            of any architecture, as the head that it would have here. ``"outputs"``: likewise, but
            toward its outputs themselves, whatever the features. ``"shift"``: as none, without
            what a softmax never sees. ``"auto"``: what the canaries prefer in the first steps,
            which train on the plain mean.
        params: the scored parameters: ``"head"`` (the last layer), ``"all"``, glob patterns, or a
            callable ``(name, parameter) -> bool``. A head tied to the embedding is scored as a head
            only.
        temperature: τ > 0 in the scores' unit, or a schedule ``step -> τ``; ``inf`` trains on the
            plain mean. ``"auto"``: 0.7 of the scores' spread in the last batches, which suits
            any scale.
        weighting: ``"softmax"``, the paper's; or ``"posterior"``, w in proportion to how likely a
            sample is clean, as the canaries tell: steadier with a weak reference or little noise.
            It needs canaries and no temperature.
        engine: ``"auto"``; ``"forward"``, for the head and for all that ``"ghost"`` refuses;
            ``"ghost"``, for many layers; ``"secant"``, for anything that runs, not exact; or
            ``"oracle"`` (slow, for doubt).
        log: a :class:`ScoreLog` that receives every score.
        reweight: ``"all"``, the paper's step: all parameters follow the weights; ``"scored"``: the
            scored ones alone do, the rest follow the plain mean.
        warmup: the number of first steps that score and log but train on the plain mean.
        batch: ``"global"``, one softmax over the batches of all ranks where ``torch.distributed``
            is initialised, as one process would take it; ``"local"``, each rank by itself.
        backward: with engine ``"ghost"``, ``"once"`` forms each weight gradient once, after the
            weights are known, and keeps the gradients of the layers' outputs until then;
            ``"twice"`` makes a second backward pass instead; ``"auto"`` decides by the memory that
            is free.

    Attributes:
        aligned: the alignment in use; ``"auto"`` until one is chosen.
        overtaken: the step from which on the scores know nothing, as canaries or :meth:`compare`
            told: the weights fade to equal ones, and the log tells stage 2. None until then.
        missing: visits so far of samples that a table of outputs did not know. They train with
            weight 1/b, and are not logged.
        step: the number of batches weighed so far; set it when a run resumes.
        scores: ``[b]``, the last batch's scores; higher is better.
        weights: ``[b]``, their softmax, summing to 1 over all ranks.
        batch_size: how many samples of all ranks share these weights; None before there are some.

    Raises:
        ParameterError, ReferenceMismatchError, AlignmentError: model, scored parameters and
            reference do not fit.

    Source: arXiv 2501.06708, section 3.2; alignment and fading are ours.

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
        reference: Given,
        *,
        params: Params = "head",
        align: Literal["none", "shift", "rotation", "transport", "outputs", "auto"] = "none",
        temperature: float | Literal["auto"] | Callable[[int], float] = 1.0,
        weighting: Literal["softmax", "posterior"] = "softmax",
        engine: str = "auto",
        log: ScoreLog | None = None,
        reweight: Literal["all", "scored"] = "all",
        warmup: int = 0,
        batch: Literal["global", "local"] = "global",
        backward: Backward = "auto",
    ) -> None:
        super().__init__(self._without_batch, self._no_joining)
        if backward not in ("auto", "once", "twice"):
            raise ParameterError(
                f"backward={backward!r} is unknown; expected 'auto', 'once' or 'twice'."
            )
        if reweight not in ("all", "scored"):
            raise ParameterError(f"reweight={reweight!r} is unknown; expected 'all' or 'scored'.")
        if isinstance(reference, str | PathLike):
            table = Path(reference).suffix == ".parquet"
            reference = Outputs.read(reference) if table else load_reference(reference)
        elif isinstance(reference, nn.Module):
            reference = unwrapped(reference)
        self._called, model = model, unwrapped(model)
        self.step = self.missing = 0
        self._epoch: int | None = None
        self.scores: Tensor | None = None
        self.weights: Tensor | None = None
        self.batch_size: int | None = None
        self._model, self._reference = model, reference
        self._align: str = align
        self._alignment: Alignment
        self._engine = pick_engine(engine, backward if reweight == "all" else "twice")
        self._log, self._learning = log, Learning(Weighting(weighting, temperature), log)
        self._reweight, self._warmup = reweight, warmup
        self._head = GuessedHead(model, params)
        self._ranks = Ranks(batch)
        self._score_on(params)
        self._pass: Engine | None = None
        self._direction: Direction | TowardOutputs | None = None
        self._watching: ExitStack = ExitStack()
        aligned = self._learning.resume([] if log is None else log.events)
        if aligned is not None and isinstance(self._alignment, Trial):
            self._align = aligned
            self._alignment = self._picked(aligned)

    def _score_on(self, params: Params, head: str | None = None) -> None:
        self._subset = choose(self._model, params, head=head, called=inside_ddp(self._called))
        if self._subset.sharded and self._reweight == "scored":
            raise ParameterError(
                "reweight='scored' needs the scored parameters in one piece, but FSDP2 shards "
                "them. Use reweight='all', or leave the head out of fully_shard."
            )
        if isinstance(params, Choice) and self._reweight == "scored":
            raise ParameterError(
                "reweight='scored' steps on the scored parameters alone, but these params score "
                "weights that do not train themselves. Use reweight='all'."
            )
        if params != "all":
            keep_out_of_graphs(self._subset.modules)
        self._alignment = self._picked(self._align)

    def _picked(self, align: str) -> Alignment:
        return pick_alignment(align, self._model, self._subset, self._reference, self._ranks)

    @property
    def aligned(self) -> str:
        """The alignment in use."""
        return self._alignment.name

    @property
    def overtaken(self) -> int | None:
        """The step from which on the scores know nothing."""
        return self._learning.overtaken.since

    def __enter__(self) -> "GradMimic":
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise UsageError(
                "A CUDA graph is being captured, and weigh reads every batch's scores on the CPU. "
                "Capture the trunk alone, or leave graphs to torch.compile(mode='reduce-overhead')."
            )
        self._ranks.check()
        self._begin()
        self._pass, self._direction = None, self._alignment.direction()
        v = self._direction
        if v is None:
            started: Engine = Waiting()
        elif isinstance(v, TowardOutputs):
            started = OutputPass(self._subset, v)
        else:
            started = self._engine(self._subset, v)
        self._pass = started.__enter__()
        self._head.watch()
        self._watching = ExitStack()
        self._watching.enter_context(self._subset.read_again())
        self._watching.enter_context(self._alignment.watching())
        self._watching.enter_context(past_ddp(self._called))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._head.stop()
        self._watching.close()
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
        shares: Tensor | None = None,
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
            shares: ``[b]``, where the plain loss is no mean of samples: what each one counts in it,
                say its tokens over those of the whole step. The loss is then Σ_i b w_i s_i ℓ_i with
                b over all ranks, which for equal weights is Σ_i s_i ℓ_i.

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
        if current is None:
            raise UsageError(
                "weigh has no forward pass to weigh. Expected `with mimic:` around the model's "
                "forward pass, then one call of weigh."
            )
        self._epoch = epoch  # for steps of other ranks after this one's last batch
        self._pass = self._direction = None  # v, as large as θ, is not kept for the backward pass
        try:
            check_shape(losses)
            if shares is not None:
                trained = canaries is not None and canaries.trained
                check_shares(shares, losses, trained_canaries=trained)
            elsewhere = self._head.elsewhere()
            if elsewhere is not None:
                self._score_on("head", head=elsewhere)
            if elsewhere is not None or v is None:  # or too little is known of the reference
                if elsewhere is None:
                    self._observe(ids)
                self.step += 1
                return whole_batch(self._ranks, None, losses, len(losses)).mean(losses, shares)
            self._learning.check(self._alignment, canaries)
            b = len(losses)
            scored = losses if canaries is None else torch.cat([losses, canaries.losses])
            known = self._observe(ids)
            with unheard_by_ddp(losses):
                if canaries is None:
                    derivative = current.derivative(losses)
                else:
                    derivative = current.derivative_beside(losses, canaries.losses, canaries.rows)
            scores = projection(derivative, v.norm)
            if canaries is not None and canaries.trained:
                losses = scored
            whole = whole_batch(self._ranks, scores, scored, b, known, canaries, ids)
            if not whole.scored:  # some rank has just found its head
                self.step += 1
                return whole.mean(losses, shares)
            weights = self._learning.weights(whole, self.step)
            # one transfer for all of them: on a GPU each one waits for the device
            columns = scores, whole.weights_here(weights).to(scores), scored.detach()  # [b + c]
            rows = torch.stack(columns).float().cpu().numpy()
            if not np.isfinite(rows).all():
                check_losses(scored)
                raise LossError("The scores are NaN or infinite: the losses' derivatives overflow.")
            on_trial = isinstance(self._alignment, Trial)
            training = self.step >= self._warmup and not on_trial
            if not on_trial:
                facts: dict[str, Any] = {"counted": whole.counted, "epoch": epoch}
                record(
                    self._log, ids, rows, known, canaries,
                    step=self.step, direction_norm=v.norm, **facts,
                )  # fmt: skip
            seen = rows[0] if self._ranks.size == 1 else whole.scores.float().numpy()
            self._alignment = self._learning.learn(whole, seen, self.step, epoch, self._alignment)
            weights = self._learning.stepped(whole, weights, self.step)
            here = whole.weights_here(weights).to(scores)
            self.scores, self.weights, self.batch_size = scores[:b], here[:b], whole.weighed
            self.step += 1
            if not training:
                return whole.mean(losses, shares)
            factors = whole.factors(here[: len(losses)], shares)
            if self._reweight == "all":
                return current.weighted(losses, factors)
            mean = whole.mean(losses, shares)
            with unheard_by_ddp(losses):
                return reweight_scored(losses, factors, mean, self._subset, current.stand_ins)
        finally:
            current.close()

    def compare(self, losses: Tensor, reference_losses: Tensor) -> bool:
        """Tell whether the model has overtaken its reference on samples that can be trusted.

        mean(ℓ_ref − ℓ) > 1.96 standard errors of that mean; then the weights start to fade. Where
        ranks share a batch, every rank calls this, with samples of its own.

        Args:
            losses: ``[n]``, the model's, on samples that neither was trained on.
            reference_losses: ``[n]``, the reference's on the same samples.

        Returns:
            Whether it has, now or before.

        Raises:
            LossError: not one loss per sample, or not equally many.

        Example:
            >>> model, better = nn.Linear(1, 2), nn.Linear(1, 2)
            >>> GradMimic(model, better).compare(torch.tensor([0.1, 0.2]), torch.tensor([1.1, 1.3]))
            True
        """
        behind = lower(losses, reference_losses)
        if self._ranks.size > 1:
            pairs = self._ranks.gather(torch.stack([losses, reference_losses]))
            behind = lower(*torch.cat(pairs, 1))
        if behind and self._learning.overtaken.tell(self.step):
            self._learning.fade(self.step, "its loss on trusted samples is the lower one")
        return self.overtaken is not None

    def state_dict(self) -> dict[str, Any]:
        """Return what was learned so far, to go on exactly from here with the model's weights.

        Step, temperature, posterior, fading, and how a reference was turned or transported; what
        ``"auto"`` and ``"outputs"`` learn is learned anew in their first steps.

        Example:
            >>> model, better = nn.Linear(1, 2), nn.Linear(1, 2)
            >>> GradMimic(model, better).state_dict()["step"]
            0
        """
        alignment = learned(self._alignment) if hasattr(self._alignment, "LEARNED") else {}
        own = {"step": self.step, "missing": self.missing, "alignment": alignment}
        return {**own, "learning": learned(self._learning), "head": learned(self._head)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned, with the same arguments as before.

        Args:
            state: that, or what ``torch.load(…, weights_only=True)`` made of it.
        """
        self.step, self.missing = state["step"], state["missing"]
        device = next(iter(self._subset.parameters.values())).device
        put_back(self._head, state.get("head", {}), device)
        if (head := self._head.settle()) is not None:
            self._score_on("head", head=head)
        put_back(self._learning, state["learning"], device)
        put_back(self._alignment, state["alignment"], device)

    def _without_batch(self) -> None:
        """Learn what the other ranks' batch tells, on a rank that has run out of batches."""
        if self._ranks.size == 1:
            return
        none = torch.zeros(0) if self.scores is None else self.scores.new_zeros(0)
        whole = whole_batch(self._ranks, none, none, 0)
        if whole.scored:
            self._learning.weights(whole, self.step)  # an automatic temperature learns by it
            scores = whole.scores.float().numpy()
            self._alignment = self._learning.learn(
                whole, scores, self.step, self._epoch, self._alignment
            )
        self.step += 1

    def _no_joining(self) -> str | None:
        if self._ranks.size == 1 or self.aligned in ("none", "shift"):
            return None
        return (
            f"align={self.aligned!r} learns from every rank at every step. Give all ranks equally "
            "many batches (drop_last=True), or use batch='local'."
        )

    def _observe(self, ids: Ids | None) -> Tensor | None:
        """Let the alignment learn from this pass; return which samples it knows, ``[b]``."""
        known = self._alignment.observe(ids)
        if known is not None:
            if self.missing == 0:
                _logger.warning(
                    "gradmimic: the reference's outputs lack samples of this batch; such samples "
                    "train with weight 1/b and are not logged. `missing` counts them."
                )
            self.missing += int((~known).sum())
        return known
