"""From the scores of a batch to the weights of the loss Σ_i w_i ℓ_i.

w = softmax(m / τ)                   or p/Σp, p how likely a sample is clean
w_i = 1/b                            where the reference says nothing of sample i; the rest
                                     share what such samples leave
w ← (1 − f) w + f/b                  once the model has overtaken its reference
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.errors import ParameterError
from gradmimic.posterior import Posterior
from gradmimic.score import batch_weights
from gradmimic.temperature import Temperature


class Weighting:
    """Turns scores into batch weights.

    Args:
        kind: ``"softmax"`` or ``"posterior"``.
        temperature: τ of the softmax; see :class:`Temperature`.

    Attributes:
        posterior: what the canaries have told; None for a softmax.

    Raises:
        ParameterError: there is no such kind, or τ is not positive.

    Example:
        >>> weights = Weighting("softmax", 1.0)
        >>> weights(torch.zeros(2), 0)
        tensor([0.5000, 0.5000])
        >>> known = torch.tensor([True, False])
        >>> share_left(weights(torch.zeros(2), 0, known), known)
        tensor([0.5000, 0.5000])
    """

    LEARNED = ("posterior", "_temperature")

    def __init__(
        self,
        kind: Literal["softmax", "posterior"],
        temperature: float | Literal["auto"] | Callable[[int], float],
    ) -> None:
        if kind not in ("softmax", "posterior"):
            raise ParameterError(
                f"weighting={kind!r} is unknown; expected 'softmax' or 'posterior'."
            )
        self.posterior = Posterior() if kind == "posterior" else None
        self._temperature = Temperature(temperature)

    def __call__(self, scores: Tensor, step: int, known: Tensor | None = None) -> Tensor:
        """Return ``[b]`` weights that sum to 1, with 0 where ``known``, ``[k ≤ b]``, is False.

        Scores beyond the k first are those of canaries that are trained on; they are known.
        """
        here = None if known is None else _padded(known, scores)
        if self.posterior is not None:
            weights = self.posterior(scores)
            if here is not None:
                weights = weights * here
                weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
            return weights
        tau = self._temperature(scores, step)
        if here is None:
            return batch_weights(scores, tau)
        return batch_weights(scores.masked_fill(~here, -torch.inf), tau).nan_to_num(0.0)


def share_left(weights: Tensor, known: Tensor) -> Tensor:
    """Give unknown samples the weight 1/b each; the others share what that leaves."""
    here, b = _padded(known, weights), len(weights)
    return torch.where(here, weights * (here.sum() / b), 1 / b)


def faded(weights: Tensor, f: float) -> Tensor:
    """Return (1 − f) w + f/b."""
    return (1 - f) * weights + f / len(weights)


def _padded(known: Tensor, like: Tensor) -> Tensor:
    return F.pad(known, (0, len(like) - len(known)), value=True).to(like.device)
