"""Which classes are taken for which others: a law of wrong labels by class.

    P(y | x) = (1 − ρ) p_y + ρ Σ_k p_k B_ky      B_kk = 0, Σ_y B_ky = 1

ρ and B are found by expectation maximisation: the expected number of errors from k to y is

    N_ky = Σ_{i: y_i = y} ρ p_k B_ky / P(y | x_i),     ρ = Σ N / n,     B_ky ∝ N_ky + c

c draws B toward errors that are random: a probe is never quite right about which classes are near,
and what it gets wrong grows with the number of samples, as c does.
"""

from typing import NamedTuple

import torch
from torch import Tensor

_STEPS = 15
_RANDOM = 0.25  # of n: random errors that are added in thought
_LEAST = 5.0  # of them for each pair of classes
_TINY = 1e-300


class Confusions(NamedTuple):
    """The share of wrong labels, and what they become."""

    rate: float  # ρ
    matrix: Tensor  # B [K, K]

    def wrong(self, p: Tensor, labels: Tensor) -> Tensor:
        """Return Σ_k p_k B_ky ``[n]``, how likely each label is if it is wrong."""
        return (p * self.matrix.T[labels]).sum(1)


def confusions(p: Tensor, labels: Tensor, rate: float) -> Confusions:
    """Find ρ and B.

    Args:
        p: ``[n, K]`` float64, how likely each class is.
        labels: y ``[n]``.
        rate: ρ to begin with, above 0.

    Source:
        Dawid and Skene 1979, with the classes' probabilities known; Patrini et al. 2017, arXiv
        1609.03683, for the matrix.

    Example:
        >>> p = torch.eye(3).double().repeat_interleave(100, 0)
        >>> labels = torch.arange(3).repeat_interleave(100)
        >>> labels[:50] = 1
        >>> found = confusions(p, labels, 0.1)
        >>> round(found.rate, 2), bool(found.matrix[0, 1] > found.matrix[0, 2])
        (0.17, True)
    """
    n, classes = p.shape
    others = 1.0 - torch.eye(classes, dtype=p.dtype)
    pairs = classes * (classes - 1)
    random = (_RANDOM * n / pairs + _LEAST) * others
    found = Confusions(rate, others / (classes - 1))
    right = p.gather(1, labels[:, None])[:, 0]
    for _ in range(_STEPS):
        errors = found.rate * p * found.matrix.T[labels]  # [n, K]
        errors /= ((1.0 - found.rate) * right + errors.sum(1)).clamp_min(_TINY)[:, None]
        counts = torch.zeros_like(others).index_add_(0, labels, errors).T  # N [k, y]
        matrix = counts + random
        found = Confusions(float(counts.sum()) / n, matrix / matrix.sum(1, keepdim=True))
    return found
