"""Samplers for a ``DataLoader``: only what a selection keeps, or more often what it trusts more.

keep       every kept row once an epoch, in random order
p_clean    row i is drawn with probability p_i / Σ_j p_j                     with replacement
score      row i is drawn with probability exp(s_i / τ) / Σ_j exp(s_j / τ)   likewise
"""

import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, SubsetRandomSampler, WeightedRandomSampler

from gradmimic.curate.in_order import in_order
from gradmimic.errors import ConfigError, DataError

if TYPE_CHECKING:
    from gradmimic.curate.selection import Selection

By = Literal["keep", "p_clean", "score"]

_MOST = 2**24  # rows that torch draws from by weights


def sampler(
    selection: "Selection",
    ids: Any,
    weights: By,
    temperature: float,
    num_samples: int | None,
    generator: torch.Generator | None,
) -> Sampler[int]:
    """Return one of torch's own samplers; see ``Selection.sampler``.

    Raises:
        ConfigError: there are no such weights, τ is not positive, or a filter is asked for another
            number of samples than it keeps.
        DataError: nothing is kept, no row has any weight, ``p_clean`` is not known, or there are
            more rows than torch draws from by weights.
    """
    if weights not in ("keep", "p_clean", "score"):
        raise ConfigError(f"weights={weights!r} is unknown; expected 'keep', 'p_clean' or 'score'.")
    if weights == "keep":
        if num_samples is not None:
            raise ConfigError(
                f"weights='keep' gives every kept row once, not num_samples={num_samples}. "
                "Expected weights='p_clean' or 'score' with it."
            )
        rows = np.flatnonzero(selection.mask(ids))
        if not len(rows):
            raise DataError(
                f"none of {len(selection)} samples is kept, so there is nothing to draw."
            )
        return SubsetRandomSampler(rows.tolist(), generator)
    if not temperature > 0 or math.isinf(temperature):
        raise ConfigError(f"expected a finite temperature above 0, got {temperature!r}.")
    column = in_order(selection, ids, [weights])[weights]
    if not 0 < len(column) <= _MOST:
        raise DataError(
            f"torch draws by weights from 1 to {_MOST:,} rows, got {len(column):,}. Expected "
            "weights='keep', or a selection of fewer."
        )
    if column.null_count:
        raise DataError(
            f"p_clean is not known of {column.null_count} of {len(column)} samples: scores alone "
            "are no probabilities. Expected a selection by select(log), or weights='score'."
        )
    values = torch.tensor(column.to_numpy())  # [n] float64
    drawn = values if weights == "p_clean" else (values / temperature).softmax(0)
    return WeightedRandomSampler(_some(drawn), num_samples or len(drawn), generator=generator)


def _some(weights: Tensor) -> Any:
    """Return weights that are not all 0."""
    if not weights.sum() > 0:
        raise DataError(f"all {len(weights)} samples have p_clean 0, so there is nothing to draw.")
    return weights
