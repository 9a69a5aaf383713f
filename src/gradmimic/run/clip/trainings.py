"""The trainings of a run on pairs: the reference's, plain, re-weighted, and on what was selected.

plain, re-weighted and selected start from the same initial weights and take as many steps; the
first two see the same batches in the same order. Each can be cut off and taken up again.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import Any

from gradmimic.canaries import Canaries, enough
from gradmimic.curate import Selection
from gradmimic.curate.lookup import KeptIds
from gradmimic.direction import Params, choose
from gradmimic.errors import ConfigError, DataError
from gradmimic.log import ScoreLog
from gradmimic.pair_model import PairModel
from gradmimic.reference import Reference
from gradmimic.reweight import GradMimic
from gradmimic.run.clip.answers import Answers
from gradmimic.run.clip.beside import log_clip_scores
from gradmimic.run.clip.config import ClipConfig
from gradmimic.run.clip.planted import Planted, Swapped, plant
from gradmimic.run.clip.pool import Held
from gradmimic.run.clip.prepare import (
    Align,
    Better,
    as_better,
    fed_alike,
    other_start,
    picked_alignment,
    read_better,
    scored,
)
from gradmimic.run.clip.read import Inputs, Pairs, Progress
from gradmimic.run.clip.sets import Tests, open_tests
from gradmimic.run.clip.state import States
from gradmimic.run.clip.train import (
    Curve,
    Drawing,
    Pool,
    Training,
    epoch_ends,
    no_canaries,
    settle,
    start,
    train,
)
from gradmimic.transport import FIRST
from gradmimic.trial import pick_alignment

_ENGINE = "forward"  # the one for losses of which each depends on the whole batch
_PRINTED = {"reweighted": "re-weighted"}


@dataclass(eq=False)
class Trainings:
    """Everything that the trainings of a run share, and what they came to.

    Args:
        config: the run's configuration.
        pair: the model, at its initial weights.
        tests: what it is measured on.
        out: the run's folder.
        progress: told of every training and step.

    Attributes:
        curves: by training, in the order they were done.
        steps: of each.
        reference: what the reference comes to on the test sets; empty where it is not whole.
        aligned: how it was brought near.
        overtaken: the step from which on the scores know nothing.
    """

    config: ClipConfig
    pair: PairModel
    tests: Tests
    out: Path
    progress: Progress
    curves: dict[str, Curve] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)
    aligned: Align = "none"
    overtaken: int | None = None

    def __post_init__(self) -> None:
        self.states = States(self.out)
        self.params: Params = scored(self.config, self.pair)

    def read(self) -> Better | None:
        """Read the reference, where one is named, and check that it fits before anything is done.

        Raises:
            ReferenceMismatchError, AlignmentError: it does not.
            DirectionError: it is the model itself.
        """
        if self.config.reference is None:
            return None
        better = read_better(self.config, self.pair, self.params)
        self._align(better)
        return better

    def better(self, inputs: Inputs, read: Better | None) -> Better:
        """Train the reference, unless it was read; measure it."""
        if read is not None:
            better = read
        else:
            assert inputs.trusted is not None  # noqa: S101  as the configuration has it
            better = as_better(self._trained_reference(inputs.train, inputs.trusted))
            self._align(better)
        if better.whole is not None:
            alike = fed_alike(self.pair, better.whole)
            tests = self.tests if alike else open_tests(self.config, better.whole)
            self.reference = tests.measure(better.whole.model)
        return better

    def has_clip_scores(self, data: Pairs, better: Better) -> bool:
        """Tell whether the reference scores every pair by itself: it is whole, and they are held.

        Raises:
            ConfigError: it does not, and the selection is to be made of that too.
        """
        whole = better.whole
        found = isinstance(data, Held) and whole is not None and fed_alike(self.pair, whole)
        if self.config.aggregate == "stacked" and not found:
            raise ConfigError(
                "aggregate is stacked, which combines the mimic score with the reference's CLIP "
                "score. That takes pairs that fit in memory, and a reference with both towers of "
                f"{self.config.model}. Leave it out, or use gradmimic score."
            )
        return found

    def plain(self, data: Pairs) -> None:
        """Train on the plain mean of all pairs."""
        self._fit("plain", data, self._ends(data))

    def reweighted(self, data: Pairs, better: Better) -> None:
        """Train on batch weights, and log every score."""
        config, stage = self.config, "reweighted"
        if (done := self.states.finished(stage)) is not None:
            self.curves[stage], facts = done
            self.steps[stage], self.overtaken = facts["steps"], facts["overtaken"]
            return
        beside = self.has_clip_scores(data, better)
        training = self._begin(self.pair)
        state = self.states.resume(stage, training)
        canaries = self._canaries(data, training.at.step)
        with ScoreLog(self.out / "log", config=config.as_dict(), seed=config.seed) as log:
            log.cut(state["mimic"]["step"] if state else 0, events=state.get("events"))
            toward = self._toward(better)
            mimic = self._mimic(training.pair, toward, log)
            if isinstance(toward, Answers):
                training.pair = toward.beside(training.pair)
                if not state:
                    settle(training, data, mimic, FIRST)
            if state:
                mimic.load_state_dict(state["mimic"])
            ends = self._ends(data)
            train(
                training,
                data,
                ends=ends,
                measure=self.tests.measure,
                mimic=mimic,
                canaries=canaries,
                on_step=self._bar(stage, training, ends),
                on_round=lambda: self.states.keep(stage, training, mimic, log),
            )
            if beside and isinstance(data, Held) and better.whole is not None:
                planted = canaries.pairs if isinstance(canaries, Planted) else None
                log_clip_scores(log, better.whole, data, planted, training.at.step)
        self.overtaken = mimic.overtaken
        self.states.finish(stage, training, steps=training.at.step, overtaken=self.overtaken)
        self.curves[stage], self.steps[stage] = training.curve, training.at.step

    def selected(self, data: Pairs, selection: Selection) -> None:
        """Train on the plain mean of the selected pairs, for as many steps.

        Raises:
            DataError: the selection keeps too few to train on.
        """
        kept = data.only(KeptIds(selection))
        if len(selection.kept) < 2:
            raise DataError("the selection keeps no pairs to train on; leave retrain out.")
        self._fit("selected", kept, self._ends(data))

    def _align(self, better: Better) -> None:
        """Decide how a reference is brought near, and check that it can be."""
        self.aligned = picked_alignment(self.config, self.pair, self.params, better)
        self._mimic(self.pair, self._toward(better), None)
        subset = choose(self.pair.model, self.params)
        toward = pick_alignment(self.aligned, self.pair.model, subset, self._toward(better))
        if (v := toward.direction()) is not None:
            _ = v.norm  # raises where the reference is the model itself

    def _toward(self, better: Better) -> Reference | Answers:
        """Return the reference as it is brought near: its weights, or what it says."""
        if self.aligned != "transport":
            return better.weights
        assert better.whole is not None  # noqa: S101  or it would not be transported
        return Answers(better.whole, self.pair)

    def _trained_reference(self, data: Pool, trusted: Held) -> PairModel:
        other = other_start(self.config, self.pair)
        epochs = self.config.reference_epochs
        if epochs is None:
            epochs = ceil(self._ends(data)[-1] / trusted.steps(0))
        ends = epoch_ends(trusted, epochs)
        self._fit("reference", trusted, ends[-1:], pair=other, measured=False)
        self.states.weights("reference", other.model)
        return other

    def _fit(
        self,
        stage: str,
        data: Pool,
        ends: list[int],
        *,
        pair: PairModel | None = None,
        measured: bool = True,
    ) -> None:
        """Train plainly, or take what was trained before."""
        if (done := self.states.finished(stage)) is not None:
            self.curves[stage], self.steps[stage] = done[0], done[1]["steps"]
            return
        training = self._begin(pair or self.pair)
        self.states.resume(stage, training)
        train(
            training,
            data,
            ends=ends,
            measure=self.tests.measure if measured else lambda _model: {},
            on_step=self._bar(stage, training, ends),
            on_round=lambda: self.states.keep(stage, training),
        )
        self.states.finish(stage, training, steps=training.at.step)
        self.curves[stage], self.steps[stage] = training.curve, training.at.step

    def _begin(self, pair: PairModel) -> Training:
        """Start from a copy of the initial weights."""
        own = replace(pair, model=deepcopy(pair.model))
        return start(own, lr=self.config.lr, weight_decay=self.config.weight_decay)

    def _ends(self, data: Pool) -> list[int]:
        return epoch_ends(data, self.config.epochs)

    def _bar(self, stage: str, training: Training, ends: list[int]) -> Callable[..., object]:
        """Open a progress bar where the training stands."""
        on_step = self.progress(_PRINTED.get(stage, stage), ends[-1])
        if training.at.step:
            on_step(training.at.step)
        return on_step

    def _mimic(
        self, pair: PairModel, toward: Reference | Answers, log: ScoreLog | None
    ) -> GradMimic:
        config = self.config
        return GradMimic(
            pair.model,
            toward,
            params=self.params,
            align=self.aligned,
            temperature=1.0 if config.weighting == "posterior" else config.tau,
            weighting=config.weighting,
            engine=_ENGINE,
            log=log,
            warmup=config.warmup,
        )

    def _canaries(self, data: Pairs, step: int) -> Drawing:
        rate, seed = self.config.canary_rate, self.config.seed
        if self.config.canaries == "off":
            return no_canaries
        if isinstance(data, Held):
            return Planted(plant(data, rate, seed), data.steps(0), step)
        return Swapped(Canaries(rate or enough(len(data)), seed=seed))
