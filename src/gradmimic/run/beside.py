"""Other scorers beside mimic while checkpoints are scored: a ``BatchScorer`` for each of them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn

from gradmimic.outputs import Outputs
from gradmimic.reference import Reference, Source
from gradmimic.scorers import SCORERS, BatchScorer


class Beside:
    """Make the other scorers of every checkpoint that comes.

    Args:
        names: of the scorers; may be none.
        reference: weights beside the checkpoints', for the scorers that compare them.
        outputs: what the reference says of the samples, for the scorers that look it up.
    """

    def __init__(
        self, names: Sequence[str], reference: Reference | Source | None, outputs: Outputs | None
    ) -> None:
        self._names, self._reference, self._outputs = names, reference, outputs
        self._made: dict[nn.Module, BatchScorer] = {}

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[BatchScorer | None]:
        """Watch a pass of a checkpoint; yield what scores it, None where nothing does."""
        if not self._names:
            yield None
            return
        if model not in self._made:
            needs = asked_of(self._names)
            self._made[model] = BatchScorer(
                model,
                self._names,
                reference=self._reference if "reference" in needs else None,
                outputs=self._outputs if "outputs" in needs else None,
            )
        with self._made[model] as scores:
            yield scores


def asked_of(names: Sequence[str]) -> set[str]:
    """Return what scorers ask for beside a pass.

    Example:
        >>> asked_of(["loss", "rho"])
        {'outputs'}
    """
    return {need for name in names for need in SCORERS[name].needs}
