"""Batch weights that canaries calibrate: how likely is a sample clean, given its score?

    ρ̂   = min_t F_all(t) / F_canary(t)         over the scores of the last samples and canaries
    k   = (μ_clean − μ_canary) / s²            (1 − ρ̂) μ_clean = μ_all − ρ̂ μ_canary, s² pooled
    p_i = σ(k (m_i − (μ_clean + μ_canary)/2) + ln((1 − ρ̂)/ρ̂))
    w_i = p_i / Σ_j p_j

A softmax over scores has no end: it takes from the clean samples that are hard to give to those
that are easy, and where few labels are wrong or the reference is weak that costs more than the
noise did. A probability ends at 1. A model that learns noise by heart hides it from its scores, so
ρ is the largest smoothed estimate so far.

Source: linear discriminant analysis; the ratio is that of Garg et al. 2021, arXiv 2111.00980.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Scores = npt.NDArray[np.float32]

_SAMPLES, _CANARIES = 2000, 300  # the last ones, which are remembered
_LEAST, _MOST = 50, 200  # canaries before the first weights, and before ρ̂ counts for good
_TAIL = 0.1  # of the canaries at least lie below t
_FORGET = 0.02  # of the smoothed ρ̂, at each step


class Posterior:
    """Turns scores into weights, from the scores of canaries so far.

    Attributes:
        rate: ρ, the share of bad samples as it is taken now; None before there are enough canaries.

    Example:
        >>> posterior, chance = Posterior(), np.random.default_rng(0)
        >>> good, bad = chance.normal(2, 1, (2, 1000)), chance.normal(-2, 1, (2, 1000))
        >>> posterior.see(np.concatenate([good[0], bad[0]]), bad[1])
        >>> posterior(torch.tensor([2.0, 2.5, -2.0])).round(decimals=1)
        tensor([0.5000, 0.5000, 0.0000])
    """

    LEARNED = ("rate", "_real", "_canaries", "_smooth", "_highest", "_slope", "_shift")

    def __init__(self) -> None:
        self.rate: float | None = None
        self._real = self._canaries = np.zeros(0)
        self._smooth: float | None = None
        self._highest = 0.0
        self._slope = self._shift = 0.0  # the logit of p is slope · m + shift

    def see(self, real: Scores, canaries: Scores) -> None:
        """Learn from one batch.

        Args:
            real: ``[b]`` scores of samples.
            canaries: ``[c]`` scores of canaries, of one kind.
        """
        self._real = np.concatenate([self._real, real])[-_SAMPLES:]
        self._canaries = np.concatenate([self._canaries, canaries])[-_CANARIES:]
        if len(self._canaries) < _LEAST or not len(canaries):
            return
        real, bad = np.sort(self._real), np.sort(self._canaries)
        below = np.searchsorted(real, bad, side="right") / len(real)  # F_all at each canary
        share = np.arange(1, len(bad) + 1) / len(bad)
        now = float(np.clip((below / share)[share >= _TAIL].min(), 0.01, 0.95))
        before = now if self._smooth is None else self._smooth
        self._smooth = before + _FORGET * (now - before)
        if len(bad) >= _MOST:
            self._highest = max(self._highest, self._smooth)
        rho = self.rate = max(self._highest, now)
        clean = (real.mean() - rho * bad.mean()) / (1 - rho)
        square = (np.square(real).mean() - rho * np.square(bad).mean()) / (1 - rho)
        pooled = rho * bad.var() + (1 - rho) * max(square - clean**2, 0.0)
        self._slope = max(float(clean - bad.mean()), 0.0) / max(float(pooled), 1e-30)
        middle = float(clean + bad.mean()) / 2
        self._shift = math.log((1 - rho) / rho) - self._slope * middle

    def __call__(self, scores: Tensor) -> Tensor:
        """Return ``[b]`` weights that sum to 1; equal ones before there are enough canaries."""
        if self.rate is None:
            return torch.full_like(scores, 1 / max(len(scores), 1))
        p = torch.sigmoid(self._slope * scores + self._shift)  # [b]
        return p / p.sum().clamp(min=torch.finfo(p.dtype).tiny)
