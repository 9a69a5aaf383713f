"""What the weights of many batches come to, as a TorchMetrics metric: over an epoch and all ranks.

mimic/score                   mean of m_i
mimic/kept                    share of samples with w_i > 1/b, the votes to keep
mimic/effective_batch_size    Σ w / Σ w²: as many samples as carry a batch's weight

The weights of a batch sum to 1, so Σ w counts batches and Σ w² averages theirs, also where each
rank holds a part of every batch. Equal weights give b, a single sample that has them all gives 1.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradmimic.errors import DataError
from gradmimic.extras import import_extra

if TYPE_CHECKING:
    from torchmetrics import Metric
else:
    Metric = import_extra("torchmetrics", "lightning").Metric


class MimicSummary(Metric):
    """Mean score, kept share and effective batch size of the batches since the last reset.

    Args:
        options: of ``torchmetrics.Metric``.

    Example:
        >>> summary = MimicSummary()
        >>> summary.update(torch.tensor([2.0, 1.0, 0.0]), torch.tensor([0.5, 0.5, 0.0]))
        >>> {name: round(value.item(), 2) for name, value in summary.compute().items()}
        {'mimic/score': 1.0, 'mimic/kept': 0.67, 'mimic/effective_batch_size': 2.0}
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    scores: Tensor
    samples: Tensor
    kept: Tensor
    weights: Tensor
    squares: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("scores", "weights", "squares"):
            self.add_state(name, torch.tensor(0.0), dist_reduce_fx="sum")
        for name in ("samples", "kept"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, weights: Tensor, batch_size: int | None = None) -> None:
        """Take up one batch, or this rank's part of it.

        Args:
            scores: ``[b]``, ``GradMimic.scores``.
            weights: ``[b]``, ``GradMimic.weights``.
            batch_size: ``GradMimic.batch_size``, samples of all ranks; None means b.

        Raises:
            DataError: there are more or fewer weights than scores.
        """
        if scores.shape != weights.shape or scores.ndim != 1:
            raise DataError(
                f"expected scores [b] and weights [b], got {list(scores.shape)} and "
                f"{list(weights.shape)}."
            )
        self.scores += scores.sum()
        self.samples += len(scores)
        self.kept += (weights * (len(scores) if batch_size is None else batch_size) > 1).sum()
        self.weights += weights.sum()
        self.squares += weights.square().sum()

    def compute(self) -> dict[str, Tensor]:
        """Return the three numbers by name; NaN where there was no batch."""
        return {
            "mimic/score": self.scores / self.samples,
            "mimic/kept": self.kept / self.samples,
            "mimic/effective_batch_size": self.weights / self.squares,
        }
