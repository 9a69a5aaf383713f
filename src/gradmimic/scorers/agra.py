"""AGRA: score_i = cos(g_i, ḡ_com). Does a sample pull where an independent batch pulls?

The comparison batch is the one before, its samples and labels under the present last layer: drawn
independently by a shuffled loader, and without a forward pass of its own. That is exact where the
layers below are frozen, and its features are a step old where they train. The first batch, which
has none before it, is compared with itself.
"""

from torch import Tensor
from torch.nn import functional as F

from gradmimic.score import cosine
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer, Softmax


class Agra(Scorer):
    """score_i = ⟨g_i, ḡ_com⟩ / (‖g_i‖ ‖ḡ_com‖), in [−1, 1]; higher is better.

    Samples that do not agree are left out of the step, and the others count alike:

        w_i = [score_i > 0] / Σ_j [score_j > 0]

    Where none agrees all weights are 0, and nothing is learned from that batch.

    Source: Sedova, Zellinger, Roth, "Learning with Noisy Labels by Adaptive Gradient-Based Outlier
    Removal", arXiv 2306.04502, algorithm 1, without its alternative labels and its F₁ loss.
    """

    name = "agra"

    def __init__(self) -> None:
        self._before: tuple[Tensor, Tensor] | None = None  # features [b, d], labels [b]

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``, and remember this batch for the next one."""
        own = seen.features[: seen.samples], seen.labels[: seen.samples]
        h, y = self._before or own
        logits = F.linear(h, seen.weight, seen.bias)
        other = HeadPass.of(h, logits, y, seen.weight, seen.bias, seen.loss).mean_gradient()
        self._before = own
        # `cosine` takes that of a descent step, −g, with a direction, here −ḡ
        return -cosine(seen.along(other), other.norm or 1.0, seen.gradient_norms())

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Return ``[b]``."""
        agree = (scores > 0).to(scores)
        return agree / agree.sum().clamp(min=1)
