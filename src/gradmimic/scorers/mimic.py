"""The mimic score at the last layer: score_i = −⟨g_i, v⟩ / ‖v‖ with v = θ_ref − θ.

``GradMimic`` gives the same numbers for any loss, any layers and any alignment.
"""

from typing import ClassVar

from torch import Tensor

from gradmimic.score import projection
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax


class Mimic(Scorer):
    """score_i = ⟨−g_i, v⟩ / ‖v‖, in loss per unit of weight distance; higher is better.

    Batches are weighed by softmax(score/τ).

    Source: Huang, Bilkhu, Cooper, Sala, Movellan, "Evaluating Sample Utility for Efficient Data
    Selection by Mimicking Model Weights", arXiv 2501.06708, section 3.
    """

    name = "mimic"
    needs: ClassVar[tuple[str, ...]] = ("reference",)

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        v = self.given(seen.direction, "reference")
        return projection(seen.along(v), v.norm)

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``, softmax(score/τ)."""
        return softmax(scores)
