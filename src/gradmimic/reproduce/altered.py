"""References that are worse in a known way, to see how good one has to be.

usual       the recipe on the clean labels, from a seed apart
epochs      the same, stopped earlier
rows        the same on a random share of the clean rows
jitter      θ_ref + σ rms(θ_ref) ε,  ε ~ N(0, 1) for each weight
checkpoint  of the plain run on the noisy labels themselves, after so many epochs
own_start   the recipe on the clean labels from the run's own initial weights, other batches
"""

from copy import deepcopy
from math import ceil

import numpy as np
import torch
from torch import nn

from gradmimic.errors import ConfigError
from gradmimic.reproduce.cases import Case
from gradmimic.reproduce.training import APART, fit
from gradmimic.run.train import Rows, train


def altered(case: Case, how: str, amount: float = 1.0) -> nn.Module:
    """Make a reference.

    Args:
        case: what it is for.
        how: one of those above.
        amount: epochs; the share of rows in (0, 1]; or σ ≥ 0. Nothing for the others.

    Raises:
        ConfigError: there is no such way.
    """
    recipe = case.recipe._replace(seed=case.recipe.seed + APART)
    if how == "usual":
        return case.reference
    if how == "jitter":
        return jittered(case.reference, amount, recipe.seed)
    if how == "checkpoint":
        early = case.recipe._replace(epochs=round(amount))
        return fit(case.problem, case.labels, "plain", early).model
    clean = case.problem.train
    if how == "rows":
        kept = np.random.default_rng(recipe.seed).permutation(len(clean))
        at = torch.from_numpy(np.sort(kept[: ceil(amount * len(clean) - 1e-9)]))
        at = at.to(clean.labels.device)
        clean = Rows(clean.inputs[at], clean.labels[at])
    elif how == "epochs":
        recipe = recipe._replace(epochs=round(amount))
    elif how != "own_start":
        raise ConfigError(f"there is no reference {how!r}.")
    model = case.problem.start(case.recipe.seed if how == "own_start" else recipe.seed)
    train(model, clean, **recipe._asdict())
    return model


def jittered(model: nn.Module, sigma: float, seed: int) -> nn.Module:
    """Return a copy with Gaussian noise on all weights, in units of each tensor's own size.

    Args:
        model: the reference.
        sigma: σ ≥ 0; with 1 as much is added as there is.
        seed: of the noise.

    Example:
        >>> before, model = torch.ones(2, 3), nn.Linear(3, 2)
        >>> _ = model.load_state_dict({"weight": before.clone(), "bias": torch.zeros(2)})
        >>> bool((jittered(model, 0.0, seed=0).weight == before).all())
        True
    """
    model = deepcopy(model)
    chance = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            noise = torch.randn(weight.shape, generator=chance).to(weight)
            weight.add_(sigma * weight.square().mean().sqrt() * noise)
    return model
