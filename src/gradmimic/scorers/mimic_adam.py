"""Mimic for Adam: score_i = −⟨P g_i, v⟩ / ‖P v‖ with P = 1/(√v̂ + ε), v̂ Adam's second moment.

Adam does not step along g but along P g. P is symmetric, so ⟨P g_i, v⟩ = ⟨g_i, P v⟩: the direction
is preconditioned once for all samples, and no gradient of a sample is formed.
"""

from torch import Tensor

from gradmimic.score import projection
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.mimic import Mimic


class MimicAdam(Mimic):
    """score_i = ⟨−g_i, P v⟩ / ‖P v‖, in loss per unit of weight distance; higher is better.

    v̂ is the optimizer's, corrected for its bias, as it is before the step; the sample's own part
    in v̂ and the momentum, which is the same for all samples, are left out. Before the first step
    there is no v̂, and P = 1. Batches are weighed by softmax(score/τ).

    Source: Adam's update as in Xia, Malladi, Gururangan, Arora, Chen, "LESS: Selecting Influential
    Data for Targeted Instruction Tuning", arXiv 2402.04333, there with the sample's own
    part; toward weights as in arXiv 2501.06708.
    """

    name = "mimic_adam"
    needs = ("reference", "optimizer")

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        v, p = self.given(seen.direction, "reference"), self.given(seen.adam, "optimizer")
        u = v.times(p)
        return projection(seen.along(u), u.norm)
