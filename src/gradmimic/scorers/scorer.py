"""The interface of all scorers: a score for each sample of a batch, and perhaps weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from math import ceil
from typing import ClassVar, TypeVar

from torch import Tensor

from gradmimic.errors import ParameterError
from gradmimic.scorers.head_pass import HeadPass

T = TypeVar("T")

Softmax = Callable[[Tensor], Tensor]  # scores [b] -> weights [b], by the training's temperature

_WHAT = {
    "reference": "a better model's weights, which v points to",
    "outputs": "what a reference says of each sample id, an Outputs",
    "trusted": "(inputs, labels) of a few samples that are known to be clean",
    "optimizer": "the Adam or AdamW that trains the last layer",
}


class Scorer(ABC):
    """One way to say how good each sample of a batch is.

    Attributes:
        name: in logs and on the command line.
        needs: the arguments of :class:`~gradmimic.scorers.BatchScorer` that it cannot do without.

    Example:
        >>> import torch
        >>> class Confidence(Scorer):
        ...     name = "confidence"
        ...     def __call__(self, seen):
        ...         return seen.logits.softmax(1).amax(1)
        >>> h, W = torch.zeros(1, 1), torch.zeros(2, 1)
        >>> Confidence()(HeadPass.of(h, h @ W.T, torch.tensor([0]), W, None))
        tensor([0.5000])
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``, higher is better, in whatever unit the formula has."""

    def weights(self, scores: Tensor, seen: HeadPass, softmax: Softmax) -> Tensor:
        """Turn the scores of a batch into its weights, as the scorer's paper does.

        Args:
            scores: ``[b]``, of the samples.
            seen: the batch.
            softmax: softmax(scores/τ), for those who weigh so.

        Returns:
            ``[b]``, ≥ 0, that sum to 1.

        Raises:
            ParameterError: its paper makes no weights of it.
        """
        raise ParameterError(self.offline())

    @property
    def online(self) -> bool:
        """Whether batches can be weighed by it."""
        return type(self).weights is not Scorer.weights

    def offline(self) -> str:
        """Say that batches cannot be weighed by it, and what can be done."""
        return (
            f"weigh_by={self.name!r} makes no weights: its paper selects offline, once there are "
            f"scores. List it among the scorers, log it, and select(log, scorer={self.name!r})."
        )

    def given(self, value: T | None, argument: str) -> T:
        """Return what was given, or raise that this scorer cannot do without it.

        Raises:
            ParameterError: it is None; the message names the argument.
        """
        if value is None:
            raise ParameterError(
                f"The scorer {self.name!r} needs {argument}=, {_WHAT[argument]}; got None."
            )
        return value


def top_share(scores: Tensor, share: float, known: Tensor | None = None) -> Tensor:
    """Return equal weights ``[b]`` for the ⌈share · b⌉ highest scores, and 0 for the others.

    Args:
        scores: ``[b]``.
        share: in (0, 1].
        known: ``[b]`` bool; the others get 0 and are not counted in b.

    Example:
        >>> import torch
        >>> top_share(torch.tensor([3.0, 1.0, 2.0, 0.0]), 0.5)
        tensor([0.5000, 0.0000, 0.5000, 0.0000])
    """
    rows = len(scores)
    if known is not None:
        scores, rows = scores.masked_fill(~known, -float("inf")), int(known.sum())
    kept = part_of(share, rows)
    weights = scores.new_zeros(len(scores))
    weights[scores.topk(kept).indices] = 1 / max(kept, 1)
    return weights


def part_of(share: float, rows: int) -> int:
    """Return ⌈share · rows⌉, where 0.7 · 10 is 7.

    Example:
        >>> part_of(0.7, 10), part_of(0.3, 32)
        (7, 10)
    """
    return ceil(share * rows - 1e-9)


def checked_share(share: float, scorer: str) -> float:
    """Return a share in (0, 1], or raise."""
    if not 0 < share <= 1:
        raise ParameterError(f"{scorer} keeps a share of a batch in (0, 1], got {share!r}.")
    return share
