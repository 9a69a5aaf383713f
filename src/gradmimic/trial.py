"""Which alignment? Canaries tell: each takes its turn for a while, and the best separation wins.

    step t is scored along v of candidate t mod k;  A_j = AUROC of samples over canaries under j
    chosen: the first, in the order none, rotation, outputs, transport, whose A_j lies within the
            best's interval

Scoring along one direction costs next to nothing, along all of them at once it would not; so they
take turns. Until one is chosen the training steps on the plain mean and nothing is logged.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from gradmimic.align import Alignment, Difference
from gradmimic.direction import Direction, Subset
from gradmimic.errors import (
    AlignmentError,
    DirectionError,
    ParameterError,
    ReferenceMismatchError,
    UselessReferenceError,
)
from gradmimic.outputs import Outputs
from gradmimic.ranks import ALONE, Ranks
from gradmimic.reference import Reference, Source, load_reference
from gradmimic.rotation import Rotation
from gradmimic.separation import Area, separation
from gradmimic.toward_outputs import TowardOutputs
from gradmimic.transport import Transport

ALIGNMENTS = ("none", "shift", "rotation", "transport", "outputs", "auto")
ENOUGH = 200  # canaries for each candidate

Given = Reference | Source | Outputs
Scores = npt.NDArray[np.float32]


class Trial:
    """Candidates that take turns until canaries have told which is best.

    Args:
        candidates: in order of preference, the simplest first.

    Attributes:
        name: ``"auto"``.
        areas: what each candidate came to, once one is chosen.
    """

    name = "auto"
    first = 0

    def __init__(self, candidates: Sequence[Alignment]) -> None:
        self.candidates = list(candidates)
        self.areas: dict[str, Area] = {}
        self._turn, self._waiting = 0, False
        self._real: list[list[Scores]] = [[] for _ in candidates]
        self._canaries: list[list[Scores]] = [[] for _ in candidates]

    def direction(self) -> Direction | None:
        """Return v of the candidate whose turn it is; None where it is not ready."""
        v = self.candidates[self._turn].direction()
        self._waiting = v is None
        return v

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Let every candidate see the pass."""
        with ExitStack() as stack:
            for candidate in self.candidates:
                stack.enter_context(candidate.watching())
            yield

    def observe(self, ids: Any | None) -> Tensor | None:
        """Let every candidate learn from the pass."""
        known = None
        for candidate in self.candidates:
            seen = candidate.observe(ids)
            known = seen if seen is not None else known
        if self._waiting:
            self._pass_on()
        return known

    def tell(self, real: Scores, canaries: Scores) -> Alignment | None:
        """Note the scores of the candidate whose turn it is; return the one that is chosen.

        Args:
            real: ``[b]`` scores of samples.
            canaries: ``[c]`` scores of canaries, of one kind.

        Raises:
            UselessReferenceError: under none do canaries score lower than samples.
        """
        self._real[self._turn].append(real)
        self._canaries[self._turn].append(canaries)
        self._pass_on()
        if min(sum(map(len, own)) for own in self._canaries) < ENOUGH:
            return None
        for candidate, good, bad in zip(self.candidates, self._real, self._canaries, strict=True):
            self.areas[candidate.name] = separation(np.concatenate(good), np.concatenate(bad))
        return self.candidates[preferred(list(self.areas.values()), self.told())]

    def _pass_on(self) -> None:
        self._turn = (self._turn + 1) % len(self.candidates)

    def told(self) -> str:
        """Say what each candidate came to."""
        return ", ".join(
            f"{name} {area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
            for name, area in self.areas.items()
        )


def preferred(areas: Sequence[Area], told: str) -> int:
    """Return the first whose AUROC lies within the interval of the best.

    Args:
        areas: in order of preference.
        told: names them in the message.

    Raises:
        UselessReferenceError: none is above chance, or one is far below.

    Example:
        >>> preferred([Area(0.50, 0.45, 0.55), Area(0.90, 0.86, 0.94), Area(0.91, 0.87, 0.95)], "")
        1
    """
    best = max(areas, key=lambda area: area.value)
    if best.low <= 0.5:
        raise UselessReferenceError(
            f"AUROC of samples over canaries by alignment: {told}, where 0.5 is chance: this "
            "reference says nothing about good and bad samples here. Expected a model of the same "
            "task and classes that is better than the one being trained; gradmimic check says more."
        )
    return next(i for i, area in enumerate(areas) if area.value >= best.low)


def pick_alignment(
    name: str, model: nn.Module, subset: Subset, reference: Given, ranks: Ranks = ALONE
) -> Alignment:
    """Prepare an alignment by its name.

    Args:
        name: ``"none"``, ``"shift"``, ``"rotation"``, ``"transport"``, ``"outputs"`` or ``"auto"``.
        model: the model being trained.
        subset: its scored parameters.
        reference: weights, a module, or a table of outputs.
        ranks: whose samples it learns from.

    Returns:
        The alignment; for ``"auto"`` a :class:`Trial` of all that are possible, or the only one.

    Raises:
        ParameterError: there is no such alignment.
        ReferenceMismatchError, AlignmentError: model, scored parameters and reference do not fit.
    """
    if name not in ALIGNMENTS:
        raise ParameterError(f"align={name!r} is unknown; expected one of {', '.join(ALIGNMENTS)}.")
    if name == "auto":
        return _all_possible(model, subset, reference, ranks)
    if name in ("transport", "outputs"):
        if isinstance(reference, Outputs | nn.Module):
            kind = Transport if name == "transport" else TowardOutputs
            return kind(model, subset, reference, ranks)
        raise AlignmentError(
            f"align={name!r} needs what the reference says of each sample, weights alone do not "
            "tell. Pass a module, or outputs by id: Outputs(ids, values), or gradmimic cache."
        )
    if isinstance(reference, Outputs):
        raise AlignmentError(
            f"align={name!r} compares weights, but the reference is a table of outputs. Use "
            "align='transport'."
        )
    weights = load_reference(reference)
    if name == "rotation":
        return Rotation(model, subset, weights, ranks)
    return Difference(model, subset, weights, shift=name == "shift")


def _all_possible(model: nn.Module, subset: Subset, reference: Given, ranks: Ranks) -> Alignment:
    """Return a trial of every alignment that fits, simplest first."""
    found: list[Alignment] = []
    problems = []
    for name in ("none", "rotation", "outputs", "transport"):
        if name == "transport" and any(own.name == "outputs" for own in found):
            continue  # that is for several layers, such as those of a contrastive model
        try:
            candidate = pick_alignment(name, model, subset, reference, ranks)
            if name in ("none", "rotation") and (v := candidate.direction()) is not None:
                _ = v.norm  # a copy of the model has no direction
            found.append(candidate)
        except (ReferenceMismatchError, AlignmentError, DirectionError) as error:
            problems.append(f"{name}: {error}")
    if not found:
        raise AlignmentError("no alignment is possible. " + " ".join(problems))
    return Trial(found)
