"""What a training learns from its own scores, on every rank alike.

canaries score no lower than samples   the model has overtaken its reference: fade (canaries of
                                       pairs tell in the first epoch alone)
canaries under each alignment          which alignment is best, for align="auto"
canaries and samples                   how likely a sample is clean, for weighting="posterior"
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradmimic.align import Alignment
from gradmimic.canaries import CanaryLosses
from gradmimic.errors import UsageError
from gradmimic.log import ScoreLog
from gradmimic.overtaken import Overtaken, fading
from gradmimic.trial import Trial
from gradmimic.weighting import Weighting, faded, share_left
from gradmimic.whole_batch import WholeBatch

_logger = logging.getLogger("gradmimic")


class Learning:
    """The weights of each batch, and what changes them in the course of a training.

    Args:
        weighting: from scores to weights.
        log: where events go.

    Attributes:
        overtaken: since when the scores know nothing.
    """

    LEARNED = ("overtaken", "_weighting", "_fading_from")

    def __init__(self, weighting: Weighting, log: ScoreLog | None) -> None:
        self.overtaken = Overtaken()
        self._weighting, self._log = weighting, log
        self._fading_from = 0

    def check(self, alignment: Alignment, canaries: CanaryLosses | None) -> None:
        """Refuse a batch without what there is to learn from.

        Raises:
            UsageError: canaries are needed, and there are none.
        """
        asked = None
        if isinstance(alignment, Trial):
            asked = "align='auto' lets canaries tell which alignment is best", "name the alignment"
        elif self._weighting.posterior is not None:
            asked = "weighting='posterior' learns from canaries", "use weighting='softmax'"
        if asked is not None and canaries is None:
            raise UsageError(
                f"{asked[0]}: pass weigh(…, canaries=Canaries().labels(logits, y, ids)), or "
                f"{asked[1]}."
            )

    def weights(self, whole: WholeBatch, step: int) -> Tensor:
        """Return the weights of the rows that share the softmax, as they are logged."""
        return self._weighting(whole.scores[: whole.weighed], step, whole.known)

    def learn(
        self,
        whole: WholeBatch,
        scores: npt.NDArray[np.float32],
        step: int,
        epoch: int | None,
        alignment: Alignment,
    ) -> Alignment:
        """Learn from one batch; return the alignment for the next.

        Args:
            whole: the batch of all ranks.
            scores: ``[B + C]``, its scores on the CPU.
            step: its number.
            epoch: of which pass over the data, where that is known.
            alignment: the one that scored it.
        """
        real, canaries = scores[: whole.samples], whole.plainest(scores)
        if isinstance(alignment, Trial):
            known = slice(None) if whole.known is None else whole.known.numpy()
            return self._try(alignment, real[known], canaries, step)
        if self._weighting.posterior is not None:
            self._weighting.posterior.see(real, canaries)
        # A contrastive model soon knows its pairs by heart, good and bad ones alike, but no canary.
        # From then on samples score low beside canaries, however well good ones stand above bad.
        memorised = whole.swapped and bool(epoch)
        if not memorised and self.overtaken.see(step, real, canaries):
            self.fade(step, "canaries score no lower than samples")
        return alignment

    def stepped(self, whole: WholeBatch, weights: Tensor, step: int) -> Tensor:
        """Return the weights to step with."""
        if whole.known is not None:
            weights = share_left(weights, whole.known)
        if self.overtaken.since is not None:
            weights = faded(weights, fading(step - self._fading_from))
        return weights

    def fade(self, step: int, why: str) -> None:
        """Let the weights fade from this step on."""
        self._fading_from, since = step, self.overtaken.since
        _logger.warning(
            "gradmimic: from step %s on the scores know nothing, %s. The weights fade to equal "
            "ones, and stage 2 leaves these visits out where it can.",
            since, why,
        )  # fmt: skip
        if self._log is not None and since is not None:
            self._log.mark("overtaken", since, why=why)

    def resume(self, events: Sequence[Mapping[str, Any]]) -> str | None:
        """Go on as the log says that this run left off; return the alignment that was chosen."""
        chosen = None
        for event in events:
            if event["event"] == "overtaken":
                self.overtaken.tell(event["step"])
                self._fading_from = event["step"]
            elif event["event"] == "aligned":
                chosen = event["alignment"]
        return chosen

    def _try(
        self,
        trial: Trial,
        real: npt.NDArray[np.float32],
        canaries: npt.NDArray[np.float32],
        step: int,
    ) -> Alignment:
        """Let the canaries speak on the candidate whose turn it is, and settle on one in time."""
        chosen = trial.tell(real, canaries)
        if chosen is None:
            return trial
        _logger.warning(
            "gradmimic: align='auto' uses %r. AUROC over canaries: %s.", chosen.name, trial.told()
        )
        if self._log is not None:
            areas = {name: area._asdict() for name, area in trial.areas.items()}
            self._log.mark("aligned", step, alignment=chosen.name, auroc=areas)
        return chosen
