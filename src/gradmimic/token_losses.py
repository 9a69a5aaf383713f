"""Losses of sequences: of each token, and of each sequence as the mean over its unmasked tokens.

ℓ_t = −log p(y_t | x)        0 where y_t is masked
ℓ_i = Σ_t ℓ_{i,t} / n_i      n_i unmasked tokens of sequence i
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gradmimic.errors import LossError

IGNORED = -100  # Hugging Face's and torch's mark of a token that does not count


class TokenLosses(NamedTuple):
    """The losses of a batch's tokens, and which of them count."""

    losses: Tensor  # [b, t], 0 where masked
    counted: Tensor  # [b, t] bool

    @property
    def counts(self) -> Tensor:
        """Return n_i ``[b]``, how many tokens of each sequence count."""
        return self.counted.sum(1)

    @property
    def means(self) -> Tensor:
        """Return ℓ_i ``[b]``, lower is better; 0 for a sequence without any unmasked token."""
        return self.losses.sum(1) / self.counts.clamp(min=1)


def token_losses(
    logits: Tensor, labels: Tensor, *, causal: bool, label_smoothing: float = 0.0
) -> TokenLosses:
    """Return the cross-entropy of each token.

    Args:
        logits: ``[b, t, V]``.
        labels: ``[b, t]``, the right token or class at each place; −100 where none counts.
        causal: whether the logits at a place are of the next place's label; then one place less is
            returned.
        label_smoothing: how much of the target is spread over all V.

    Returns:
        Losses ``[b, t]``, or ``[b, t − 1]``; at least 0, lower is better.

    Raises:
        LossError: logits and labels do not fit.

    Example:
        >>> logits = torch.zeros(1, 3, 4)
        >>> found = token_losses(logits, torch.tensor([[-100, 2, 1]]), causal=True)
        >>> found.counts.tolist(), round(found.means.item(), 3)
        ([2], 1.386)
    """
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise LossError(
            f"Expected logits [b, t, V] and labels [b, t], got {list(logits.shape)} and "
            f"{list(labels.shape)}."
        )
    if causal:  # a last place without label, since cutting it off would copy all logits
        labels = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    losses = F.cross_entropy(
        wide.flatten(0, 1),
        labels.flatten(),
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    found, counted = losses.view(labels.shape), labels != IGNORED
    return TokenLosses(found[:, :-1], counted[:, :-1]) if causal else TokenLosses(found, counted)
