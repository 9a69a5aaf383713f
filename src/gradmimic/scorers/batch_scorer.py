"""Many scores from one pass: of every batch of a training, and perhaps its weights.

    with scores:
        z = model(x)                          # one forward pass for all scorers
    loss = scores.weigh(z, y, ids)            # Σ_i w_i ℓ_i by one of them, or the plain mean
    loss.backward()

All of them look at the last layer (``gradmimic.scorers.head_pass``).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradmimic.canaries import Canaries, CanaryLosses
from gradmimic.errors import LossError, ParameterError, UsageError
from gradmimic.log import ScoreLog
from gradmimic.measure import check_losses
from gradmimic.outputs import Outputs
from gradmimic.record import Ids, record
from gradmimic.reference import Reference, Source, load_reference
from gradmimic.scorers.context import Context, check_labels
from gradmimic.scorers.head_pass import HeadPass, SampleLoss, cross_entropy
from gradmimic.scorers.head_watch import HeadWatch
from gradmimic.scorers.names import SCORERS
from gradmimic.scorers.scorer import Scorer
from gradmimic.visit import Weighing
from gradmimic.weighting import Weighting, share_left
from gradmimic.wrapped import unwrapped, whole

_BY_SPREAD = Weighing("auto")  # what is logged of a scorer that does not weigh


class BatchScorer:
    """Score every batch of a training in several ways, and weigh it by one of them or by none.

    Args:
        model: the classifier being trained; its last layer is an ``nn.Linear`` whose output the
            loss takes.
        scorers: names of :data:`SCORERS`, or scorers of your own.
        weigh_by: a name, or a scorer; None trains on the plain mean.
        reference: a better model's weights, or anything :func:`load_reference` takes, for
            ``mimic``, ``mimic_cosine`` and ``mimic_adam``.
        outputs: what a reference says of each sample id, for ``reference_loss`` and ``rho``.
            Samples that it does not know have no such scores; where these weigh, they train with
            weight 1/b.
        trusted: (inputs, labels) of a few clean samples, for ``influence``: a second, small pass
            at every step, in eval mode.
        optimizer: the Adam or AdamW that trains the model, for ``mimic_adam``.
        loss: one loss per sample, ``(logits [n, K], labels [n]) -> [n]``, each of its own row.
        temperature: τ of the scorers that weigh by a softmax, as of :class:`GradMimic`.
        log: a :class:`ScoreLog` that receives every score, each under its scorer's name.

    Attributes:
        scores: ``[b]`` by scorer, of the last batch; higher is better.
        weights: ``[b]``, the last batch's weights; equal ones where nothing weighs.
        step: the number of batches so far; set it when a run resumes.

    Raises:
        ParameterError: a scorer is unknown, comes twice, weighs nothing, or lacks an argument.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> scores = BatchScorer(model, ["loss", "margin"], weigh_by="agra")
        >>> x, y = torch.randn(4, 2), torch.tensor([0, 1, 2, 0])
        >>> with scores:
        ...     z = model(x)
        >>> scores.weigh(z, y).backward()
        >>> sorted(scores.scores)
        ['agra', 'loss', 'margin']
    """

    def __init__(
        self,
        model: nn.Module,
        scorers: Sequence[str | Scorer],
        *,
        weigh_by: str | Scorer | None = None,
        reference: Reference | Source | None = None,
        outputs: Outputs | None = None,
        trusted: tuple[Any, Tensor] | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        loss: SampleLoss = cross_entropy,
        temperature: float | Literal["auto"] | Callable[[int], float] = 1.0,
        log: ScoreLog | None = None,
    ) -> None:
        self._scorers, self._weigh_by = _made(scorers, weigh_by)
        self._needs = {need for scorer in self._scorers for need in scorer.needs}
        given = {
            "reference": reference, "outputs": outputs, "trusted": trusted, "optimizer": optimizer,
        }  # fmt: skip
        for scorer in self._scorers:
            for need in scorer.needs:
                scorer.given(given[need], need)
        if isinstance(reference, nn.Module):
            reference = unwrapped(reference)
        loaded = None
        if reference is not None and "reference" in self._needs:
            loaded = load_reference(reference)
        self._watch = HeadWatch(model)
        self._context = Context(model, self._watch, loaded, outputs, trusted, optimizer, loss)
        self._loss, self._log = loss, log
        self._weighting = Weighting("softmax", temperature)
        self.scores: dict[str, Tensor] = {}
        self.weights: Tensor | None = None
        self.step = 0

    def __enter__(self) -> "BatchScorer":
        self._watch.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._watch.__exit__(*error)

    def weigh(
        self,
        logits: Tensor,
        labels: Tensor,
        ids: Ids | None = None,
        *,
        epoch: int | None = None,
        canaries: Canaries | CanaryLosses | None = None,
    ) -> Tensor:
        """Score the batch of the last ``with`` block, log it, and return the loss to step on.

        Σ_i w_i ℓ_i, or the mean of the losses where nothing weighs

        Args:
            logits: ``[b, K]``, what the last layer gave in the block, with its graph.
            labels: ``[b]`` int64, 0 … K−1, as given.
            ids: ``[b]`` sample ids, integers or strings; needed for a log and for outputs.
            epoch: the number of the pass over the data, for the log.
            canaries: what draws them, or what was drawn from these logits: scored and logged, but
                part neither of the loss nor of the weights, unless drawn to be trained on.

        Returns:
            A scalar.

        Raises:
            DataError: labels do not fit the logits.
            LossError: not one finite loss per sample, or scores that are not finite.
            UsageError: no ``with`` block came before, logits of another pass, or no ids.
            LogError: the log refuses these rows.
        """
        found, seen, rows, drawn = self._score(logits, labels, ids, canaries)
        m = seen.samples  # rows that train
        z = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = self._loss(z if m == len(labels) else z[rows], seen.labels[:m])
        weights = {name: self._weights(name, own[:m], seen) for name, own in found.items()}
        self._record(ids, found, weights, seen, drawn, epoch)
        self.scores = {name: own[: len(labels)] for name, own in found.items()}
        self.step += 1
        if self._weigh_by is None:
            self.weights = losses.detach().new_full((len(labels),), 1 / max(m, 1))
            return losses.mean()
        own = weights[self._weigh_by.name]
        self.weights = own[: len(labels)]
        return (own * losses).sum()

    def score(
        self,
        logits: Tensor,
        labels: Tensor,
        ids: Ids | None = None,
        canaries: CanaryLosses | None = None,
    ) -> dict[str, Tensor]:
        """Score the batch of the last ``with`` block alone: nothing is weighed or logged.

        Args:
            logits: as of :meth:`weigh`, like the next ones.
            labels: ``[b]``.
            ids: ``[b]``.
            canaries: c drawn from these logits.

        Returns:
            ``[b + c]`` by scorer, of the samples, then of the canaries; higher is better.

        Raises:
            DataError, LossError, UsageError: as :meth:`weigh` does.
        """
        return self._score(logits, labels, ids, canaries)[0]

    def _score(
        self, logits: Tensor, labels: Tensor, ids: Any, canaries: Canaries | CanaryLosses | None
    ) -> tuple[dict[str, Tensor], HeadPass, Tensor, CanaryLosses | None]:
        """Return the scores, the pass, which sample each row of it is, and the canaries."""
        features, output = self._watch.taken()
        check_labels(labels, logits)
        _check_pass(logits, output)
        if isinstance(canaries, Canaries):
            names = range(len(labels)) if ids is None else ids
            canaries = canaries.labels(logits, labels, names)
        rows, all_labels = _with_canaries(labels, canaries)
        trained = canaries is not None and canaries.trained
        m = len(rows) if trained else len(labels)
        seen = self._seen(features, logits, ids, rows, all_labels, m)
        found = {scorer.name: scorer(seen).detach() for scorer in self._scorers}
        return found, seen, rows, canaries

    def _seen(
        self, features: Tensor, logits: Tensor, ids: Any, rows: Tensor, labels: Tensor, m: int
    ) -> HeadPass:
        """Return the pass, canaries included, with what these scorers ask for."""
        layer, context = self._watch.layer, self._context
        weight, bias = whole(layer.weight), None if layer.bias is None else whole(layer.bias)
        own = rows if m < len(rows) else None
        seen = HeadPass.of(features[rows], logits[rows], labels, weight, bias, self._loss, m, own)
        check_losses(seen.losses)
        more: dict[str, Any] = {}
        if "outputs" in self._needs:
            losses, known = context.reference_losses(ids, labels, rows, logits.shape[1])
            more |= {"reference_losses": losses, "known": None if known.all() else known}
        if "reference" in self._needs:
            more["direction"] = context.direction()
        if "trusted" in self._needs:
            more["trusted"] = context.trusted_gradient()
        if "optimizer" in self._needs:
            more["adam"] = context.adam()
        return replace(seen, **more)

    def _weights(self, name: str, scores: Tensor, seen: HeadPass) -> Tensor:
        """Return ``[m]``: those to train by, or for the others a softmax by their spread."""
        known = self._known(name, seen, len(scores))
        if self._weigh_by is None or name != self._weigh_by.name:
            return _BY_SPREAD(scores, known)
        softmax = lambda own: self._weighting(own, self.step, known)
        weights = self._weigh_by.weights(scores, seen, softmax)
        return weights if known is None else share_left(weights, known)

    def _known(self, name: str, seen: HeadPass, rows: int) -> Tensor | None:
        """Return ``[rows]``, which have a score by this scorer; None stands for all."""
        (scorer,) = (own for own in self._scorers if own.name == name)
        return seen.known[:rows] if seen.known is not None and "outputs" in scorer.needs else None

    def _record(
        self,
        ids: Ids | None,
        found: dict[str, Tensor],
        weights: dict[str, Tensor],
        seen: HeadPass,
        canaries: CanaryLosses | None,
        epoch: int | None,
    ) -> None:
        if not found:
            return
        n = len(seen.labels)
        columns = []
        for name, own in found.items():
            padded = F.pad(weights[name], (0, n - len(weights[name])))  # canaries weigh nothing
            columns.append(torch.stack((own, padded.to(own), seen.losses.to(own))))
        moved = torch.stack(columns).float().cpu()  # [scorers, 3, n], one transfer for all
        for name, rows in zip(found, moved, strict=True):
            if not rows[0].isfinite().all():
                raise LossError(
                    f"The scores of {name!r} are NaN or infinite. Check the weights and features "
                    "of the model, and of the reference where there is one."
                )
        b = n - (0 if canaries is None else len(canaries.ids))
        for name, rows in zip(found, moved, strict=True):
            known = self._known(name, seen, b)
            direction = seen.direction if name == "mimic" else None
            record(
                self._log, ids, rows.numpy(), None if known is None else known.cpu(), canaries,
                step=self.step, epoch=epoch, scorer=name,
                direction_norm=None if direction is None else direction.norm,
            )  # fmt: skip


def _made(
    scorers: Sequence[str | Scorer], weigh_by: str | Scorer | None
) -> tuple[list[Scorer], Scorer | None]:
    """Return the scorers, the weighing one among them."""
    if isinstance(scorers, str):
        raise ParameterError(f"Expected a list of scorers, got the text {scorers!r}.")
    made = [_one(scorer) for scorer in scorers]
    names = [scorer.name for scorer in made]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"The scorer {twice[0]!r} comes twice; the log tells them by name.")
    if weigh_by is None:
        return made, None
    weighing = _one(weigh_by)
    if weighing.name in names and isinstance(weigh_by, str):
        weighing = made[names.index(weighing.name)]
    if not weighing.online:
        raise ParameterError(weighing.offline())
    return [*(own for own in made if own.name != weighing.name), weighing], weighing


def _one(scorer: str | Scorer) -> Scorer:
    if isinstance(scorer, Scorer):
        return scorer
    if scorer not in SCORERS:
        raise ParameterError(f"There is no scorer {scorer!r}; expected {', '.join(SCORERS)}.")
    return SCORERS[scorer]()


def _check_pass(logits: Tensor, output: Tensor) -> None:
    """Raise unless the logits are what the last layer gave."""
    if logits is output:
        return
    same = logits.shape == output.shape and torch.equal(
        logits.detach(), output.detach().to(logits.dtype)
    )
    if not same:
        raise UsageError(
            f"These logits {list(logits.shape)} are not what the last layer gave in the `with` "
            f"block, {list(output.shape)}. Expected z = model(x) of this pass as it is, with "
            "nothing after the last layer."
        )


def _with_canaries(labels: Tensor, canaries: CanaryLosses | None) -> tuple[Tensor, Tensor]:
    """Return which row of the batch each sample and canary is, ``[n]``, and its label ``[n]``."""
    rows = torch.arange(len(labels), device=labels.device)
    if canaries is None:
        return rows, labels
    if canaries.rows is None or canaries.labels is None:
        raise UsageError("Expected canaries with other labels, as Canaries.labels draws them.")
    own = torch.tensor(canaries.rows, dtype=rows.dtype, device=rows.device)
    return torch.cat([rows, own]), torch.cat([labels, canaries.labels.to(labels)])
