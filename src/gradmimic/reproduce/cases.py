"""The cells of the tables about one training: set × noise × seed, each opened when it is computed.

cell = what is measured, the set's identity, noise, seed, recipe, τ    plain data, hashed
case = that problem with its wrong labels, and a reference by the same recipe on the clean ones
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from gradmimic.canaries import Canaries, enough
from gradmimic.errors import ConfigError, DataError
from gradmimic.log import ScoreLog
from gradmimic.reproduce.cells import Cell
from gradmimic.reproduce.means import Means, mean_scores
from gradmimic.reproduce.noise import corrupt, parse_noise
from gradmimic.reproduce.problems import Problem, Tuning, open_problem
from gradmimic.reproduce.references import kept_reference
from gradmimic.reproduce.sets import SETS, load_set
from gradmimic.reproduce.training import APART, Fitted, fit, needs_reference
from gradmimic.run.prepare import Progress
from gradmimic.run.self_reference import Recipe
from gradmimic.run.train import logits, train
from gradmimic.scorers import SCORERS

VERSION = 1  # of what cells hold; another one computes them anew
LOGGED = tuple(name for name in SCORERS if name != "mimic")  # beside mimic's own
NAMES = ("mimic", *LOGGED)
_EPOCHS = 5  # of a set that the paper does not have


@dataclass(frozen=True)
class Settings:
    """What is asked for.

    Args:
        sets: names of sets.
        data: where local copies of them lie.
        backbone: as for ``open_problem``.
        tuning: likewise.
        noise: texts that ``parse_noise`` reads.
        seeds: how many of them, from 0.
        epochs: None for those of the paper for each set.
        batch_size: samples per step.
        lr: AdamW's learning rate.
        weight_decay: AdamW's.
        temperature: τ.
    """

    sets: Sequence[str]
    data: Mapping[str, str]
    backbone: str
    tuning: Tuning
    noise: Sequence[str]
    seeds: int
    epochs: int | None = None
    batch_size: int = 32
    lr: float = 1e-4
    weight_decay: float = 1e-5
    temperature: float = 1.0


@dataclass(frozen=True, eq=False)
class Case:
    """One cell, opened.

    Args:
        problem: what is learned; its labels are the clean ones.
        labels: ``[n]`` int64, as given.
        recipe: of every training here.
        temperature: τ.
        cache: the folder where references are kept.
    """

    problem: Problem
    labels: Tensor
    recipe: Recipe
    temperature: float
    cache: Path

    @cached_property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """``[n]``, which labels are wrong."""
        wrong: npt.NDArray[np.bool_] = (self.labels != self.problem.train.labels).cpu().numpy()
        return wrong

    @cached_property
    def reference(self) -> nn.Module:
        """By the same recipe on the clean labels, from another seed."""
        return kept_reference(self.problem, self.recipe, self.cache)

    def fit(self, method: str, **more: Any) -> Fitted:
        """Train on the given labels, with the reference where the method needs one."""
        reference = more.pop("reference", None)
        if reference is None and needs_reference(method):
            reference = self.reference
        more.setdefault("temperature", self.temperature)
        return fit(self.problem, self.labels, method, self.recipe, reference=reference, **more)

    @contextmanager
    def logged(
        self, scorers: Sequence[str] = (), rate: float | None = None, **more: Any
    ) -> Iterator[tuple[Path, Fitted]]:
        """Train re-weighted by mimic, with canaries; yield the log's folder, and what was left.

        Args:
            scorers: others that are logged beside.
            rate: the share of samples that serve as canaries; None for enough of them.
            more: as of :meth:`fit`.
        """
        canaries = Canaries(rate or enough(len(self.labels)), seed=self.recipe.seed)
        with tempfile.TemporaryDirectory() as folder:
            with ScoreLog(folder) as log:
                left = self.fit("mimic", scorers=scorers, log=log, canaries=canaries, **more)
            yield Path(folder), left


class Cases:
    """All cells of a table, and how to open them.

    Args:
        settings: what is asked for.
        cache: the folder for features and references.
        progress: told of what takes long.

    Raises:
        ConfigError: a setting cannot be.
        DataError: a set cannot be read.
    """

    def __init__(
        self,
        settings: Settings,
        cache: Path,
        progress: Progress = lambda _what, _steps: lambda: None,
    ) -> None:
        _check(settings)
        self.settings, self._cache = settings, cache
        for text in settings.noise:
            parse_noise(text)
        self._problems = {
            name: open_problem(
                name, settings.data.get(name), settings.backbone, settings.tuning, cache, progress
            )
            for name in settings.sets
        }
        self._logged: tuple[list[Any], Means] | None = None
        self._said: dict[tuple[str, int], npt.NDArray[np.float32]] = {}

    def cells(self, what: str, **more: Any) -> list[Cell]:
        """Return a cell for each set, noise and seed.

        Args:
            what: is measured.
            more: what else decides the figures.
        """
        own = self.settings
        return [
            {
                "what": what,
                "version": VERSION,
                **self._problems[name].identity,
                "noise": noise,
                "seed": seed,
                "epochs": own.epochs or (SETS[name].epochs if name in SETS else _EPOCHS),
                "batch_size": own.batch_size,
                "lr": own.lr,
                "weight_decay": own.weight_decay,
                "temperature": own.temperature,
                **more,
            }
            for name in own.sets
            for noise in own.noise
            for seed in range(own.seeds)
        ]

    def open(self, cell: Cell) -> Case:
        """Return what a cell of :meth:`cells` stands for."""
        problem = self._problems[cell["set"]]
        recipe = Recipe(
            cell["epochs"], cell["batch_size"], cell["lr"], cell["weight_decay"], cell["seed"]
        )
        labels = self._labels(problem, cell, recipe)
        return Case(problem, labels, recipe, cell["temperature"], self._cache)

    def means(self, cell: Cell) -> Means:
        """Return what all scorers say of a cell's samples, from a log that is made once.

        Cells of the same labels, one after another, share it.
        """
        key = [cell[name] for name in ("set", "noise", "seed")]
        if self._logged is None or self._logged[0] != key:
            with self.open(cell).logged(LOGGED) as (log, _):
                self._logged = key, mean_scores(log, NAMES)
        return self._logged[1]

    def _labels(self, problem: Problem, cell: Cell, recipe: Recipe) -> Tensor:
        noise, clean = parse_noise(cell["noise"]), problem.train.labels
        name, classes = cell["set"], len(problem.classes)
        if noise.kind == "column":
            column = load_set(name, self.settings.data.get(name)).train.column(
                noise.column, problem.classes
            )
            return torch.from_numpy(column).to(clean.device)
        likely = self._likely(problem, name, recipe) if noise.kind == "confusable" else None
        given = corrupt(clean.cpu().numpy(), noise, classes, recipe.seed, likely)
        return torch.from_numpy(given).to(clean.device)

    def _likely(self, problem: Problem, name: str, recipe: Recipe) -> npt.NDArray[np.float32]:
        """Return what a model of its own, trained on the clean labels, says of each sample."""
        key = name, recipe.seed
        if key not in self._said:
            own = recipe._replace(seed=recipe.seed + 2 * APART)
            model = problem.start(own.seed)
            train(model, problem.train, **own._asdict())
            self._said[key] = logits(model, problem.train.inputs).cpu().numpy()
        return self._said[key]


def _check(settings: Settings) -> None:
    """Refuse settings that no training can have."""
    if not settings.sets or not settings.noise:
        raise ConfigError("expected a set and a level of noise, or several; got none.")
    for name, value in (
        ("seeds", settings.seeds),
        ("epochs", settings.epochs),
        ("batch size", settings.batch_size),
        ("lr", settings.lr),
        ("temperature", settings.temperature),
    ):
        if value is not None and not value > 0:
            raise ConfigError(f"expected {name} above 0, got {value}.")
    if unknown := sorted(set(settings.data) - set(settings.sets)):
        raise DataError(
            f"--data names {unknown[0]!r}, which is no set of this table: "
            f"{', '.join(settings.sets)}. Add --set {unknown[0]}."
        )
