"""Has the model overtaken its reference? Then the direction is noise, and so is the score.

    A = AUROC of the real samples' scores over the canaries', in blocks of 200 canaries
    overtaken where the intervals of two blocks in a row reach down to chance, ½

or where the model's loss on samples that can be trusted is lower than the reference's. From then on
the batch weights fade to equal ones:

    w ← (1 − f) softmax(m/τ) + f/b      f from 0 to 1 over 100 steps
"""

import numpy as np
import numpy.typing as npt
from torch import Tensor

from gradmimic.errors import LossError
from gradmimic.measure import check_losses
from gradmimic.separation import separation

BLOCK = 200  # canaries
FADE = 100  # steps

Scores = npt.NDArray[np.float32]


class Overtaken:
    """Watch the canaries of a training.

    Attributes:
        since: the step from which on the scores know nothing; None while they do.

    Example:
        >>> watch = Overtaken()
        >>> alike = np.arange(BLOCK, dtype=np.float32)
        >>> [watch.see(step, alike, alike) for step in range(2)], watch.since
        ([False, True], 0)
    """

    LEARNED = ("since", "_start", "_doubtful", "_real", "_canaries", "_count")

    def __init__(self) -> None:
        self.since: int | None = None
        self._start: int | None = None  # of the present block
        self._doubtful: int | None = None  # where the block before began, if it was at chance
        self._real: list[Scores] = []
        self._canaries: list[Scores] = []
        self._count = 0

    def see(self, step: int, real: Scores, canaries: Scores) -> bool:
        """Add one batch; return whether it shows, for the first time, that the scores are done.

        Args:
            step: the number of the batch.
            real: ``[b]`` scores of samples.
            canaries: ``[c]`` scores of canaries, of one kind.
        """
        if self.since is not None or not len(canaries):
            return False
        if self._start is None:
            self._start = step
        self._real.append(real)
        self._canaries.append(canaries)
        self._count += len(canaries)
        if self._count < BLOCK:
            return False
        area = separation(np.concatenate(self._real), np.concatenate(self._canaries))
        at_chance, earlier = area.low <= 0.5, self._doubtful
        self._doubtful = self._start if at_chance else None
        self._real, self._canaries, self._count, self._start = [], [], 0, None
        if not at_chance or earlier is None:
            return False
        return self.tell(earlier)

    def tell(self, step: int) -> bool:
        """Note that the scores know nothing from this step on; return whether that is news."""
        if self.since is not None:
            return False
        self.since, self._real, self._canaries = step, [], []
        return True


def lower(losses: Tensor, reference_losses: Tensor) -> bool:
    """Tell whether the model's mean loss is the lower one, beyond chance.

    mean(ℓ_ref − ℓ) > 1.96 standard errors of that mean

    Args:
        losses: ``[n]``, the model's.
        reference_losses: ``[n]``, the reference's on the same samples.

    Raises:
        LossError: not one loss per sample, or not equally many.

    Example:
        >>> import torch
        >>> lower(torch.tensor([0.1, 0.2]), torch.tensor([1.1, 1.3]))
        True
    """
    check_losses(losses), check_losses(reference_losses)
    if losses.shape != reference_losses.shape:
        raise LossError(
            "Expected the losses of the model and of its reference on the same samples, got "
            f"{len(losses)} and {len(reference_losses)}."
        )
    ahead = (reference_losses - losses).detach().double()
    error = ahead.std(correction=0) / max(len(ahead), 1) ** 0.5
    return bool(ahead.mean() > 1.96 * error)


def fading(steps: int) -> float:
    """Return f in [0, 1], so many steps into the fade.

    Example:
        >>> fading(0), fading(50), fading(1000)
        (0.0, 0.5, 1.0)
    """
    return min(max(steps / FADE, 0.0), 1.0)
