"""Reducible loss: score_i = ℓ_i − ℓ_ref,i. What is not learned yet, but can be.

A wrong label is hard for the reference too, and what is learned already is hard for nobody: both
score low. Online, the highest share of each batch trains, all alike.
"""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax, checked_share, top_share


class Rho(Scorer):
    """score_i = ℓ(z_i, y_i) − ℓ(z_ref,i, y_i), any real number; higher is better.

    Args:
        share: of each batch that trains, in (0, 1]. The paper takes 32 of 320 samples.

    Raises:
        ParameterError: the share is not in (0, 1].

    Source: Mindermann, Brauner, Razzak, Sharma, Kirsch, Xu, Höltgen, Gomez, Morisot, Farquhar, Gal,
    "Prioritized Training on Points that are Learnable, Worth Learning, and Not Yet Learnt",
    arXiv 2206.07137. arXiv 2501.06708 compares with weights that grow with the same excess.
    """

    name = "rho"
    needs = ("outputs",)

    def __init__(self, share: float = 0.1) -> None:
        self.share = checked_share(share, "Rho")

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return seen.losses - self.given(seen.reference_losses, "outputs")

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``, 1/k for the k = ⌈share · b⌉ highest scores, else 0."""
        known = None if seen.known is None else seen.known[: len(scores)]
        return top_share(scores, self.share, known)
