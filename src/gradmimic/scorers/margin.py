"""Margin: score_i = z_{i,y} − max_{k≠y} z_{i,k}. Its mean over a sample's visits is AUM."""

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.scorer import Scorer


class Margin(Scorer):
    """score_i = z_{i,y_i} − max_{k≠y_i} z_{i,k}, any real number; higher is better.

    The area under the margin is the mean of the logged margins over a training, which is what
    ``select(log, scorer="margin")`` takes.

    Source: Pleiss, Zhang, Elenberg, Weinberger, "Identifying Mislabeled Data using the Area Under
    the Margin Ranking", arXiv 2001.10528, section 3.
    """

    name = "margin"

    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``."""
        given = seen.labels[:, None]  # [n, 1]
        others = seen.logits.scatter(1, given, -float("inf"))
        return seen.logits.gather(1, given).squeeze(1) - others.amax(1)
