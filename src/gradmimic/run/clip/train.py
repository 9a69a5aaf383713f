"""One training on pairs: AdamW on shuffled batches, plain or re-weighted by an open ``GradMimic``.

plain and re-weighted see the same batches in the same order; the loss is the model's own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate, islice
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from gradmimic.canaries import CanaryLosses
from gradmimic.data.pairs.batch import PairBatch
from gradmimic.measure import check_losses
from gradmimic.pair_model import PairModel
from gradmimic.reweight import GradMimic

_MOST_SCALE = math.log(100)  # as CLIP's: beyond it trainings are unstable
_SCALES = ("logit_scale", "log_scale")


class Round(NamedTuple):
    """A stretch of an epoch after which a training can be taken up again."""

    number: int
    batches: Iterable[PairBatch]


class Pool(Protocol):
    """Pairs to train on."""

    def __len__(self) -> int: ...

    def steps(self, epoch: int) -> int:
        """Return how many batches an epoch has."""

    def rounds(self, epoch: int) -> Iterator[Round]:
        """Yield all pairs once, in an order that follows from the seed and the epoch alone."""


Drawing: TypeAlias = Callable[
    [PairModel, nn.Module, PairBatch, int], tuple[Tensor, CanaryLosses | None]
]
"""``(pair, model, batch, epoch)`` to the losses ``[b]`` of a batch, and those of its canaries."""


def no_canaries(
    pair: PairModel, model: nn.Module, batch: PairBatch, _epoch: int
) -> tuple[Tensor, CanaryLosses | None]:
    """Return the losses of a batch alone."""
    return pair.losses(pair.embed(model, batch)), None


@dataclass
class Curve:
    """What one training came to, a value for each epoch."""

    loss: list[float] = field(default_factory=list)  # mean of the unweighted training losses
    measured: list[dict[str, Any]] = field(default_factory=list)  # on the test sets


@dataclass
class Position:
    """Where a training stands.

    Args:
        epoch: the epoch it is in.
        round: the round of that epoch that comes next.
        step: batches so far.
        total: the sum of the losses since the last measurement.
        seen: how many there were.
    """

    epoch: int = 0
    round: int = 0
    step: int = 0
    total: float = 0.0
    seen: int = 0


@dataclass(eq=False)
class Training:
    """A training that can be left and taken up again.

    Args:
        pair: how the model is fed and what its loss is.
        model: its module, trained in place.
        optimizer: of its weights.
        curve: what it has come to.
        at: where it stands.
    """

    pair: PairModel
    model: nn.Module
    optimizer: torch.optim.Optimizer
    curve: Curve = field(default_factory=Curve)
    at: Position = field(default_factory=Position)


def start(pair: PairModel, *, lr: float, weight_decay: float) -> Training:
    """Begin a training of a model as it is.

    Args:
        pair: the model; parameters that need no gradient stay as they are.
        lr: AdamW's learning rate.
        weight_decay: of matrices and kernels; norms, biases and the temperature have none.
    """
    trained = [p for p in pair.model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return Training(pair, pair.model, torch.optim.AdamW([g for g in groups if g["params"]], lr=lr))


def train(
    training: Training,
    data: Pool,
    *,
    ends: Sequence[int],
    measure: Callable[[nn.Module], dict[str, Any]] = lambda _model: {},
    mimic: GradMimic | None = None,
    canaries: Drawing = no_canaries,
    on_step: Callable[[], object] = lambda: None,
    on_round: Callable[[], object] = lambda: None,
) -> Curve:
    """Train from where a training stands to its end.

    Args:
        training: changed in place.
        data: what it learns from, again and again until all steps are taken.
        ends: the steps at which epochs end, ascending: the model is measured there, and after the
            last one the training is done.
        measure: asked of the model.
        mimic: re-weights every batch, where given.
        canaries: how the mimic gets some from every batch.
        on_step: called after every step.
        on_round: called after every round, when the training can be saved.

    Returns:
        The training's curve.

    Raises:
        LossError: a loss is NaN or infinite.
    """
    at, curve = training.at, training.curve
    device = next(training.model.parameters()).device
    scales = [
        parameter
        for name, parameter in training.model.named_parameters()
        if name.rpartition(".")[2] in _SCALES and training.pair.loss == "clip"
    ]
    while at.step < ends[-1]:
        for number, batches in data.rounds(at.epoch):
            if number < at.round:
                continue
            for batch in batches:
                losses = _step(training, on_device(batch, device), mimic, canaries, at.epoch)
                _clamp(scales)
                at.step, at.seen = at.step + 1, at.seen + len(batch)
                at.total += float(losses.detach().sum())
                if at.step in ends:
                    curve.loss.append(at.total / at.seen)
                    curve.measured.append(measure(training.model))
                    at.total, at.seen = 0.0, 0
                on_step()
                if at.step == ends[-1]:
                    return curve
            at.round = number + 1
            on_round()
        at.epoch, at.round = at.epoch + 1, 0
    return curve


@torch.no_grad()
def settle(training: Training, data: Pool, mimic: GradMimic, passes: int) -> None:
    """Let an alignment learn from the first batches before anything is trained or scored.

    Args:
        training: at its start; its weights stay as they are.
        data: what it will learn from.
        mimic: at its start.
        passes: batches that the alignment needs.
    """
    pair, model = training.pair, training.model.eval()
    device = next(model.parameters()).device
    left = passes
    while left:
        before = left
        for batch in islice((own for _, some in data.rounds(0) for own in some), left):
            with mimic:
                losses = pair.losses(pair.embed(model, on_device(batch, device)))
            mimic.weigh(losses, batch.ids)
            left -= 1
        if left == before:
            return  # there is no batch
    mimic.step = 0


def epoch_ends(data: Pool, epochs: int) -> list[int]:
    """Return the steps at which the epochs of a pool end."""
    return list(accumulate(data.steps(epoch) for epoch in range(epochs)))


def on_device(batch: PairBatch, device: torch.device) -> PairBatch:
    """Copy what the model sees to where it is."""
    tokens = {name: own.to(device, non_blocking=True) for name, own in batch.tokens.items()}
    return replace(batch, images=batch.images.to(device, non_blocking=True), tokens=tokens)


def _step(
    training: Training,
    batch: PairBatch,
    mimic: GradMimic | None,
    canaries: Drawing,
    epoch: int,
) -> Tensor:
    """Take one step; return the losses ``[b]``."""
    pair, model = training.pair, training.model
    train_mode(model)
    if mimic is None:
        losses = pair.losses(pair.embed(model, batch))  # [b]
        loss = check_losses(losses).mean()
    else:
        with mimic:
            losses, drawn = canaries(pair, model, batch, epoch)
        loss = mimic.weigh(losses, batch.ids, epoch=epoch, canaries=drawn)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return losses


def train_mode(model: nn.Module) -> None:
    """Switch a model to training, but for modules of which nothing is trained."""
    model.train()
    for module in model.modules():
        own = list(module.parameters())
        if own and not any(p.requires_grad for p in own):
            module.eval()


@torch.no_grad()
def _clamp(scales: list[nn.Parameter]) -> None:
    for scale in scales:
        scale.clamp_(max=_MOST_SCALE)
