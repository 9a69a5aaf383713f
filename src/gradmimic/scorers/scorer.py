"""The interface of all scorers: a score for each sample of a batch, and perhaps weights."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from gradmimic.scorers.head_pass import HeadPass


class Scorer(ABC):
    """One way to say how good each sample of a batch is.

    Attributes:
        name: in logs and on the command line.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, seen: HeadPass) -> Tensor:
        """Return ``[n]``, higher is better, in whatever unit the formula has."""
