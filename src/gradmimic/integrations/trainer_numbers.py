"""What a Trainer's own log says of the weights: mean score, kept share, effective batch size.

    score                 (1/n) Σ m_i                over the samples since the last entry
    kept                  (1/n) Σ [w_i b ≥ 1]        1 where all weights are equal
    effective_batch_size  Σ w_i / Σ w_i²             b where all weights are equal, least 1

Σ w_i is 1 a batch, so the last one is the harmonic mean over batches of 1/Σ_i w_i². Sums of ranks
add up; they are brought together when an entry is due, and no sooner.

Needs the extra ``trainer``.
"""

import torch
from torch import Tensor

from gradmimic.curate.votes import ROUNDING
from gradmimic.extras import import_extra

_PREFIX = "mimic/"


class Numbers:
    """The sums since the last entry of the log, kept on the scores' device.

    Example:
        >>> numbers = Numbers()
        >>> numbers.see(torch.tensor([0.5, -0.5]), torch.tensor([0.75, 0.25]), 2)
        >>> numbers.read()
        {'mimic/score': 0.0, 'mimic/kept': 0.5, 'mimic/effective_batch_size': 1.6}
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # [5]: m, w b ≥ 1, w, w², samples
        self._seen: Tensor | None = None

    def see(self, scores: Tensor | None, weights: Tensor | None, batch_size: int | None) -> None:
        """Add what was weighed last; nothing where that was seen before, or there is none.

        Args:
            scores: ``[b]`` of this rank.
            weights: ``[b]``, their softmax over all ranks.
            batch_size: of all ranks, the b of 1/b.
        """
        if scores is None or weights is None or batch_size is None or scores is self._seen:
            return
        self._seen = scores
        m, w = scores.float(), weights.float()
        kept = (w * batch_size >= 1 - ROUNDING).float()
        rows = torch.stack([m, kept, w, w.square(), torch.ones_like(w)])  # [5, b]
        sums = rows.sum(1)
        self._sums = sums if self._sums is None else self._sums + sums

    def read(self) -> dict[str, float]:
        """Return the numbers by name, and begin anew; every rank must call it where one does.

        Returns:
            Score in loss per unit of weight distance, higher is better; kept in [0, 1]; effective
            batch size in [1, b]. Empty where nothing was weighed since the last time.
        """
        if self._sums is None:
            return {}
        accelerate = import_extra("accelerate", "trainer")
        sums = accelerate.utils.reduce(self._sums, reduction="sum")
        self._sums = None
        score, kept, total, squares, count = sums.tolist()
        return {
            f"{_PREFIX}score": score / count,
            f"{_PREFIX}kept": kept / count,
            f"{_PREFIX}effective_batch_size": total / squares,
        }
