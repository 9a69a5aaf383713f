"""How labels come about: right ones, and wrong ones that are drawn as canaries are.

    P(y | x) = (1 − ρ) p_y + ρ [(1 − λ) (1 − p_y) / (K − 1) + λ Σ_{k≠y} p_k a_y / (1 − a_k)]

    p = softmax(t z), a = softmax(z), with z the logits of a probe that never saw the sample. The
    true class k is drawn from p, and the label is k; or wrong, with probability ρ: then it is any
    other class, as a uniform canary's is, or what the probe may take it for, as a confusable one's.

    p_clean = (1 − ρ) p_y / P(y | x)

t, ρ and λ are those that make the labels likeliest. On labels without errors ρ comes to about 0,
since then the probe is right about how unsure it is.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.label_issues.inputs import FloatArray

_STARTS = ((1.0, 0.1), (3.0, 0.3))  # t and ρ: the likelihood can have two hills
_TINY = 1e-300
_LEAST = 1e-12


class Law(NamedTuple):
    """The three numbers of the formula."""

    sharpness: float  # t > 0
    rate: float  # ρ
    confusable: float  # λ


class Terms(NamedTuple):
    """What the formula is made of, for the given labels."""

    right: Tensor  # [n], p_y
    uniform: Tensor  # [n]
    confusable: Tensor  # [n]

    def wrong(self, share: Tensor | float) -> Tensor:
        """Return ``[n]``, how likely each label is if it is wrong, with λ = ``share``."""
        return (1.0 - share) * self.uniform + share * self.confusable


def terms(logits: Tensor, labels: Tensor, sharpness: Tensor | float) -> Terms:
    """Return how likely each given label is if it is right, and if it is wrong in either way.

    Args:
        logits: z ``[n, K]``.
        labels: y ``[n]``, int64.
        sharpness: t.

    Returns:
        Three times ``[n]`` float64: p_y, (1 − p_y) / (K − 1), and Σ_{k≠y} p_k a_y / (1 − a_k).

    Example:
        >>> [round(float(term), 3) for term in terms(torch.zeros(1, 4), torch.tensor([2]), 1.0)]
        [0.25, 0.25, 0.25]
    """
    z = logits.double()
    p, a = (z * sharpness).softmax(1), z.softmax(1)  # [n, K]
    y = labels[:, None]
    top = a.argmax(1, keepdim=True)
    rest = 1.0 - a
    # 1 − a of the largest one, without cancellation
    rest = rest.scatter(1, top, a.scatter(1, top, 0.0).sum(1, keepdim=True)).clamp_min(_LEAST)
    share = p / rest
    others = share.sum(1) - share.gather(1, y)[:, 0]
    right = p.gather(1, y)[:, 0]
    return Terms(right, (1.0 - right) / (z.shape[1] - 1), a.gather(1, y)[:, 0] * others)


def fit_law(logits: Tensor, labels: Tensor, sharpness: float | None = None) -> Law:
    """Find the t, ρ and λ under which the labels are likeliest.

    Args:
        logits: ``[n, K]``, of probes that never saw the label of their sample.
        labels: ``[n]``.
        sharpness: t where it is known, by :func:`sharpness_of` of trusted labels.

    Returns:
        The law; ρ near 0 where nothing speaks for wrong labels.

    Example:
        >>> labels = torch.arange(2000) % 4
        >>> logits = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
        >>> logits[torch.arange(2000), labels] += 8.0
        >>> labels[:200] = (labels[:200] + 1) % 4
        >>> round(fit_law(logits, labels).rate, 2)
        0.1
    """

    def loss(free: Tensor) -> Tensor:
        found = terms(logits, labels, free[0].exp() if sharpness is None else sharpness)
        rate, share = free[1].sigmoid(), free[2].sigmoid()
        likelihood = (1.0 - rate) * found.right + rate * found.wrong(share)
        return -likelihood.clamp_min(_TINY).log().mean()

    starts = [torch.tensor([math.log(t), math.log(r / (1 - r)), 0.0]) for t, r in _STARTS]
    free = min((_descend(loss, start.double()) for start in starts), key=lambda end: end[1])[0]
    t = float(free[0].exp()) if sharpness is None else sharpness
    return Law(t, float(free[1].sigmoid()), float(free[2].sigmoid()))


def sharpness_of(logits: Tensor, labels: Tensor) -> float:
    """Return the t under which right labels are likeliest, as in temperature scaling.

    Args:
        logits: ``[n, K]``.
        labels: ``[n]``, all of them right.

    Source:
        Guo et al. 2017, arXiv 1706.04599; t is one over its temperature.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0]] * 4)
        >>> round(sharpness_of(logits, torch.tensor([0, 0, 0, 1])), 3)  # e²ᵗ / (1 + e²ᵗ) = ¾
        0.549
    """
    z = logits.double()
    start = torch.zeros(1, dtype=torch.float64)
    return float(_descend(lambda u: F.cross_entropy(z * u.exp(), labels), start)[0].exp())


def p_clean(rate: float, right: FloatArray, wrong: FloatArray) -> FloatArray:
    """Return (1 − ρ) p_y / P(y | x), the probability that each label is right; low is bad.

    Args:
        rate: ρ.
        right: ``[n]``, how likely the given label is if it is right.
        wrong: ``[n]``, how likely it is if it is wrong.

    Example:
        >>> p_clean(0.2, np.array([0.5]), np.array([0.5])).tolist()
        [0.8]
    """
    kept: FloatArray = (1.0 - rate) * right
    return kept / np.maximum(kept + rate * wrong, _TINY)


def at_mean(mean: float, right: FloatArray, wrong: FloatArray) -> float:
    """Return the ρ under which p_bad = 1 − p_clean is ``mean`` on average.

    Example:
        >>> right = np.array([0.5, 0.01])
        >>> rate = at_mean(0.3, right, (1 - right) / 9)
        >>> round(1 - float(p_clean(rate, right, (1 - right) / 9).mean()), 6)
        0.3
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        below = 1.0 - p_clean(middle, right, wrong).mean() < mean
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def _descend(loss: Callable[[Tensor], Tensor], start: Tensor) -> tuple[Tensor, float]:
    """Descend from a start by L-BFGS; return where to, and the loss there."""
    free = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([free], max_iter=40, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(free)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return free.detach(), float(loss(free))
