"""One training of a table: a method, noisy labels, and what the method needs to know beside them.

    plain        θ ← AdamW(mean_i ∇ℓ_i)
    any other    θ ← AdamW(Σ_i w_i ∇ℓ_i)        w by the method's scores of the batch

All methods start from the same weights and see the same batches. What only some may use: ``rho``
and ``mimic`` the reference, ``influence`` a few clean samples of each class. The reference is
trained by the same recipe on the clean labels, from another seed: another head, other batches.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gradmimic.canaries import Canaries
from gradmimic.errors import ConfigError
from gradmimic.log import ScoreLog
from gradmimic.outputs import Outputs
from gradmimic.reproduce.problems import Problem
from gradmimic.reweight import GradMimic
from gradmimic.run.self_reference import Recipe
from gradmimic.run.train import Curve, Rows, few_of_each, logits, train
from gradmimic.scorers import SCORERS, BatchScorer

PLAIN = "plain"
PUBLISHED = (PLAIN, "grand", "agra", "grad_match", "rho", "influence", "mimic")
OURS: dict[str, dict[str, Any]] = {  # what else GradMimic is told
    "mimic_auto": {"temperature": "auto"},
    "mimic_outputs": {"temperature": "auto", "align": "outputs"},
}
METHODS = (*PUBLISHED, *OURS)
FEW = 5  # clean samples of each class that influence may use
APART = 1000  # from a training's seed to its reference's


class Fitted(NamedTuple):
    """What a training left."""

    model: nn.Module
    curve: Curve


def train_reference(
    problem: Problem, recipe: Recipe, on_step: Callable[[], None] = lambda: None
) -> nn.Module:
    """Train on the clean labels, from a seed apart from the recipe's.

    Args:
        problem: what is learned.
        recipe: that of the trainings it is for.
        on_step: called after every step.

    Raises:
        LossError: a loss is NaN or infinite.
    """
    recipe = recipe._replace(seed=recipe.seed + APART)
    model = problem.start(recipe.seed)
    train(model, problem.train, **recipe._asdict(), on_step=on_step)
    return model


def fit(
    problem: Problem,
    labels: Tensor,
    method: str,
    recipe: Recipe,
    *,
    reference: nn.Module | None = None,
    temperature: float = 1.0,
    told: Mapping[str, Any] | None = None,
    scorers: Sequence[str] = (),
    log: ScoreLog | None = None,
    canaries: Canaries | None = None,
    on_step: Callable[[], None] = lambda: None,
) -> Fitted:
    """Train by one method.

    Args:
        problem: what is learned; its test rows are measured after every epoch.
        labels: ``[n]`` int64, noisy.
        method: one of :data:`METHODS`, or another scorer that gives weights.
        recipe: its seed fixes initial weights, batches and the clean samples.
        reference: for mimic and rho, and for scorers that ask for one.
        temperature: τ of mimic's weights softmax(m/τ).
        told: what else GradMimic is told, such as ``params``.
        scorers: others to log beside.
        log: receives all scores.
        canaries: drawn from every batch to be scored too.
        on_step: called after every step.

    Raises:
        ConfigError: the method needs a reference, and there is none.
        LossError: a loss is NaN or infinite.
    """
    mimics = method == "mimic" or method in OURS
    if reference is None and needs_reference(method):
        raise ConfigError(f"The method {method} needs a reference; expected a model, got None.")
    model = problem.start(recipe.seed)
    rows = Rows(problem.train.inputs, labels.to(problem.train.labels.device))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay
    )
    mimic = scores = None
    if mimics:
        options = {"temperature": temperature, **OURS.get(method, {}), **(told or {})}
        toward: Any = reference
        if method == "mimic_outputs":
            toward = outputs_of(toward, problem)
        mimic = GradMimic(model, toward, log=log, **options)
    weigh_by = None if mimics or method == PLAIN else method
    names = [*scorers, *([weigh_by] if weigh_by else [])]
    if names:
        needs = {need for name in names for need in SCORERS[name].needs}
        scores = BatchScorer(
            model,
            list(scorers),
            weigh_by=weigh_by,
            reference=reference if "reference" in needs else None,
            outputs=outputs_of(reference, problem) if reference and "outputs" in needs else None,
            trusted=few_of_each(problem.train, recipe.seed, FEW) if "trusted" in needs else None,
            optimizer=optimizer if "optimizer" in needs else None,
            temperature="auto",  # influence's unit is a product of gradients: no τ suits all sets
            log=log,
        )
    curve = train(
        model,
        rows,
        **recipe._asdict(),
        test=problem.test,
        mimic=mimic,
        scores=scores,
        canaries=canaries,
        optimizer=optimizer,
        on_step=on_step,
    )
    return Fitted(model, curve)


def needs_reference(method: str) -> bool:
    """Tell whether a method is told by the reference: by its weights, or by its losses.

    Example:
        >>> [method for method in METHODS if needs_reference(method)]
        ['rho', 'mimic', 'mimic_auto', 'mimic_outputs']
    """
    own = SCORERS.get(method)
    return method in OURS or (own is not None and {"reference", "outputs"} & {*own.needs} != set())


def reads_temperature(method: str) -> bool:
    """Tell whether τ has a part in what a method comes to.

    Example:
        >>> [method for method in METHODS if reads_temperature(method)]
        ['mimic']
    """
    return method == "mimic"


def steps(problem: Problem, recipe: Recipe) -> int:
    """Return how many steps a training takes."""
    return recipe.epochs * ceil(len(problem.train) / recipe.batch_size)


def outputs_of(reference: nn.Module, problem: Problem) -> Outputs:
    """Return what a reference says of every sample; ids are row numbers."""
    said = logits(reference, problem.train.inputs)
    return Outputs(range(len(said)), said, source="the reference")
