"""The two public functions, and what they return."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch

from gradmimic.curate.canaries import Estimate
from gradmimic.errors import ConfigError, DataError
from gradmimic.label_issues.inputs import (
    BoolArray,
    IntArray,
    as_features,
    as_labels,
    as_mask,
    check_trusted,
    repeated,
)
from gradmimic.label_issues.judge import Judgement, cross_fitted, judged_by
from gradmimic.label_issues.probe import Data, given_probe
from gradmimic.reference import Reference, Source, load_reference

RankedBy = Literal["score", "p_clean"]

LEAST = 20  # samples to judge
_RANKED_BY = ("score", "p_clean")
_CLEANLAB = ("self_confidence", "normalized_margin", "confidence_weighted_entropy")


@dataclass(frozen=True, eq=False)
class LabelIssues:
    """What ``inspect_labels`` found. Arrays are ``[n]``, in the order of the data.

    Attributes:
        mask: True where the label looks wrong.
        indices: rows of these ``[issues]``, the worst first.
        given: the labels, as they came.
        suggested: the labels with every issue replaced by what the reference takes it for.
        p_clean: the probability that the label is right, in [0, 1], low is bad; 1 for trusted
            samples, NaN for those that could not be judged.
        score: how much likelier than by chance the reference finds the label, as a logarithm; low
            is bad, 0 is chance. NaN for samples that were not judged.
        noise_rate: the share of wrong labels among the judged, with its interval: from errors that
            are random to errors that confuse similar classes.
        auroc: how well the scores tell the samples from canaries, whose labels were made wrong on
            purpose: 0.5 is chance. The wrong ones among the samples cannot be told from canaries,
            so perfect scores come to 1 − noise_rate / 2.
    """

    mask: BoolArray
    indices: IntArray
    given: npt.NDArray[Any]
    suggested: npt.NDArray[Any]
    p_clean: npt.NDArray[np.float64]
    score: npt.NDArray[np.float64]
    noise_rate: Estimate
    auroc: Estimate

    @property
    def can_be_trusted(self) -> bool:
        """Whether the scores tell canaries from samples at all; if not, nothing is flagged."""
        return self.auroc.low > 0.5

    def summary(self) -> str:
        """Say what was found, and how good the canaries say it is."""
        judged, issues = int(np.isfinite(self.score).sum()), len(self.indices)
        rate, area = self.noise_rate, self.auroc
        spread = f"{area.value:.3f} ({area.low:.3f} to {area.high:.3f})"
        if not self.can_be_trusted:
            return (
                f"No label of {judged:,} is flagged: the scores cannot tell labels that were made "
                f"wrong on purpose from the given ones, AUROC {spread}, where 0.5 is chance."
            )
        return (
            f"{issues:,} of {judged:,} labels ({issues / judged:.1%}) look wrong; about "
            f"{rate.value:.1%} are, between {rate.low:.1%} if errors are random and "
            f"{rate.high:.1%} if they confuse similar classes. Labels that were made wrong on "
            f"purpose are told from the given ones with AUROC {spread}, where perfect scores "
            f"would reach {1 - rate.value / 2:.3f}."
        )


@overload
def find_label_issues(
    features: Any,
    labels: Any,
    *,
    reference: Reference | Source | None = None,
    trusted: Any = None,
    return_indices_ranked_by: None = None,
    seed: int = 0,
) -> BoolArray: ...


@overload
def find_label_issues(
    features: Any,
    labels: Any,
    *,
    reference: Reference | Source | None = None,
    trusted: Any = None,
    return_indices_ranked_by: RankedBy,
    seed: int = 0,
) -> IntArray: ...


def find_label_issues(
    features: Any,
    labels: Any,
    *,
    reference: Reference | Source | None = None,
    trusted: Any = None,
    return_indices_ranked_by: RankedBy | None = None,
    seed: int = 0,
) -> BoolArray | IntArray:
    """Find the labels that look wrong; for suggestions and certainty call ``inspect_labels``.

    Args:
        features: ``[n, d]`` array or tensor of finite numbers, such as the embeddings of a
            pretrained model; a memory-mapped file is read piece by piece.
        labels: ``[n]`` class numbers or names.
        reference: a linear probe that was trained on other samples: a module, state dict or file,
            see ``load_reference``. It is used as it is.
        trusted: rows whose labels are known to be right, as indices or a mask ``[n]``. The
            reference learns from them, and they are never flagged.
        return_indices_ranked_by: ``"p_clean"``, which knows what classes are taken for which, or
            ``"score"``, which judges each sample alone; or None.
        seed: of the folds, the order of training and the canaries.

    Returns:
        A mask ``[n]``, True where the label looks wrong; or, with ``return_indices_ranked_by``, the
        row numbers of these, the worst first, as cleanlab's function of this name does.

    Raises:
        ConfigError, DataError, ReferenceMismatchError: as of ``inspect_labels``.

    Warns:
        UserWarning: as of ``inspect_labels``.

    Example:
        >>> features = np.tile(np.eye(2), (50, 1))
        >>> labels = ["dog", "cat"] * 5 + ["cat", "dog"] * 45
        >>> sorted(find_label_issues(features, labels, return_indices_ranked_by="score").tolist())
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    ranked_by = return_indices_ranked_by
    if ranked_by is not None and ranked_by not in _RANKED_BY:
        hint = " Cleanlab's rankings need predicted probabilities, which do not exist here."
        raise ConfigError(
            f"return_indices_ranked_by={ranked_by!r} is unknown; expected 'score', 'p_clean' or "
            f"None.{hint if ranked_by in _CLEANLAB else ''}"
        )
    found = _inspect(features, labels, reference, trusted, seed)
    if ranked_by is None:
        return found.mask
    return found.indices[np.argsort(getattr(found, ranked_by)[found.indices], kind="stable")]


