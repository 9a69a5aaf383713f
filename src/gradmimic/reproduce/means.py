"""What several scorers say of each sample on average, read from one log.

    x̄_ij = (1/|T_i|) Σ_{t ∈ T_i} x_ijt        i: sample or canary, j: scorer, T_i: the visits of i

as stage 2 takes it: visits after the model has overtaken its reference are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradmimic.curate.backends import connect
from gradmimic.curate.decide import Log
from gradmimic.curate.stack import Stack
from gradmimic.curate.stacked import stacked
from gradmimic.curate.visits import Visits

Floats = npt.NDArray[np.float64]
STACKED = "stacked"  # the name of the combination, beside those of scorers


@dataclass(frozen=True, eq=False)
class Means:
    """Mean scores of samples and of canaries, higher is better.

    Attributes:
        names: of k scorers.
        scores: ``[n, k]``, row i is the sample with id i.
        canaries: ``[c, k]``.
        kinds: ``[c]``, of the canaries, as the log names them, e.g. ``"uniform/10"``.
        stack: how canaries combine the scorers.
    """

    names: tuple[str, ...]
    scores: Floats
    canaries: Floats
    kinds: npt.NDArray[np.str_]
    stack: Stack

    def of(self, name: str) -> Floats:
        """Return ``[n]``, the mean scores by one scorer, or by their combination."""
        if name == STACKED:
            return self.stack(self.scores)
        return self.scores[:, self.names.index(name)]

    def drawn(self, name: str) -> Floats:
        """Return ``[c]``, the canaries' mean scores by one scorer."""
        return self.canaries[:, self.names.index(name)]


def mean_scores(log: Log, names: Sequence[str]) -> Means:
    """Average the visits of a log with canaries.

    Args:
        log: its folder, or some of its rows; ids are the numbers 0 … n − 1.
        names: of the scorers, two or more.

    Raises:
        LogError: the log is empty or damaged, or lacks a scorer.
    """
    with connect(None, None, None) as engine:
        visits = Visits(engine, log, names, relative=False, edge=None)
        samples, canaries, stack = stacked(visits)
        columns = [f"mean_{j}" for j in range(len(names))]
        own = engine.fetch(samples.order_by("key").select(columns))
        drawn = engine.fetch(canaries.order_by(["key", "canary"]).select("canary", *columns))
    scores, bad = (
        np.column_stack([table[name].to_numpy() for name in columns]) for table in (own, drawn)
    )
    kinds = np.array(drawn["canary"].to_pylist(), dtype=np.str_)
    return Means(tuple(names), scores, bad, kinds, stack)
