"""τ of the batch weights softmax(m/τ): a number, a schedule, or a share of the scores' spread.

    auto:   τ = 0.7 · s̄      s̄ the running mean of the scores' standard deviation in a batch

Scores have the unit loss per unit of weight distance, so what is a small τ depends on the scale of
the features, and changes as the weights move. Their spread changes with it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gradmimic.errors import ParameterError

_SHARE = 0.7
_FORGET = 0.05  # of the running spread, at each step


class Temperature:
    """Says τ at every step.

    Args:
        given: τ > 0, a schedule ``step -> τ``, or ``"auto"``.

    Raises:
        ParameterError: τ is not positive; from a schedule, when it comes.

    Example:
        >>> Temperature("auto")(torch.tensor([1.0, -1.0]), 0)
        tensor(0.7000)
    """

    LEARNED = ("_spread",)

    def __init__(self, given: float | Literal["auto"] | Callable[[int], float]) -> None:
        if not callable(given) and given != "auto":
            _checked(given)
        self._given = given
        self._spread: Tensor | None = None

    def __call__(self, scores: Tensor, step: int) -> float | Tensor:
        """Return τ for the scores ``[b]`` of a step."""
        if callable(self._given):
            return _checked(self._given(step))
        if self._given != "auto":
            return _checked(self._given)
        spread = scores.std(correction=0) if len(scores) else scores.new_zeros(())
        if self._spread is None:
            self._spread = spread
        before = self._spread.to(spread)
        self._spread = before + _FORGET * (spread - before)
        # Scores that are all alike have no spread, and any τ gives equal weights then that leaves
        # m/τ finite.
        about = torch.finfo(scores.dtype)
        least = about.eps * scores.abs().max() if len(scores) else spread
        return (_SHARE * self._spread).clamp(min=about.tiny).maximum(least)


def _checked(value: float | str) -> float:
    if isinstance(value, str) or not value > 0:
        raise ParameterError(f"temperature must be a positive number or inf, got {value!r}.")
    return value
