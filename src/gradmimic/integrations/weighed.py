"""What the weights of many batches come to: mean score, kept share, effective batch size.

    mimic/score                   (1/n) Σ m_i
    mimic/kept                    (1/n) Σ [w_i b ≥ 1]    1 where all weights are equal
    mimic/effective_batch_size    Σ w_i / Σ w_i²         b where all weights are equal, least 1

Σ w_i is 1 a batch, so the last one is the harmonic mean over batches of 1 / Σ_i w_i², also where
each rank holds a part of every batch. All five sums add up over batches and ranks.
"""

import torch
from torch import Tensor

from gradmimic.curate.votes import ROUNDING


def sums(scores: Tensor, weights: Tensor, batch_size: int) -> Tensor:
    """Return ``[5]`` of one batch: Σ m, Σ [w b ≥ 1], Σ w, Σ w², and how many samples.

    Args:
        scores: ``[b]`` of this rank.
        weights: ``[b]``, which sum to 1 over all ranks.
        batch_size: the samples of all ranks.
    """
    m, w = scores.float(), weights.float()
    kept = (w * batch_size >= 1 - ROUNDING).float()
    return torch.stack([m, kept, w, w.square(), torch.ones_like(w)]).sum(1)  # [5, b] -> [5]


def named(total: Tensor) -> dict[str, Tensor]:
    """Return the numbers by name; NaN where there was no sample.

    Args:
        total: ``[5]``, the sum of what :func:`sums` returned.

    Returns:
        Score in loss per unit of weight distance, higher is better; kept in [0, 1]; effective
        batch size in [1, b].

    Example:
        >>> one = sums(torch.tensor([0.5, -0.5]), torch.tensor([0.75, 0.25]), 2)
        >>> {name: value.item() for name, value in named(one).items()}
        {'mimic/score': 0.0, 'mimic/kept': 0.5, 'mimic/effective_batch_size': 1.600000023841858}
    """
    score, kept, weight, squares, samples = total
    return {
        "mimic/score": score / samples,
        "mimic/kept": kept / samples,
        "mimic/effective_batch_size": weight / squares,
    }
