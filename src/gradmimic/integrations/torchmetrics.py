"""What the weights of many batches come to, as a TorchMetrics metric: over an epoch and all ranks.

The numbers are those of ``weighed``. Needs the extra ``lightning``.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradmimic.errors import DataError
from gradmimic.extras import import_extra
from gradmimic.integrations.weighed import named, sums

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

    sums: Tensor  # [5]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("sums", torch.zeros(5), dist_reduce_fx="sum")

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
        self.sums += sums(scores, weights, len(scores) if batch_size is None else batch_size)

    def compute(self) -> dict[str, Tensor]:
        """Return the three numbers by name; NaN where there was no batch."""
        return named(self.sums)
