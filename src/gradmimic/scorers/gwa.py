"""Gradient-weight alignment: score_i = cos(−g_i, θ). Does learning a sample confirm the weights?"""

from torch import Tensor

from gradmimic.score import cosine
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer


class GWA(Scorer):
    """score_i = ⟨−g_i, θ⟩ / (‖g_i‖ ‖θ‖), in [−1, 1]; higher is better.

    θ is the present last layer, its weight and its bias; the authors' code leaves out the bias.

    Source: Hölzl, Rueckert, Kaissis, "Gradient-Weight Alignment as a Train-Time Proxy for
    Generalization in Classification Tasks", arXiv 2510.25480.
    """

    name = "gwa"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        theta = seen.layer
        return cosine(seen.along(theta), theta.norm or 1.0, seen.gradient_norms())
