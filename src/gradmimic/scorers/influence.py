"""Approximate influence: score_i = ⟨g_i, ḡ_trusted⟩. Does it help a few clean samples?"""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax


class Influence(Scorer):
    """score_i = ⟨g_i, ḡ⟩ with ḡ the mean gradient of trusted samples; higher is better.

    Any real number: how much a step on sample i lowers the trusted samples' loss, to first order
    and per unit of learning rate. Batches are weighed by softmax(score/τ). The unit is a product
    of gradients, so ``temperature="auto"`` suits it better than a number.

    Source: Pruthi, Liu, Kale, Sundararajan, "Estimating Training Data Influence by Tracing Gradient
    Descent", arXiv 2002.08484, of one step and the last layer. arXiv 2501.06708 compares with it in
    the place of v, which divides the score by ‖ḡ‖ too, and weighs alike.
    """

    name = "influence"
    needs = ("trusted",)

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return seen.along(self.given(seen.trusted, "trusted"))

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``, softmax(score/τ)."""
        return softmax(scores)
