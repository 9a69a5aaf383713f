"""Gradient norm: score_i = −‖g_i‖ = −‖δ_i‖ √(‖h_i‖² + 1), exact for the last layer."""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax


class GraNd(Scorer):
    """score_i = −‖∂ℓ_i/∂(W, b)‖, in (−∞, 0]; higher is better.

    The paper takes a long gradient for an important sample, and a wrong label has a long one too:
    as a score of clean labels the sign is minus, while the weights follow the paper.

        w_i = ‖g_i‖ / Σ_j ‖g_j‖

    Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples
    Early in Training", arXiv 2107.07075, section 2, of the last layer alone. It prunes by the norm;
    arXiv 2501.06708 compares with weights that grow with it, which are in proportion here.
    """

    name = "grand"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return -seen.gradient_norms()

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``; equal ones where no sample has a gradient."""
        total = scores.sum()
        return (scores / total).where(total < 0, 1 / len(scores))
