"""References of a table, each trained once and kept as a file for all cells that share it.

<folder>/<hash of the problem's identity and the recipe>.pt        weights alone
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from gradmimic.atomic import atomic_write
from gradmimic.reproduce.cells import key_of
from gradmimic.reproduce.problems import Problem
from gradmimic.reproduce.training import train_reference
from gradmimic.run.self_reference import Recipe


def reference_file(problem: Problem, recipe: Recipe, folder: Path) -> Path:
    """Name the file of a reference: noise has no part in it, since its labels are clean."""
    return folder / f"{key_of({**problem.identity, **recipe._asdict()})}.pt"


def kept_reference(
    problem: Problem, recipe: Recipe, folder: Path, on_step: Callable[[], None] = lambda: None
) -> nn.Module:
    """Return the reference of a problem, from its file where there is one.

    Args:
        problem: what is learned.
        recipe: of the trainings that it is for.
        folder: where references are kept.
        on_step: called after every step of its training.

    Raises:
        LossError: a loss is NaN or infinite.
    """
    file = reference_file(problem, recipe, folder)
    if file.is_file():
        model = problem.start(recipe.seed)
        device = problem.train.labels.device
        model.load_state_dict(torch.load(file, map_location=device, weights_only=True))
        return model
    model = train_reference(problem, recipe, on_step)
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as out:
        torch.save(model.state_dict(), out)
    return model
