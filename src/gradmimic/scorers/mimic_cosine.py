"""The cosine of mimic: score_i = cos(−g_i, v), whatever the length of a sample's gradient."""

from torch import Tensor

from gradmimic.score import cosine
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.mimic import Mimic


class MimicCosine(Mimic):
    """score_i = ⟨−g_i, v⟩ / (‖g_i‖ ‖v‖), in [−1, 1]; higher is better.

    Batches are weighed by softmax(score/τ).

    Source: a variant of arXiv 2501.06708, section 3.
    """

    name = "mimic_cosine"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        v = self.given(seen.direction, "reference")
        return cosine(seen.along(v), v.norm, seen.gradient_norms())
