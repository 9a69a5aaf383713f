"""All scorers by their names."""

from gradmimic.scorers.agra import Agra
from gradmimic.scorers.el2n import EL2N
from gradmimic.scorers.grad_match import GradMatch
from gradmimic.scorers.grand import GraNd
from gradmimic.scorers.gwa import GWA
from gradmimic.scorers.influence import Influence
from gradmimic.scorers.loss import Loss
from gradmimic.scorers.margin import Margin
from gradmimic.scorers.mimic import Mimic
from gradmimic.scorers.mimic_adam import MimicAdam
from gradmimic.scorers.mimic_cosine import MimicCosine
from gradmimic.scorers.reference_loss import ReferenceLoss
from gradmimic.scorers.rho import Rho
from gradmimic.scorers.scorer import Scorer
from gradmimic.scorers.self_confidence import SelfConfidence

_ALL: tuple[type[Scorer], ...] = (
    Loss, ReferenceLoss, Rho, EL2N, GraNd, Margin, SelfConfidence, Agra, GradMatch, GWA, Influence,
    Mimic, MimicCosine, MimicAdam,
)  # fmt: skip

SCORERS: dict[str, type[Scorer]] = {scorer.name: scorer for scorer in _ALL}
