"""Scores of samples, mimic's and other people's, behind one interface and from one pass."""

from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.loss import Loss
from gradmimic.scorers.scorer import Scorer

__all__ = ["HeadPass", "Loss", "Scorer"]
