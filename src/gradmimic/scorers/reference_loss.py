"""The loss of the reference: score_i = −ℓ(z_ref,i, y_i). A strong detector of wrong labels."""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer


class ReferenceLoss(Scorer):
    """score_i = −ℓ(z_ref,i, y_i), in (−∞, 0] for a cross-entropy; higher is better.

    The same at every visit: what the model has learned plays no part.

    Source: the irreducible loss of Mindermann et al. 2022, arXiv 2206.07137, section 3.
    """

    name = "reference_loss"
    needs = ("outputs",)

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return -self.given(seen.reference_losses, "outputs")
