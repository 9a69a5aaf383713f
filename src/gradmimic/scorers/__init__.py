"""Scores of samples, mimic's and other people's, behind one interface and from one pass."""

from gradmimic.scorers.agra import Agra
from gradmimic.scorers.batch_scorer import BatchScorer
from gradmimic.scorers.el2n import EL2N
from gradmimic.scorers.grad_match import GradMatch
from gradmimic.scorers.grand import GraNd
from gradmimic.scorers.gwa import GWA
from gradmimic.scorers.head_pass import HeadPass
from gradmimic.scorers.influence import Influence
from gradmimic.scorers.last_layer import LastLayer
from gradmimic.scorers.loss import Loss
from gradmimic.scorers.margin import Margin
from gradmimic.scorers.mimic import Mimic
from gradmimic.scorers.mimic_adam import MimicAdam
from gradmimic.scorers.mimic_cosine import MimicCosine
from gradmimic.scorers.names import SCORERS
from gradmimic.scorers.reference_loss import ReferenceLoss
from gradmimic.scorers.rho import Rho
from gradmimic.scorers.scorer import Scorer
from gradmimic.scorers.self_confidence import SelfConfidence

__all__ = [
    "EL2N",
    "GWA",
    "SCORERS",
    "Agra",
    "BatchScorer",
    "GraNd",
    "GradMatch",
    "HeadPass",
    "Influence",
    "LastLayer",
    "Loss",
    "Margin",
    "Mimic",
    "MimicAdam",
    "MimicCosine",
    "ReferenceLoss",
    "Rho",
    "Scorer",
    "SelfConfidence",
]
