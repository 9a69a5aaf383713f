"""The loss itself: −ℓ_i. What a model finds hard to believe may be wrong, or merely hard."""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer


class Loss(Scorer):
    """score_i = −ℓ_i, in (−∞, 0]; higher is better.

    Source: small-loss selection, Han et al. 2018, "Co-teaching", arXiv 1804.06872.
    """

    name = "loss"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return -seen.losses
