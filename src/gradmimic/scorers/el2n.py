"""Error vector's length: score_i = −‖softmax(z_i) − onehot(y_i)‖."""

from torch import Tensor
from torch.nn import functional as F

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer


class EL2N(Scorer):
    """score_i = −‖softmax(z_i) − onehot(y_i)‖₂, in [−√2, 0]; higher is better.

    The paper's own sign is the other one: it keeps what is long, early in a training on clean data,
    and finds that the longest ones of all are wrong labels.

    Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet: Finding Important Examples
    Early in Training", arXiv 2107.07075, section 2.
    """

    name = "el2n"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        right = F.one_hot(seen.labels, seen.logits.shape[1])  # [n, K]
        error = seen.logits.softmax(1) - right
        return -error.square().sum(1).sqrt()
