"""The loss itself: score_i = −ℓ_i. What a model finds hard to believe may be wrong, or merely hard.

Online, the small losses of a batch train and the others do not: w_i = 1/k for the k = ⌈r b⌉ highest
scores, with r the share of clean samples, which has to be told.
"""

from torch import Tensor

from gradmimic.errors import ParameterError
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax, checked_share, top_share


class Loss(Scorer):
    """score_i = −ℓ_i, in (−∞, 0] for a cross-entropy; higher is better.

    Args:
        keep: r, the share of every batch that trains, in (0, 1]; needed for weights only.

    Raises:
        ParameterError: the share is not in (0, 1].

    Source: small-loss selection, Han, Yao, Yu, Niu, Xu, Hu, Tsang, Sugiyama, "Co-teaching: Robust
    Training of Deep Neural Networks with Extremely Noisy Labels", arXiv 1804.06872; here one net
    alone, and the same share from the first step on.
    """

    name = "loss"

    def __init__(self, keep: float | None = None) -> None:
        self.keep = keep if keep is None else checked_share(keep, "Loss")

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return -seen.losses

    @property
    def online(self) -> bool:
        """Whether the share is told."""
        return self.keep is not None

    def offline(self) -> str:
        """Say that the share is missing."""
        return "weigh_by='loss' needs the share of clean samples: weigh_by=Loss(keep=0.6)."

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``, equal for the smallest losses."""
        if self.keep is None:
            raise ParameterError(self.offline())
        return top_share(scores, self.keep)