def inspect_labels(
    features: Any,
    labels: Any,
    *,
    reference: Reference | Source | None = None,
    trusted: Any = None,
    seed: int = 0,
) -> LabelIssues:
    """Judge every label: is it wrong, how sure is that, and what should it be?

    score_i = ln K + ln p_ref(y_i | x_i), with p_ref from a linear probe that never saw sample i.
    Without ``reference``, probes are trained twice, by five-fold cross-fitting, on all labels and
    then with each sample weighted by its ``p_clean`` of the first time; with trusted ones thrice.
    As many are flagged as give the highest expected F1, see ``gradmimic.label_issues.judge``.

    Args:
        features: ``[n, d]``, as of ``find_label_issues``.
        labels: ``[n]`` class numbers or names.
        reference: as of ``find_label_issues``. It knows the classes in the order of their numbers,
            or of the alphabet. Samples it was trained on look better than they are.
        trusted: as of ``find_label_issues``; every class needs some.
        seed: the same one gives the same result.

    Returns:
        Everything about the labels; print its ``summary()``.

    Raises:
        ConfigError: both a reference and trusted rows.
        DataError: shapes or types are wrong, features are not finite, there is one class only or
            too few samples, or the trusted rows lack a class.
        ReferenceMismatchError: the reference is no linear probe of these features and classes.

    Warns:
        UserWarning: the canaries say that the scores are not to be trusted, or a class has one
            sample only, which is then not judged.

    Source:
        Scores: arXiv 2501.06708, section 3.1, summed along a path.

    Example:
        >>> features = np.tile(np.eye(2), (50, 1))
        >>> found = inspect_labels(features, ["dog", "cat"] * 5 + ["cat", "dog"] * 45)
        >>> found.suggested[:4].tolist()
        ['cat', 'dog', 'cat', 'dog']
    """
    return _inspect(features, labels, reference, trusted, seed)


def _inspect(
    features: Any, labels: Any, reference: Reference | Source | None, trusted: Any, seed: int
) -> LabelIssues:
    """Check what came, judge it, and put the result together."""
    if reference is not None and trusted is not None:
        raise ConfigError(
            "expected a reference or trusted rows, got both. The reference is used as it is, so "
            "nothing would learn from the trusted rows: leave one of them out."
        )
    rows, given = as_features(features), as_labels(labels)
    if len(rows) != len(given):
        raise DataError(f"expected one label per row, got {len(rows)} rows and {len(given)}.")
    if len(rows) < LEAST:
        raise DataError(_too_few(len(rows)))
    classes, numbers = np.unique(given, return_inverse=True)
    if len(classes) < 2:
        raise DataError(
            f"all {len(given)} labels are alike, so none can be wrong; expected 2 classes or more."
        )
    known = as_mask(trusted, len(rows))
    probe, order = None, classes
    if reference is not None:
        probe, order = given_probe(load_reference(reference), rows.shape[1], classes)
        numbers = np.searchsorted(order, given)
    judged = ~known
    if trusted is not None:
        check_trusted(numbers, known, classes)
    elif probe is None:
        judged = repeated(numbers, classes)
    if judged.sum() < LEAST:
        raise DataError(_too_few(int(judged.sum())))
    data = Data(rows, torch.from_numpy(numbers.astype(np.int64)), len(order), seed)
    where = np.flatnonzero(judged)
    if probe is not None:
        return issues_of(given, order, known, judged_by(data, probe, where))
    return issues_of(given, order, known, cross_fitted(data, known, where))


def _too_few(n: int) -> str:
    """Say that canaries cannot tell anything about so few samples."""
    return f"expected at least {LEAST} samples to judge, got {n}. With so few, look at each."


def issues_of(
    given: npt.NDArray[Any], classes: npt.NDArray[Any], known: BoolArray, judgement: Judgement
) -> LabelIssues:
    """Bring a judgement into the order and the labels of the data."""
    where = judgement.rows
    mask = np.zeros(len(given), dtype=np.bool_)
    mask[where] = judgement.flagged
    p_clean, score = np.where(known, 1.0, np.nan), np.full(len(given), np.nan)
    p_clean[where], score[where] = judgement.p_clean, judgement.score
    issues = np.flatnonzero(mask)
    issues = issues[np.lexsort((score[issues], p_clean[issues]))]
    suggested = given.copy()
    suggested[mask] = classes[judgement.suggested[judgement.flagged]]
    auroc = judgement.auroc
    if auroc.low <= 0.5:
        warnings.warn(
            f"these scores cannot be trusted: labels made wrong on purpose are told from the given "
            f"ones with AUROC {auroc.value:.3f} ({auroc.low:.3f} to {auroc.high:.3f}), where 0.5 "
            "is chance. No label is flagged. Pass features in which the classes differ, such as "
            "a pretrained model's embeddings, and check that rows and labels are in one order, as "
            "well as the classes of a reference.",
            stacklevel=4,
        )
    return LabelIssues(mask, issues, given, suggested, p_clean, score, judgement.noise_rate, auroc)
