"""What a report says, as plain numbers and strings: nothing here knows of HTML or of figures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from gradmimic.errors import DataError


@dataclass(frozen=True)
class Metric:
    """One row of the table of metrics.

    Args:
        name: what was measured.
        value: the number, or a text; None stands for "not measured".
        meaning: the range, and which end is good.
        percent: print the number, a share in [0, 1], as a percentage.
    """

    name: str
    value: float | int | str | None
    meaning: str = ""
    percent: bool = False

    @property
    def printed(self) -> str:
        """The value as people read it."""
        if self.value is None:
            return "–"
        if isinstance(self.value, str):
            return self.value
        if self.percent:
            return percent(float(self.value))
        if isinstance(self.value, int):
            return f"{self.value:,}"
        return f"{self.value:.4g}".replace("-", "−")


@dataclass(frozen=True)
class LowSample:
    """One of the lowest-scored samples.

    Args:
        sample_id: its id.
        given: the name of the class it was given.
        score: its mean mimic score; higher is better.
        suggested: the name of the class that the reference would give it.
        true: the name of its true class, where that is known.
        p_clean: probability in [0, 1] that the given label is right.
        text: the sample itself, where it is a text.
        image: the sample itself, where it is a picture: encoded bytes as they came, which are
            decoded and encoded anew before they enter a page.
    """

    sample_id: int | str
    given: str
    score: float
    suggested: str | None = None
    true: str | None = None
    p_clean: float | None = None
    text: str | None = None
    image: bytes | None = None


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that one report shows; what is None or empty is left out of the page.

    Args:
        title: the heading, such as the name of the run.
        total: the number of samples in the selection.
        removed: how many of them the selection does not keep.
        plain_accuracy: test accuracy after plain training, in [0, 1].
        reweighted_accuracy: the same after re-weighted training.
        reference_accuracy: the same of the reference.
        auroc: how well the mean score tells wrong labels from right ones, in [0, 1]; 0.5 is chance.
        metrics: rows of the table of metrics.
        scores: for each epoch the mimic score of every sample, ``[n]``; NaN where not visited.
        mislabelled: which samples are known to carry a wrong label, ``[n]`` bool.
        curves: for each way of training, a value per epoch.
        curve_kind: what the curves are: test accuracy in [0, 1], or the training loss.
        reference_level: the same quantity of the reference, drawn as a dashed line.
        lowest: the lowest-scored samples, lowest first.
        config: the resolved configuration, key → value.
        versions: library → version.
        notes: warnings that the reader must know of.

    Raises:
        DataError: ``mislabelled`` and the scores are not of one length.
    """

    title: str
    total: int
    removed: int
    plain_accuracy: float | None = None
    reweighted_accuracy: float | None = None
    reference_accuracy: float | None = None
    auroc: float | None = None
    metrics: Sequence[Metric] = ()
    scores: Mapping[int, npt.NDArray[Any]] = field(default_factory=dict)
    mislabelled: npt.NDArray[np.bool_] | None = None
    curves: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    curve_kind: Literal["accuracy", "loss"] = "accuracy"
    reference_level: float | None = None
    lowest: Sequence[LowSample] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.mislabelled is None:
            return
        for epoch, scores in self.scores.items():
            if len(scores) != len(self.mislabelled):
                raise DataError(
                    f"the report got {len(scores)} scores for epoch {epoch}, but "
                    f"{len(self.mislabelled)} flags of mislabelled samples; give one per sample, "
                    "with NaN for samples that were not visited"
                )


def percent(share: float) -> str:
    """Print a share in [0, 1] as a percentage.

    Example:
        >>> percent(0.125) == "12.5\N{NO-BREAK SPACE}%"
        True
    """
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"
