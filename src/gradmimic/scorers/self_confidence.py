"""Self-confidence: score_i = softmax(z_i)_{y_i}, what the model gives the label it was given."""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer


class SelfConfidence(Scorer):
    """score_i = softmax(z_i)_{y_i}, in [0, 1]; higher is better.

    Source: Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset
    Labels", arXiv 1911.00068; there of models that never saw the sample, here of the one that
    trains.
    """

    name = "self_confidence"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        return seen.logits.softmax(1).gather(1, seen.labels[:, None]).squeeze(1)
