"""Losses of pairs, one for each sample, though every one depends on the whole batch.

    S = s U Vᵀ + β                                    similarities [b, b] of image i and caption j
    CLIP     ℓ_i = −½ (log softmax_row(S)_ii + log softmax_column(S)_ii)
    SigLIP   ℓ_i = −½ (Σ_j log σ(y_ij S_ij) + Σ_j log σ(y_ji S_ji)),  y_ij = 1 where i = j, else −1

Their mean over the batch is the published loss. Since the scores of a batch are the derivative of
the vector of its losses, that samples share a batch makes them no harder, and no less exact.

Sources: Radford et al., arXiv 2103.00020; Zhai et al., arXiv 2303.15343.
"""

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Embedded(NamedTuple):
    """What a contrastive model says of a batch of pairs."""

    image: Tensor  # [b, e], of unit length
    text: Tensor  # [b, e], of unit length
    scale: Tensor  # s > 0, one number
    bias: Tensor | None = None  # β, one number; SigLIP's

    @property
    def similarity(self) -> Tensor:
        """S ``[b, b]``, of image i and caption j."""
        s = self.scale * self.image @ self.text.T
        return s if self.bias is None else s + self.bias


def clip_losses(pairs: Embedded) -> Tensor:
    """Symmetric InfoNCE ``[b]``."""
    s = pairs.similarity
    return -(s.log_softmax(1).diagonal() + s.log_softmax(0).diagonal()) / 2


def siglip_losses(pairs: Embedded) -> Tensor:
    """Pairwise sigmoid ``[b]``."""
    s = pairs.similarity
    off = F.softplus(s)  # −log σ(−S)
    off = off - off.diagonal().diag_embed()
    return F.softplus(-s.diagonal()) + (off.sum(0) + off.sum(1)) / 2
